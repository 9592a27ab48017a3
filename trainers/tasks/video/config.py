"""Settings of runs on videos, single actions and sequences of actions, and the checks before they start."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.cache import CacheConfig
from datasets.loading.clip_changes import ClipAugmentConfig
from datasets.loading.clips import ClipConfig, ClipSet, open_clips
from datasets.shards.index import Int64s, check_shards
from trainers.engine.config import ADDRESS, ALLOWED, HARMLESS
from trainers.engine.job import JobConfig
from trainers.engine.optim import OptimConfig
from trainers.tasks.backbones import try_model
from trainers.tasks.video.action_model import ActionModelConfig, check_clips
from trainers.tasks.video.data import feasible_clips, open_action_set
from trainers.tasks.video.presets import ACTION_PRESETS, SEQUENCE_PRESETS
from trainers.tasks.video.sequence_model import LossKind, SequenceModel, SequenceModelConfig


@dataclass(frozen=True)
class ClipsConfig(JobConfig):
    """Settings of any run on clips."""

    data: str = field(default="", metadata=ADDRESS)
    """A set made by `python -m datasets.pack_videos`: a folder or s3://bucket/prefix; its stream, RGB or flow, is the model's."""
    batch: int = 16
    """Videos of a global batch, over all workers."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: ClipAugmentConfig = field(default_factory=ClipAugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """workers, ahead and bad_share; the size is clip.size."""
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loader.size is not None:
            raise InputError("loader.size is for images", "--loader.size", "set --clip.size")
        self.cluster.check_divisible(self.batch, "--batch")
        self.optim.check_parts(self.batch, self.cluster.sizes)


@dataclass(frozen=True)
class ActionsConfig(ClipsConfig):
    """Settings of a run on single actions."""

    presets: ClassVar = ACTION_PRESETS
    first: ClassVar = ("data", *JobConfig.first, "batch", "model.name", "optim.steps", "optim.lr")
    model: ActionModelConfig = field(default_factory=ActionModelConfig)
    smoothing: float = 0.0
    """Share of a clip's label that is spread over all classes (label smoothing)."""
    mixup: float = 0.0
    """Mix clips in training, in shares drawn from a beta distribution of this parameter, such as 0.2; 0: do not mix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1 or not 0 <= self.mixup < math.inf:
            raise InputError("smoothing must be at least 0 and below 1, mixup at least 0", "", "such as 0.1 and 0.2")

    def check(self) -> ClipSet:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        clips = open_action_set(self.data)
        check_shards(clips.index)
        check_clips(self.model, len(clips.class_names), self.clip, clips.stream)
        return clips


@dataclass(frozen=True)
class SequencesConfig(ClipsConfig):
    """Settings of a run on sequences of actions."""

    first: ClassVar = ("data", *JobConfig.first, "batch", "loss", "model.backbone", "model.encoder", "optim.steps", "optim.lr")
    presets: ClassVar = SEQUENCE_PRESETS
    batch: int = 8
    """Videos of a global batch, over all workers; videos are not cut."""
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(size=(64, 64)))
    """Only stride, size, margin and flip are used: a sequence is never cut in time."""
    loss: LossKind = "ctc"
    """ctc; or, as baselines, cross-entropy of each frame: by the set's frame labels (frames) or by equal parts (even)."""
    flat_start: float = 0.2
    """Fraction of the steps, at the start, in which ctc trains on equal parts: without, it predicts only blanks for long."""
    infeasible: Literal["refuse", "skip"] = "refuse"
    """Training videos with too few frames for their actions: refuse to start and name them, or skip them."""
    beam: int = field(default=8, metadata=ALLOWED)
    """Width of the prefix beam search in evaluation and prediction; only for models trained by ctc."""
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam < 1:
            raise InputError(f"beam is {self.beam}", "--beam", "give at least 1")
        if not 0 <= self.flat_start < 1:
            raise InputError(f"flat-start is {self.flat_start}", "--flat-start", "give a fraction of at least 0 and below 1")

    def loss_at(self, step: int) -> LossKind:
        """The loss of a step: ctc has a flat start, as hidden Markov models have, in which each action takes an equal part."""
        return "even" if self.loss == "ctc" and step < self.flat_start * self.optim.steps else self.loss

    @property
    def beam_width(self) -> int:
        """Width of the beam search; 0 for frame-wise models, whose probabilities of alignments have no meaning."""
        return self.beam if self.loss == "ctc" else 0

    def check(self) -> ClipSet:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        clips = open_clips(self.data)
        check_shards(clips.index)
        chosen = self.training_clips(clips)
        if self.loss == "frames" and not all(len(clips.frame_actions()[clip]) for clip in chosen.tolist()):
            raise InputError("the set has no frame labels", clips.index.url, "train with --loss ctc or --loss even")
        if self.model.motion and clips.stream != "rgb":
            raise InputError(f"the set holds {clips.stream}", clips.index.url, "leave --model.motion out: it is for RGB")
        if clips.stream != "skeletons":
            model = partial(SequenceModel, self.model, len(clips.class_names), size=self.clip.size)
            try_model(self.model.backbone, self.model.weights, model, torch.zeros(1, 2, *self.clip.size, 3))
        return clips

    def training_clips(self, clips: ClipSet) -> Int64s:
        """The clips to train on; raises InputError if some are too short for their actions, unless they should be skipped."""
        stride = self.clip.stride * (1 + self.augment.speed)  # a clip may be played faster
        return feasible_clips(clips, clips.clips_of("train"), stride, skip=self.infeasible == "skip")
