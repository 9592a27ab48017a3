"""Face attributes from one model, trained in stages, with a part that decouples the coupled tasks.

python trainers/attributes.py --data s3://bucket/celeba s3://bucket/utkface --name faces --cluster.workers 8
python trainers/attributes.py --name faces --resume             resume a run
python trainers/attributes.py evaluate --name faces
python trainers/attributes.py predict --name faces --images someone.jpg a_folder
python trainers/attributes.py predict --name faces --stream 0   a camera, a video file or a stream's address
python trainers/attributes.py export --name faces --to faces.onnx
python trainers/attributes.py compare --data ... --seeds 0 1 2  the arms, in one table
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.launch import claimed, connect, launch
from datasets.command_line import FLAT
from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.inputs import frames_of_files, frames_of_stream, image_files
from trainers.engine.job import resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import METRICS
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnRun, OnSets, Opened, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.attributes.config import Arm, AttributesConfig, Stage, trained_tasks, with_equal_computing
from trainers.tasks.attributes.curriculum import StageLog
from trainers.tasks.attributes.data import FaceSet, checksum_of, labelled_columns, mixed_stream, open_sets, with_targets
from trainers.tasks.attributes.evaluation import can_evaluate, evaluate_faces
from trainers.tasks.attributes.model import Attributes, AttributesTask
from trainers.tasks.attributes.report import CURVES, held_out_faces, predict_faces, print_comparison, print_figures, write_report

BATCH = 32  # image files predicted together


@dataclass(frozen=True)
class Train(AttributesConfig):
    """Train a model in stages: mix the sets, checkpoint, evaluate, report."""

    def run(self) -> None:
        """Check settings and data, train, write the report."""
        config = resolved(self, "attributes")
        sets, run = config.check(), start_run(config)
        connect(config.cluster)
        count, tasks = sum(len(face_set.train) for face_set in sets), trained_tasks(config, sets)
        print(f"run {config.name}: {config.arm}, {count:,} images of {len(sets)} sets, tasks: {', '.join(tasks)}")
        with claimed(config.cluster, config.name, config.runs, config.resume_from) as folder, shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, folder, show)
        if figures := run.read_json(METRICS).get("after"):
            print_figures(config.name, figures)
        trained = open_run(Train, OnRun(name=config.name, runs=config.runs))
        write_report(run, held_out_faces(trained_model(trained), sets, config.size, trained.device, trained.state["trained"]))


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Train on one worker: called on each of them, and again after a failure, from the last checkpoint."""
    config = from_json(Train, settings["config"], "the driver")
    sets = open_sets(config.data)
    torch.manual_seed(config.seed)
    model = Attributes(config.model, trained_tasks(config, sets), single=config.arm == "single", size=config.size)
    task = AttributesTask(model, worker.group, uncertainty=config.uncertainty)
    task = task.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's images are
    run = TrainingRun(config, worker, checksum_of(sets), score="score", made_of="*.skill")
    stages = StageLog(run.log.notes, worker.group)
    restored = stages.now
    if run.fresh:
        evaluate(run, sets, task)
    for number, stage in enumerate(config.stages):
        if config.decoupler and number == len(config.stages) - 1:
            torch.manual_seed(config.seed + number)
            model.insert_decoupler(config.decoupler)
        if number < restored:
            continue
        task.enter(stage.task_weights(), stage.freeze)
        run.start(task, build_optimiser(stage.optim(config.optim), task), restore=number == restored)
        if number > restored:
            stages.enter(run.log.step)
        stage = config.with_left_steps(number, stages.first)
        stages.cut(stage)
        if not stages.over:
            train_stage(run, sets, task, stage, stages)
    if run.evaluation_missing:
        evaluate(run, sets, task)
    labelled = labelled_columns(sets, make_roll=config.rolls_made)
    kept = {"trained": [name for name in model.columns if name in labelled], "size": list(config.size), **model.shape()}
    run.finish({"model": model.state_dict(), **kept}, metrics={"stages": stages.entries})


def train_stage(run: TrainingRun, sets: tuple[FaceSet, ...], task: AttributesTask, stage: Stage, stages: StageLog) -> None:
    """Train one stage from the run's current step to the end of the stage."""
    config, worker, first = run.config, run.worker, stages.first
    parts = config.parts(sets, stage)
    stream = mixed_stream(
        parts, config.loader, config.augment, config.cache, RankSlice(worker.rank, worker.world), (config.seed, stages.now),
        first, run.log.step, first + stage.most,
    )  # fmt: skip
    for step in run.steps(
        stream, stage.optim(config.optim), samples=sum(len(part.faces.train) for part in parts), first=first,
        ends=lambda step: stages.add(step.results["loss"], stage),
        prepare=lambda batches: with_targets(batches, parts, task.model.columns, config.size, make_roll=config.rolls_made),
    ):  # fmt: skip
        if run.record_due(step):
            run.record(step, {"stage": stages.now + 1})
        if run.evaluate_due(step):
            evaluate(run, sets, task)
        if run.checkpoint_due(step):
            stages.settle()
            run.save()
    if worker.rank == 0:
        worker.say(f"stage {stages.now + 1} ended at step {run.log.step}: {stages.entries[-1]['ended']}")


def evaluate(run: TrainingRun, sets: tuple[FaceSet, ...], task: AttributesTask) -> None:
    """Record the figures of the held-out images, if there are any; every rank evaluates its slice."""
    if can_evaluate(sets):
        config = run.config
        result = evaluate_faces(task.model, sets, config.size, config.cache, turn=config.turn, **run.for_evaluation(task))
        score = result.figures.get("score")
        summary = "no score: no task has labels that differ" if score is None else f"score {score:.3f}"
        run.evaluated(result.figures, result.bad, summary)


def trained_model(trained: Opened) -> Attributes:
    """The model of a run that has ended."""
    return trained.loaded(Attributes.of_shape(replace(trained.config.model, weights=""), trained.state, trained.size))


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnSets):
    """Evaluate a trained run on the held-out images of its own sets or of others."""

    def run(self) -> None:
        """Evaluate in this process, without Ray."""
        trained = open_run(Train, self)
        config, sets = trained.config, open_sets(self.data or trained.config.data)
        model = trained_model(trained)
        result = evaluate_faces(model, sets, trained.size, config.cache, trained.device, config.turn, workers=self.workers)
        print_unread(result.bad)
        urls = [face_set.index.url for face_set in sets]
        print_figures(f"{self.name} on {', '.join(urls)}", result.figures)
        trained.run.note_evaluation(" ".join(urls), result.figures)


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Predict the attributes of images, of folders of images, or of a video stream."""

    images: tuple[str, ...] = ()
    """Image files and folders of images, local or in S3."""
    stream: str = ""
    """A camera's number, a video file, local or in S3, or the address of a video stream."""
    frames: int = 0
    """Frames to predict; 0: all until the stream ends."""

    def run(self) -> None:
        """Print a line of JSON per image; store the lines and a picture of the first images in the run's folder."""
        if bool(self.images) == bool(self.stream) or self.frames < 0:
            raise InputError("predict takes either --images or --stream, and --frames of at least 0", "", "see `predict --help`")
        trained = open_run(Train, self)
        at_once = BATCH if self.images else 1  # a camera's frame is predicted before the next is read
        model = trained_model(trained)
        with image_files(self.images) as files:
            source = frames_of_files(files) if self.images else frames_of_stream(self.stream, self.frames)
            predict_faces(trained.run, model, source, trained.size, trained.device, trained.state["trained"], at_once)


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the model of a trained run: ONNX or torch.export, checked for equal output."""

    def run(self) -> None:
        """Write a model file: uint8 RGB images [B, 3, H, W] -> labels [B, C]."""
        write, trained = exporter(self.to, "labels"), open_run(Train, self)
        model, (height, width) = trained_model(trained), trained.size
        untrained = [column for column in model.columns if column not in trained.state["trained"]]
        notes = {"columns": model.columns, "never trained, for want of labels": untrained}
        export(write, model, (height, width), self.to, f"images of {height}x{width}", notes)


CompareArm = Literal[Arm, "single-equal-computing"]


@dataclass(frozen=True)
class Compare:
    """Train each arm with each seed, other settings equal, and print one table. Runs that have ended are not trained again.

    All arms take the same number of steps; single-equal-computing is the arm single with fewer, which cost what one model does.
    """

    sets: ClassVar = ("arm",)
    first: ClassVar = ("arms", "seeds", "jobs")
    train: Train = field(default_factory=Train, metadata=FLAT)
    arms: tuple[CompareArm, ...] = get_args(CompareArm)
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    """Runs that are trained at once."""

    def run(self) -> None:
        """Train the missing runs; print the table and store it as comparison.json."""
        remedy = "pack with --held-out above 0"
        compare(
            self.train, self.arms, self.seeds, self._configs, print_comparison,
            jobs=self.jobs, connect=connect, curves=CURVES, remedy=remedy,
        )  # fmt: skip

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for arm in self.arms:
            config = replace(base, arm=arm) if arm != "single-equal-computing" else with_equal_computing(base)
            yield arm, replace(config, seed=seed, name=f"{base.name}-{arm.replace('+', '-')}-{seed}")


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/attributes.py", __doc__ or "", verbs, defaults)
