"""Settings of the runs on videos: single actions, and sequences of actions."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.cache import CacheConfig
from datasets.loading.clips import ClipConfig, ClipSet, open_clips
from datasets.shards.index import Int64s, check_shards
from trainers.engine.config import ADDRESS, ALLOWED, HARMLESS
from trainers.engine.job import JobConfig
from trainers.engine.optim import OptimConfig
from trainers.tasks.user_models import try_users
from trainers.tasks.video.action_model import ActionModelConfig, check_clips
from trainers.tasks.video.data import feasible_clips, open_single
from trainers.tasks.video.sequence_model import LossKind, SequenceModel, SequenceModelConfig


@dataclass(frozen=True)
class ActionsConfig(JobConfig):
    """Settings of a run on single actions."""

    first: ClassVar = ("data", *JobConfig.first, "batch", "model.name", "optim.steps", "optim.lr")
    data: str = field(default="", metadata=ADDRESS)
    """A set made by `python -m datasets.pack_videos`: a folder or s3://bucket/prefix. Its stream, RGB or flow, is the model's."""
    batch: int = 16
    """Clips of a global batch, over all workers."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """workers, ahead and bad_share; the size stands in clip."""
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: ActionModelConfig = field(default_factory=ActionModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loader.size is not None:
            raise InputError("loader.size is for images", "--loader.size", "set --clip.size")
        self.cluster.check_shares(self.batch, "--batch")

    def check(self) -> ClipSet:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        clips = open_single(self.data)
        check_shards(clips.index)
        check_clips(self.model, len(clips.class_names), self.clip, clips.stream)
        return clips


@dataclass(frozen=True)
class SequencesConfig(JobConfig):
    """Settings of a run on sequences of actions."""

    first: ClassVar = ("data", *JobConfig.first, "batch", "loss", "model.backbone", "optim.steps", "optim.lr")
    data: str = field(default="", metadata=ADDRESS)
    """A set made by `python -m datasets.pack_videos`: a folder or s3://bucket/prefix."""
    batch: int = 8
    """Videos of a global batch, over all workers; each is taken as a whole."""
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(size=(64, 64)))
    """stride, size, margin and flip; a sequence is never cut in time."""
    loss: LossKind = "ctc"
    """ctc; or as baselines cross-entropy of each frame, by the set's frame labels (frames) or by even parts of a video (even)."""
    flat_start: float = 0.2
    """Fraction of the steps, at the start, that ctc trains on even parts instead: alone, it finds no alignment for long."""
    infeasible: Literal["refuse", "skip"] = "refuse"
    """Training videos with fewer frames than their actions need: end with their names, or leave them out."""
    beam: int = field(default=8, metadata=ALLOWED)
    """Width of the prefix beam search in evaluations and predictions; of models trained by ctc alone."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """workers, ahead and bad_share; the size stands in clip."""
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loader.size is not None:
            raise InputError("loader.size is for images", "--loader.size", "set --clip.size")
        self.cluster.check_shares(self.batch, "--batch")
        if self.beam < 1:
            raise InputError(f"a beam of {self.beam}", "--beam", "give at least 1")
        if not 0 <= self.flat_start < 1:
            raise InputError(f"a fraction of {self.flat_start} of the steps", "--flat-start", "give 0 or more, and less than 1")

    def loss_at(self, step: int) -> LossKind:
        """What a step trains by: like hidden Markov models, ctc has a flat start, where each action takes an equal part."""
        return "even" if self.loss == "ctc" and step < self.flat_start * self.optim.steps else self.loss

    @property
    def beam_width(self) -> int:
        """0 where there is no sense in summing up alignments: a frame-wise model has not learned to."""
        return self.beam if self.loss == "ctc" else 0

    def check(self) -> ClipSet:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        clips = open_clips(self.data)
        check_shards(clips.index)
        chosen = self.training_clips(clips)
        if self.loss == "frames" and not all(len(clips.frame_actions()[clip]) for clip in chosen.tolist()):
            raise InputError("the set has no frame labels", clips.index.url, "train by --loss ctc, or --loss even")
        if clips.stream != "skeletons":
            model = partial(SequenceModel, self.model, len(clips.class_names))
            try_users(self.model.backbone, model, torch.zeros(1, 2, *self.clip.size, 3))
        return clips

    def training_clips(self, clips: ClipSet) -> Int64s:
        """The clips to train on; raises InputError for those that are too short, unless they are to be left out."""
        return feasible_clips(clips, clips.clips_of("train"), self.clip.stride, skip=self.infeasible == "skip")
