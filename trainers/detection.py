"""Detection across domains: boxes of a source teach a detector that is to work on a target, by region alignment and its rivals.

python trainers/detection.py --source s3://bucket/bccd --target s3://bucket/cells --classes RBC WBC --name cells --arm align+aug
python trainers/detection.py --name cells --resume              go on with a run
python trainers/detection.py evaluate --name cells
python trainers/detection.py predict --name cells --images smear.png a_folder
python trainers/detection.py export --name cells --to cells.onnx
python trainers/detection.py compare --source ... --target ... --seeds 0 1 2     all arms, in one table
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import torch
import tyro

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.launch import ClusterConfig, connect, launch
from cluster.worker import Worker, restore_checkpoint, save_checkpoint, this_worker
from datasets.augment import AugmentConfig
from datasets.cache import CacheConfig
from datasets.errors import InputError
from datasets.index import check_shards
from datasets.loader import BadSamples, LoaderConfig, Share, behind_workers
from datasets.tally import Tally
from trainers.engine.cli import run_job
from trainers.engine.config import ALLOWED, HARMLESS, allowed, from_json, to_json
from trainers.engine.detection_export import export_detector
from trainers.engine.detection_report import look_at, print_comparison, print_figures, tell_boxes, write_report
from trainers.engine.domains import (
    BoxSet,
    check_side,
    checksum_of,
    classes_of,
    domain_stream,
    evaluate_boxes,
    held_out,
    looked_at,
    open_box_set,
    with_boxes,
)
from trainers.engine.frames import frames_of_files
from trainers.engine.job import (
    JobConfig,
    absolute,
    compared_defaults,
    ended_run,
    resolved,
    settled,
    shown,
    start_run,
    stored_config,
)
from trainers.engine.journal import Journal, crc32c_of, read_checkpoint, write_checkpoint
from trainers.engine.loop import Meter, OptimConfig, allreduce_s, build_optimiser, steps
from trainers.engine.ranks import spread
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.models.adaptation import RECIPES, AlignConfig, Arm, DetectionTask, Recipe, TeacherConfig
from trainers.models.detection import Detector, DetectorConfig
from trainers.models.users import try_users


@dataclass(frozen=True)
class Train(JobConfig):
    """Train a detector by one of the arms: checkpoint, evaluate on the target, report."""

    source: str = ""
    """Shard set with boxes: a folder or s3://bucket/prefix."""
    target: str = ""
    """Shard set of the target; boxes of its training images are looked at by the arm oracle alone."""
    classes: tuple[str, ...] = ()
    """What is to be found; empty: all classes of the source."""
    arm: Arm = "align"
    """source: its boxes alone; +aug: with strong views and a moving mean of the weights; align: regions aligned (SCDA);
    mean-teacher: pseudo-labels by the moving mean; oracle: source+aug on the target's own boxes."""
    batch: int = 8
    """Images of each domain in a global batch, over all workers."""
    side: int = 512
    """Short side of the images in pixels; each set's images get the shape that most of them have."""
    begin: int = 0
    """Step from which the target takes part in the detector's loss; adversaries learn from the start."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Of all arms: mirror and shift."""
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-4), metadata=allowed("steps", "lr", "warmup")
    )
    adversary_lr: float = field(default=2e-4, metadata=ALLOWED)
    """Highest learning rate of generators, discriminators and the estimator."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side(self.side)
        if self.loader.size is not None:
            raise InputError("loader.size is set", "loader", "give --side: every set keeps its own shape")
        if self.augment.turn:
            raise InputError("augment.turn is set", "augment", "boxes cannot be turned: leave it at 0")
        self.cluster.check_shares(self.batch, "--batch")
        if self.begin < 0:
            raise InputError(f"the target is used from step {self.begin}", "--begin", "give a step of at least 0")
        if self.align.clusters > self.model.regions:
            raise InputError(f"{self.align.clusters} clusters of {self.model.regions} regions", "align", "lower --align.clusters")
        self.adversaries_optim()

    @property
    def recipe(self) -> Recipe:
        """What the arm consists of."""
        return RECIPES[self.arm]

    @property
    def steps(self) -> int:
        """The steps of the run."""
        return self.optim.steps

    def adversaries_optim(self) -> OptimConfig:
        """How the adversaries are trained."""
        return replace(self.optim, lr=self.adversary_lr)

    def open(self) -> "Domains":
        """Open the data; raises InputError for whatever is wrong with it."""
        target = open_box_set(self.target, self.side, "target")
        labelled = target if self.recipe.labels == "target" else open_box_set(self.source, self.side, "source")
        return Domains(labelled, target, classes_of(labelled, target, self.classes))

    def check(self) -> "Domains":
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        domains = self.open()
        for box_set in domains[:2] if self.recipe.both else domains[:1]:
            if self.batch > len(box_set.train):
                what = f"the batch of {self.batch} is larger than the data ({len(box_set.train)} training images)"
                raise InputError(what, box_set.index.url, "lower --batch")
        for box_set in domains[:2]:
            check_shards(box_set.index)
        detector, size = partial(Detector, self.model, len(domains.names)), domains.target.size
        try_users(self.model.backbone, detector, torch.zeros(2, 3, *size))
        return domains

    def run(self) -> None:
        """Check, train on the cluster, write the report."""
        source, target = (absolute(url) if url else "" for url in (self.source, self.target))
        config = settled(resolved(replace(self, source=source, target=target), "detection"))
        domains = config.check()
        run = start_run(config)
        connect(config.cluster)
        count, aim = len(domains.labelled.train), len(domains.target.train)
        print(f"run {config.name}: {config.arm}, {count:,} labelled images, {aim:,} of the target: {', '.join(domains.names)}")
        with shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, name=config.name, runs=config.runs, show=show)
        metrics, history = run.read_json(METRICS), run.read_json(HISTORY)
        if "after" in metrics:
            print_figures(config.name, metrics["after"])
        write_report(run, to_json(config), metrics, history, looked_at(domains.target))
        print(f"report: {run.url}/report.html")


class Domains(NamedTuple):
    """The opened sets, and the classes that are learned."""

    labelled: BoxSet
    target: BoxSet
    names: tuple[str, ...]  # not "classes": by that word cloudpickle would want to send torch.classes along, and cannot


class Job(NamedTuple):
    """What a worker has at hand."""

    config: Train
    worker: Worker
    domains: Domains
    task: DetectionTask
    journal: Journal


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run: what Ray Train starts on every GPU, and starts again when one dies."""
    config = from_json(Train, settings["config"], "the driver")
    worker, run, domains = this_worker(settings), Run(config.runs, config.name), config.open()
    torch.manual_seed(config.seed)
    task = DetectionTask(config.model, len(domains.names), config.recipe, config.align, config.teacher, worker.group)
    task = task.to(worker.device)
    optimiser = build_optimiser(config.optim, task.detector)
    others = [] if task.adversaries is None else [build_optimiser(config.adversaries_optim(), task.adversaries)]
    stored = restore_checkpoint(read_checkpoint)
    if stored:
        if stored["data"] != checksum_of(domains[:2]):
            remedy = "start a new run, or put the old sets back"
            raise InputError("the data was changed since the run began", f"{config.source} {config.target}", remedy)
        task.load_state_dict(stored["task"])
        for each, state in zip((optimiser, *others), (stored["optimiser"], *stored["others"]), strict=True):
            each.load_state_dict(state)
    job = Job(config, worker, domains, task, Journal(**stored["journal"]) if stored else Journal())
    if not stored:
        evaluate(job)
    train_steps(job, optimiser, others)
    if job.journal.evaluations and job.journal.evaluations[-1]["step"] < job.journal.step:  # resumed with fewer steps than it had
        evaluate(job)
    if worker.rank == 0:
        write_results(job, run)


def train_steps(job: Job, optimiser: torch.optim.Optimizer, others: list[torch.optim.Optimizer]) -> None:
    """Train from where the journal stands to the end."""
    config, worker, domains, journal = job.config, job.worker, job.domains, job.journal
    model = spread(job.task, worker.group, sync_batch_norm=bool(config.optim.sync_batch_norm))
    stream = domain_stream(
        domains.labelled, domains.target if config.recipe.both else None, config.batch, config.loader, config.augment,
        config.cache, Share(worker.rank, worker.world), config.seed, journal.step, config.steps,
    )  # fmt: skip
    batches = behind_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")
    labelled = with_boxes(batches, domains.labelled, domains.names, config.begin)
    beside = [(other, config.adversaries_optim()) for other in others]
    bad = BadSamples(config.loader.bad_share, len(domains.labelled.train) + len(domains.target.train))
    meter, tally = Meter(worker.group), Tally(config.loader.workers)
    for step in steps(model, optimiser, config.optim, labelled, worker.device, config.seed, worker.rank, beside=beside):
        job.task.follow(step.done)
        journal.note(step)
        meter.add(step)
        tally.note(step.batch)
        for failure in bad.note(step.batch):
            worker.say(f"could not be read and was replaced: {failure}")
        over = step.done == config.steps
        if step.done % config.record_every == 0 or over:
            more = {"lr": config.optim.lr_at(step.done - 1), "allreduce_s": allreduce_s(model)}
            worker.record(journal.record(meter.read(config.batch) | more, config.steps, config.batch), tally.counts)
        if (config.evaluate_every and step.done % config.evaluate_every == 0) or over:
            evaluate(job)
        if step.done % config.checkpoint_every == 0 or over:
            figures = {"step": journal.step, "score": journal.evaluations[-1]["score"]} if journal.evaluations else {}
            states = [other.state_dict() for other in others]
            write = partial(write_checkpoint, job.task, optimiser, journal, others=states, data=checksum_of(domains[:2]))
            save_checkpoint(worker, f"step-{step.done:08d}", write, figures)


def evaluate(job: Job) -> None:
    """Note what is seen on some of the target's images, and the figures of those held out, where there are any with boxes; all
    ranks evaluate their share."""
    config, worker, target, journal = job.config, job.worker, job.domains.target, job.journal
    seen = look_at(job.task, looked_at(target), target.size, job.domains.names, worker.device)
    journal.notes.setdefault("seen", []).append({"step": journal.step, "images": seen})
    if held_out(target) is None:
        return
    result = evaluate_boxes(
        job.task.kept, target, job.domains.names, config.cache, worker.device, Share(worker.rank, worker.world),
        worker.group, config.loader.workers,
    )  # fmt: skip
    for failure in result.bad:
        worker.say(f"could not be read and was left out of the evaluation: {failure}")
    journal.evaluations.append({"step": journal.step, **result.figures})
    if worker.rank == 0:
        worker.say(f"step {journal.step}: mAP50 {result.figures['mAP50']:.1%} on the target")


def write_results(job: Job, run: Run) -> None:
    """Rank 0's last act: the model, the figures and what the report is made of go into the run's folder."""
    journal, domains = job.journal, job.domains
    run.write_model({"model": job.task.kept.state_dict(), "classes": list(domains.names), "size": list(domains.target.size)})
    run.write_json(HISTORY, journal.state())
    evaluations = {"before": journal.evaluations[0], "after": journal.evaluations[-1]} if journal.evaluations else {}
    run.write_json(METRICS, {
        "step": journal.step, "loss": journal.records[-1]["loss"] if journal.records else None, **evaluations,
        "weights_crc32c": crc32c_of(job.task), "draws_crc32c": journal.draws, "seconds": journal.seconds,
    })  # fmt: skip


class Trained(NamedTuple):
    """A run's trained detector."""

    run: Run
    config: Train
    detector: Detector
    classes: tuple[str, ...]
    size: tuple[int, int]
    device: torch.device


def open_trained(runs: str, name: str) -> Trained:
    """The detector of a run, on the GPU if there is one."""
    run = Run(absolute(runs), name)
    config, state = stored_config(Train, run), run.read_model()
    detector = Detector(config.model, len(state["classes"]), fetch=False)
    detector.load_state_dict(state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = state["size"]
    return Trained(run, config, detector.to(device).eval(), tuple(state["classes"]), (height, width), device)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run on the held-out images of its target, or of another set."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    data: str = ""
    """Another shard set than the run's target."""
    workers: int = 1
    """Loader processes."""

    def run(self) -> None:
        """Evaluate here, without the cluster."""
        trained = open_trained(self.runs, self.name)
        box_set = open_box_set(absolute(self.data) if self.data else trained.config.target, trained.config.side, "data")
        if not set(trained.classes) <= set(box_set.classes):
            what = f"the run finds {', '.join(trained.classes)}"
            raise InputError(what, box_set.index.url, f"the set has: {', '.join(box_set.classes) or 'no classes'}")
        result = evaluate_boxes(
            trained.detector, box_set, trained.classes, trained.config.cache, trained.device, workers=self.workers
        )
        for failure in result.bad:
            print(f"could not be read and was left out: {failure}")
        print_figures(f"{self.name} on {box_set.index.url}", result.figures)
        trained.run.note_evaluation(box_set.index.url, result.figures)


@dataclass(frozen=True)
class Predict:
    """Find boxes on images and on those in folders: COCO's JSON and a picture of each, in the run's folder."""

    name: str
    """The run."""
    images: tuple[Path, ...]
    """Images, and folders of images."""
    runs: str = ""
    """Where runs are kept, as in training."""

    def run(self) -> None:
        """Tell a line for each image, and where the JSON is."""
        trained = open_trained(self.runs, self.name)
        source = frames_of_files(self.images)
        tell_boxes(trained.run, trained.detector, source, trained.config.side, trained.classes, trained.device)


@dataclass(frozen=True)
class Export:
    """Export the detector of a trained run as ONNX, checked for equal output."""

    name: str
    """The run."""
    to: Path
    """The file: *.onnx."""
    runs: str = ""
    """Where runs are kept, as in training."""

    def run(self) -> None:
        """Write the file; it takes one uint8 RGB image [1, 3, H, W] and gives boxes [n, 4], scores [n] and labels [n]."""
        if self.to.suffix != ".onnx":
            raise InputError("not a format to export to", str(self.to), "end it with .onnx")
        trained = open_trained(self.runs, self.name)
        difference = export_detector(trained.detector.cpu(), trained.size, self.to)
        print(f"exported {self.to}: images of {trained.size[0]}x{trained.size[1]}, greatest difference {difference:.1e}")
        print(f"labels: {', '.join(f'{number} {name}' for number, name in enumerate(trained.classes, 1))}")


@dataclass(frozen=True)
class Compare:
    """Train arms over seeds with the same settings, and print one table; runs that have ended are read, not trained again."""

    train: Annotated[Train, tyro.conf.arg(name="")] = field(default_factory=Train)
    arms: tuple[Arm, ...] = get_args(Arm)
    seeds: tuple[int, ...] = (0, 1, 2)

    def run(self) -> None:
        """Train what is not there yet; the table goes to the console and, as JSON, into the runs' folder."""
        if not self.arms or len(self.seeds) < 2:
            raise InputError("a comparison needs an arm and two seeds or more", "compare", "give --arms and --seeds")
        base = resolved(self.train, "compare")
        figures: dict[str, list[dict[str, float]]] = {}
        for arm, config in self._configs(base):
            run = ended_run(config)
            metrics = run.read_json(METRICS)
            if "after" not in metrics:
                raise InputError("nothing was held out to compare by", run.url, "pack the target with boxes and some held out")
            figures.setdefault(arm, []).append(metrics["after"])
        print_comparison(base.name, figures)
        Run(base.runs, base.name).write_json(
            "comparison.json", {"seeds": self.seeds, "settings": asdict(base), "figures": figures}
        )

    def _configs(self, base: Train) -> Iterator[tuple[str, Train]]:
        for seed in self.seeds:
            for arm in self.arms:
                yield arm, replace(base, arm=arm, seed=seed, name=f"{base.name}-{arm.replace('+', '-')}-{seed}")


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/detection.py", __doc__ or "", verbs, defaults)
