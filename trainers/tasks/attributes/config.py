"""Settings of a face-attributes run: the sets, the stages of the curriculum, the arms that can be compared."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

import torch

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.cache import CacheConfig
from datasets.media.augment import AugmentConfig
from datasets.shards.index import check_shards
from trainers.engine.config import ADDRESS, HARMLESS
from trainers.engine.job import JobConfig
from trainers.engine.optim import OptimiserConfig
from trainers.tasks.attributes.curriculum import StageConfig
from trainers.tasks.attributes.data import FaceSet, MixConfig, Part, computing_of_single, labelled_columns, mixed_parts, open_sets
from trainers.tasks.attributes.losses import TASKS, Weights
from trainers.tasks.attributes.model import BACKBONE, COUPLED, Attributes, FaceModelConfig
from trainers.tasks.attributes.presets import PRESETS
from trainers.tasks.backbones import try_model

Arm = Literal["single", "joint", "joint+uncertainty", "staged", "staged+decoupler", "staged+cross-stitch", "staged+mtan"]
C = TypeVar("C", bound="AttributesConfig")
INDEPENDENT = ("keypoints", "gender", "glasses", "mask", "smile")


@dataclass(frozen=True)
class Stage(StageConfig):
    """A stage of the curriculum."""

    tasks: tuple[str, ...] = ()
    """Tasks that the stage trains; those without a label in the data are left out."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are: "backbone", or tasks, whose heads are not trained."""
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown task."""
        super().__post_init__()
        if unknown := [name for name in (*self.tasks, *self.freeze) if name not in TASKS and name != BACKBONE]:
            raise InputError(f"unknown task {', '.join(unknown)}", "stage", f"use {', '.join(TASKS)}")

    def task_weights(self) -> dict[str, float]:
        """The weight of each trained task's loss."""
        return {task: float(getattr(self.weights, task)) for task in self.tasks}

    @property
    def learned(self) -> tuple[str, ...]:
        """The tasks that it learns: those with a loss weight above 0."""
        return tuple(task for task, weight in self.task_weights().items() if weight)


@dataclass(frozen=True)
class AttributesConfig(JobConfig):
    """Settings of a face-attributes run."""

    presets: ClassVar = PRESETS
    first: ClassVar = ("data", "arm", *JobConfig.first, "batch", "model.backbone", "stage1.most", "stage2.most", "stage3.most")
    data: tuple[str, ...] = field(default=(), metadata=ADDRESS)
    """Shard sets with labels: folders or s3://bucket/prefix."""
    arm: Arm = "staged+decoupler"
    """single: one model for each task; joint: one model, all tasks from the start; +uncertainty: with learned task weights;
    staged: one model, trained in stages; +decoupler: with the decoupling part from the last stage on; +cross-stitch, +mtan: with
    another part of about the same size in its place."""
    batch: int = 64
    """Samples of a global batch, over all sets and workers."""
    mix: MixConfig = field(default_factory=MixConfig)
    loader: LoaderConfig = field(default_factory=lambda: LoaderConfig(size=(64, 64)))
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(turn=30.0))
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    make_roll: bool = True
    """Treat images without a roll label as upright; when augment.turn turns one, the angle is its roll label."""
    model: FaceModelConfig = field(default_factory=FaceModelConfig)
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    stage1: Stage = field(default_factory=lambda: Stage(tasks=INDEPENDENT))
    stage2: Stage = field(default_factory=lambda: Stage(tasks=(*INDEPENDENT, *COUPLED)))
    stage3: Stage = field(default_factory=lambda: Stage(tasks=(*INDEPENDENT, *COUPLED, "pose")))
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loader.size is None:
            raise InputError("loader.size is not set", "loader", "sets of several sizes are mixed: give a height and a width")
        self.cluster.check_divisible(self.mix.unit, "mix.unit")
        if self.batch < 1:
            raise InputError(f"a batch of {self.batch}", "--batch", "give at least 1")
        if self.uncertainty and any(stage.threshold for stage in self.stages):
            remedy = "set --stage3.threshold to 0, or choose another arm"
            raise InputError("a loss with learned weights has no threshold: it falls with the weights", "--arm", remedy)
        if self.optim.accumulate > 1:
            raise InputError("optim.accumulate is set", "optim", "a part may lack the labels of a task: lower --batch instead")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the arm; single and joint have one, which trains all tasks for the steps of all stages."""
        stages: tuple[Stage, ...] = (self.stage1, self.stage2, self.stage3)
        if not self.arm.startswith("staged"):
            least, most = sum(stage.least for stage in stages), sum(stage.most for stage in stages)
            stages = (replace(self.stage3, least=least, most=most, lr=self.stage1.lr),)
        return stages

    @property
    def uncertainty(self) -> bool:
        """Whether the arm learns the tasks' weights."""
        return self.arm == "joint+uncertainty"

    @property
    def steps(self) -> int:
        """Steps of the run, if no stage ends early."""
        return sum(stage.most for stage in self.stages)

    def with_left_steps(self, number: int, first: int) -> Stage:
        """The stage of this number, which began at step ``first``. The last one also gets the steps that the others have left, so
        that all arms take the same number of steps."""
        stage = self.stages[number]
        return replace(stage, most=max(stage.most, self.steps - first)) if number == len(self.stages) - 1 else stage

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images trained on."""
        assert self.loader.size is not None
        return self.loader.size

    @property
    def decoupler(self) -> str:
        """The decoupling part that the last stage adds: a name of `DECOUPLERS`; empty: none."""
        return self.arm.partition("+")[2] if self.arm.startswith("staged+") else ""

    @property
    def turn(self) -> float:
        """Degrees by which evaluations turn images without a roll label at most; 0: they do not."""
        return self.augment.turn if self.rolls_made else 0.0

    @property
    def rolls_made(self) -> bool:
        """Whether the angle by which an image is turned is its roll label."""
        return self.make_roll and self.augment.turn > 0

    def check(self) -> tuple[FaceSet, ...]:
        """Open the data and check data, stages and model before the run starts; raises InputError."""
        sets = open_sets(self.data)
        for face_set in sets:
            check_shards(face_set.index)
        trained_tasks(self, sets)
        for stage in self.stages:
            self.parts(sets, stage)
        try_model(
            self.model.backbone, self.model.weights, lambda: self._model(trained_tasks(self, sets)),
            torch.zeros(2, 3, *self.size),
        )  # fmt: skip
        return sets

    def _model(self, tasks: tuple[str, ...]) -> Attributes:
        """The model as it is at the end of the run."""
        model = Attributes(self.model, tasks, single=self.arm == "single", size=self.size)
        if self.decoupler:
            model.insert_decoupler(self.decoupler)
        return model

    def parts(self, sets: tuple[FaceSet, ...], stage: Stage) -> list[Part]:
        """What each set gives to the batches of a stage (`mixed_parts`); raises InputError."""
        return mixed_parts(sets, self.mix, self.batch, stage.learned, make_roll=self.rolls_made)


def with_equal_computing(config: C) -> C:
    """The arm single with as many steps as cost what the steps of one model for all tasks do; raises what `open_sets` raises."""
    single = replace(config, arm="single")
    sets = open_sets(single.data)
    parts, tasks = single.parts(sets, single.stages[0]), trained_tasks(single, sets)
    factor = computing_of_single(parts, tasks, make_roll=single.rolls_made)

    def shortened(stage: Stage) -> Stage:
        most = max(round(stage.most / factor), 1)
        return replace(stage, most=most, least=min(stage.least, most), warmup=round(stage.warmup / factor))

    return replace(single, stage1=shortened(single.stage1), stage2=shortened(single.stage2), stage3=shortened(single.stage3))


def trained_tasks(config: AttributesConfig, sets: tuple[FaceSet, ...]) -> tuple[str, ...]:
    """The tasks that some stage trains and the data has labels of, in the order of `TASKS`.

    Raises:
        InputError: the data has no label of any task of a stage.
    """
    columns = set(labelled_columns(sets, make_roll=config.rolls_made))
    labelled = [name for name, task in TASKS.items() if columns & set(task.columns)]
    for number, stage in enumerate(config.stages, 1):
        if not set(stage.learned) & set(labelled):
            what = f"stage {number} has no labelled sample in the data: it trains {', '.join(stage.learned) or 'no task'}"
            raise InputError(what, ", ".join(config.data), f"the data has labels of: {', '.join(labelled) or 'none'}")
    return tuple(task for task in labelled if any(task in stage.tasks for stage in config.stages))
