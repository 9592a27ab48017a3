"""Settings of a detection run, and the checks before it starts."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.cache import CacheConfig
from datasets.media.augment import AugmentConfig
from datasets.shards.index import check_shards
from trainers.engine.config import ADDRESS, ALLOWED, HARMLESS, allowed
from trainers.engine.job import JobConfig
from trainers.engine.optim import OptimConfig
from trainers.tasks.backbones import try_model
from trainers.tasks.detection.adaptation import RECIPES, AlignConfig, Arm, Recipe
from trainers.tasks.detection.data import BoxSet, Domains, Fold, check_side, classes_of, open_box_set
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.presets import PRESETS
from trainers.tasks.detection.teacher import TeacherConfig

GENERATIVE_LR = 2e-4  # of generators and discriminators, as networks of their kind are trained


@dataclass(frozen=True)
class DetectionConfig(JobConfig):
    """Settings of a detection run."""

    first: ClassVar = (
        "source",
        "target",
        "arm",
        *JobConfig.first,
        "folds",
        "fold",
        "model.backbone",
        "optim.steps",
        "optim.lr",
    )
    presets: ClassVar = PRESETS
    source: str = field(default="", metadata=ADDRESS)
    """The source: a shard set with boxes, a folder or s3://bucket/prefix."""
    target: str = field(default="", metadata=ADDRESS)
    """The target: a shard set. Only the arm oracle trains on the boxes of its training images."""
    classes: tuple[str, ...] = ()
    """Classes to detect; empty: all classes of the source."""
    arm: Arm = "align"
    """source: train on the source's boxes alone; +aug: with strong augmentation and a moving mean of the weights; da-faster:
    align images and regions by classifiers of the domain; align: align regions of both domains (SCDA); mean-teacher: pseudo-
    labels of the moving mean; aldi: distillation of all that the moving mean says; oracle: source+aug on the target's boxes."""
    batch: int = 8
    """Images of each domain in a global batch, over all workers."""
    side: int = 512
    """Short side of the images in pixels. A set's images are all resized to one shape, the most frequent one of the set."""
    folds: int = 0
    """Cross-validation: divide the target's images with boxes, whatever their split, into so many folds by the hash of their
    keys; 0: the target's own splits."""
    fold: int = 0
    """The fold that is held out to evaluate on, from 0; the other folds are for training."""
    begin: int = 0
    """Step from which the target counts in the detector's loss, after a burn-in on the source; the adversaries train from the
    start."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Mirror and shift, in all arms."""
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-4), metadata=allowed("steps", "lr", "warmup")
    )
    adversary_lr: float | None = field(default=None, metadata=ALLOWED)
    """Peak learning rate of the adversaries; None: that of the detector for the classifiers of da-faster, which must keep up with
    it, and 2e-4 for the networks of align."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side(self.side)
        if self.loader.size is not None:
            raise InputError("loader.size is set", "loader", "set --side: every set keeps its own shape")
        if self.augment.turn:
            raise InputError("augment.turn is set", "augment", "boxes cannot be rotated: leave it at 0")
        if self.augment.patch:
            raise InputError("augment.patch is set", "augment", "what is on a patch would have no box: leave it at 0")
        self.cluster.check_divisible(self.batch, "--batch")
        if self.begin < 0:
            raise InputError(f"begin is {self.begin}", "--begin", "give a step of at least 0")
        if self.folds < 0 or self.folds == 1 or not 0 <= self.fold < max(self.folds, 1):
            what = f"folds is {self.folds} and fold {self.fold}"
            raise InputError(what, "--folds, --fold", "give 0 folds or at least 2, and a fold from 0 to one less")
        if self.align.clusters > self.model.regions:
            raise InputError(f"{self.align.clusters} clusters of {self.model.regions} regions", "align", "lower --align.clusters")
        self.adversaries_optim()
        if self.optim.ema:
            raise InputError("optim.ema is set", "optim", "choose an arm with a teacher: it is a moving average (--teacher.*)")
        if self.optim.accumulate > 1:
            raise InputError("optim.accumulate is set", "optim", "images differ in their boxes: lower --batch or --side instead")

    @property
    def recipe(self) -> Recipe:
        """The losses and augmentations that the chosen ``arm`` (method of adaptation) consists of."""
        return RECIPES[self.arm]

    def adversaries_optim(self) -> OptimConfig:
        """The optimiser's settings for the adversaries: a learning rate of their own; they have no backbone."""
        own = self.optim.lr if self.recipe.classify else GENERATIVE_LR
        lr = own if self.adversary_lr is None else self.adversary_lr
        return replace(self.optim, lr=lr, backbone_lr=1.0, freeze=0)

    def open(self) -> Domains:
        """Open the data; raises InputError if it cannot be used."""
        target = self.open_target()
        labelled = target if self.recipe.labels == "target" else open_box_set(self.source, self.side, "source")
        return Domains(labelled, target, classes_of(labelled, target, self.classes))

    def open_target(self) -> BoxSet:
        """Open the target, divided into what is trained on and what is held out; raises InputError if it cannot be used."""
        fold = Fold(self.fold, self.folds) if self.folds else None
        return open_box_set(self.target, self.side, "target", fold)

    def check(self) -> Domains:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        domains = self.open()
        for box_set in domains[:2] if self.recipe.both else domains[:1]:
            if self.batch > len(box_set.train):
                what = f"the batch of {self.batch} is larger than the data ({len(box_set.train)} training images)"
                raise InputError(what, box_set.index.url, "lower --batch")
        for box_set in domains[:2]:
            check_shards(box_set.index)
        detector, size = partial(Detector, self.model, len(domains.names)), domains.target.size
        try_model(self.model.backbone, self.model.weights, detector, torch.zeros(2, 3, *size))
        return domains
