"""Detection across domains: train on the boxes of a source for images of a target, by region alignment and its alternatives.

python trainers/detection.py --source s3://bucket/bccd --target s3://bucket/cells --classes RBC WBC --name cells --arm align+aug
python trainers/detection.py --name cells --resume              continue a run
python trainers/detection.py evaluate --name cells
python trainers/detection.py predict --name cells --images smear.png a_folder
python trainers/detection.py export --name cells --to cells.onnx
python trainers/detection.py compare --source ... --target ... --seeds 0 1 2     all arms in one table
python trainers/detection.py compare --source ... --target ... --seeds 0 --folds 5   the same, by cross-validation
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, get_args

import torch

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.launch import claimed, connect, launch
from datasets.command_line import FLAT
from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.inputs import frames_of_files, image_files
from trainers.engine.job import absolute, resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import METRICS
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnData, OnRun, Opened, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.detection.adaptation import Arm, DetectionTask
from trainers.tasks.detection.config import DetectionConfig
from trainers.tasks.detection.data import (
    Domains,
    checksum_of,
    domain_stream,
    evaluate_boxes,
    held_out_split,
    open_box_set,
    sample_split,
    with_boxes,
)
from trainers.tasks.detection.detector import Detector
from trainers.tasks.detection.export import export_detector
from trainers.tasks.detection.report import detect_samples, predict_boxes, print_comparison, print_figures, write_report


@dataclass(frozen=True)
class Train(DetectionConfig):
    """Train a detector by one of the arms; write checkpoints, evaluate on the target, write a report."""

    def run(self) -> None:
        """Check settings and data, train on the cluster (or here), and write the run's report."""
        config = resolved(self, "detection")
        domains, run = config.check(), start_run(config)
        connect(config.cluster)
        count, aim = len(domains.labelled.train), len(domains.target.train)
        print(f"run {config.name}: {config.arm}, {count:,} labelled images, {aim:,} of the target: {', '.join(domains.names)}")
        with claimed(config.cluster, config.name, config.runs, config.resume_from) as folder, shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, folder, show)
        if figures := run.read_json(METRICS).get("after"):
            print_figures(config.name, figures)
        write_report(run, sample_split(domains.target))


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Run the training loop of one worker; `cluster.launch` starts it on every worker, and again after a failure."""
    config = from_json(Train, settings["config"], "the driver")
    domains = config.open()
    torch.manual_seed(config.seed)
    task = DetectionTask(config.model, len(domains.names), config.recipe, config.align, config.teacher, worker.group)
    task = task.to(worker.device)
    optimisers, optim = [build_optimiser(config.optim, task.detector)], [config.optim]
    if task.adversaries is not None:
        optim.append(config.adversaries_optim())
        optimisers.append(build_optimiser(optim[1], task.adversaries))
    run = TrainingRun(config, worker, checksum_of(domains[:2]), score="score", made_of="AP50.*")
    run.start(task, *optimisers)
    if run.fresh:
        evaluate(run, domains, task)
    stream = domain_stream(
        domains.labelled, domains.target if config.recipe.both else None, config.batch, config.loader, config.augment,
        config.cache, RankSlice(worker.rank, worker.world), config.seed, run.log.step, config.steps,
    )  # fmt: skip
    for step in run.steps(
        stream, *optim, samples=len(domains.labelled.train) + len(domains.target.train),
        prepare=lambda batches: with_boxes(batches, domains.labelled, domains.names, config.begin),
    ):  # fmt: skip
        task.update_mean(step.done, config.begin)
        if run.record_due(step):
            run.record(step)
        if run.evaluate_due(step):
            evaluate(run, domains, task)
        if run.checkpoint_due(step):
            run.save()
    if run.evaluation_missing:
        evaluate(run, domains, task)
    size = list(domains.target.size)
    run.finish({"model": task.kept.state_dict(), "classes": list(domains.names), "size": size})


def evaluate(run: TrainingRun, domains: Domains, task: DetectionTask) -> None:
    """Record the detections on some images of the target and, if it has held-out images with boxes, their metrics; every rank
    evaluates its slice."""
    target = domains.target
    seen = detect_samples(task, sample_split(target), target.size, domains.names, run.worker.device)
    run.log.notes.setdefault("seen", []).append({"step": run.log.step, "images": seen})
    if held_out_split(target) is not None:
        result = evaluate_boxes(task.kept, target, domains.names, run.config.cache, **run.for_evaluation(task))
        run.evaluated(result.figures, result.bad, f"mAP50 {result.figures['mAP50']:.1%} on the target")


def trained_detector(trained: Opened) -> Detector:
    """The detector of a trained run."""
    return trained.loaded(Detector(trained.config.model, len(trained.state["classes"]), fetch=False))


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnData):
    """Evaluate a trained run on the held-out images of its target or of another set."""

    def run(self) -> None:
        """Evaluate in this process, without the cluster."""
        trained = open_run(Train, self)
        config, classes = trained.config, trained.state["classes"]
        box_set = open_box_set(absolute(self.data), config.side, "data") if self.data else config.open_target()
        if not set(classes) <= set(box_set.classes):
            what = f"the run has the classes {', '.join(classes)}, the set {', '.join(box_set.classes) or 'none'}"
            raise InputError(what, box_set.index.url, "evaluate on a set with these classes")
        detector = trained_detector(trained)
        result = evaluate_boxes(detector, box_set, classes, config.cache, trained.device, workers=self.workers)
        print_unread(result.bad)
        print_figures(f"{self.name} on {box_set.index.url}", result.figures)
        trained.run.note_evaluation(box_set.index.url, result.figures)


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Predict the boxes of images; COCO's JSON and a picture of each image go into the run's folder."""

    images: tuple[str, ...]
    """Images and folders of images, local or in S3."""

    def run(self) -> None:
        """Predict, and print a line for each image and the address of the JSON."""
        trained = open_run(Train, self)
        classes, side = trained.state["classes"], trained.config.side
        with image_files(self.images) as files:
            predict_boxes(trained.run, trained_detector(trained), frames_of_files(files), side, classes, trained.device)


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the detector of a trained run to an ONNX file, and check that its output is the same."""

    def run(self) -> None:
        """Write the file: input one uint8 RGB image [1, 3, H, W], outputs boxes [n, 4], scores [n] and labels [n]."""
        if self.to.suffix != ".onnx":
            raise InputError("not a format to export to", str(self.to), "give a file name with the ending .onnx")
        trained = open_run(Train, self)
        labels = [f"{number} {name}" for number, name in enumerate(trained.state["classes"], 1)]
        what = f"images of {trained.size[0]}x{trained.size[1]}"
        export(partial(export_detector, path=self.to), trained_detector(trained), trained.size, self.to, what, {"labels": labels})


@dataclass(frozen=True)
class Compare:
    """Train several arms with the same settings, by each fold and seed, and print one table; finished runs are read, not trained
    again."""

    sets: ClassVar = ("arm", "fold")
    first: ClassVar = ("arms", "seeds", "only_folds", "jobs")
    train: Train = field(default_factory=Train, metadata=FLAT)
    arms: tuple[Arm, ...] = get_args(Arm)
    seeds: tuple[int, ...] = (0, 1, 2)
    only_folds: tuple[int, ...] = ()
    """The folds to compare on, of --folds; leave out the one that settings were chosen on. Empty: all folds."""
    jobs: int = 1
    """Runs that are trained at once."""

    def __post_init__(self) -> None:
        if wrong := [fold for fold in self.only_folds if not 0 <= fold < self.train.folds]:
            what = f"no fold {wrong[0]} of {self.train.folds}"
            raise InputError(what, "--only-folds", "give --folds, and folds from 0 to one less")

    def run(self) -> None:
        """Train the missing runs; print the table, and write it as JSON into the runs' folder."""
        remedy = "pack the target with boxes and with held-out images"
        folds = dict.fromkeys(self.only_folds) or range(max(self.train.folds, 1))
        turns = [(fold, seed) for fold in folds for seed in self.seeds]
        repeated = f"{len(turns)} runs each, of {len(folds)} folds" if self.train.folds else f"{len(turns)} seeds"
        compare(
            self.train, self.arms, turns, self._configs, partial(print_comparison, repeated),
            jobs=self.jobs, connect=connect, curves={"mAP50": "mAP50", "mAP": "mAP"}, remedy=remedy,
        )  # fmt: skip

    def _configs(self, base: Train, turn: tuple[int, int]) -> Iterator[tuple[str, Train]]:
        (fold, seed), part = turn, f"-fold{turn[0]}" if base.folds else ""
        for arm in self.arms:
            yield arm, replace(base, arm=arm, seed=seed, fold=fold, name=f"{base.name}-{arm.replace('+', '-')}{part}-{seed}")


defaults = partial(compared_defaults, Train, Compare)  # the defaults of a verb's options

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/detection.py", __doc__ or "", verbs, defaults)
