"""Face attributes from one model: trained in stages, with a part that decouples what is coupled.

python trainers/attributes.py --data s3://bucket/celeba s3://bucket/utkface --name faces --cluster.workers 8
python trainers/attributes.py --name faces --resume             go on with a run
python trainers/attributes.py evaluate --name faces
python trainers/attributes.py predict --name faces --images someone.jpg a_folder
python trainers/attributes.py predict --name faces --stream 0   a webcam, a video file or its address
python trainers/attributes.py export --name faces --to faces.onnx
python trainers/attributes.py compare --data ... --seeds 0 1 2  the four arms, in one table
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

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
from trainers.engine.config import HARMLESS, from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.face_report import held_out_faces, print_comparison, print_figures, tell_faces, write_report
from trainers.engine.faces import (
    FaceSet,
    MixConfig,
    Part,
    can_evaluate,
    checksum_of,
    evaluate_faces,
    labelled_columns,
    mixed_parts,
    mixed_stream,
    open_sets,
    with_targets,
)
from trainers.engine.frames import frames_of_files, frames_of_stream
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
from trainers.engine.loop import Meter, OptimiserConfig, allreduce_s, build_optimiser, share_buffers, steps
from trainers.engine.ranks import spread
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.engine.stages import StageConfig, StageLog
from trainers.losses.attributes import TASKS, Weights
from trainers.models.attributes import BACKBONE, Attributes, AttributesTask, FaceModelConfig
from trainers.models.users import try_users

Arm = Literal["single", "joint", "staged", "staged+decoupler"]
INDEPENDENT = ("keypoints", "gender", "glasses", "mask", "smile")
COUPLED = ("age", "quality", "attractiveness")
BATCH = 32  # images of files told at once
DECOUPLED_FROM = 2  # the stage, of 0, 1, 2, that begins with the decoupling part


@dataclass(frozen=True)
class Stage(StageConfig):
    """A stage of the curriculum."""

    tasks: tuple[str, ...] = ()
    """What it trains: tasks without a label in the data are left out."""
    freeze: tuple[str, ...] = ()
    """What is not trained: "backbone", or the heads of tasks."""
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown task."""
        super().__post_init__()
        if unknown := [name for name in (*self.tasks, *self.freeze) if name not in TASKS and name != BACKBONE]:
            raise InputError(f"unknown task {', '.join(unknown)}", "stage", f"there are: {', '.join(TASKS)}")

    def task_weights(self) -> dict[str, float]:
        """What this stage trains, and the weight of each task's loss."""
        return {task: float(getattr(self.weights, task)) for task in self.tasks}

    @property
    def learned(self) -> tuple[str, ...]:
        """The tasks whose labels it learns from: those with a weight above 0."""
        return tuple(task for task, weight in self.task_weights().items() if weight)


@dataclass(frozen=True)
class Train(JobConfig):
    """Train a model in stages: mix the sets, checkpoint, evaluate, report."""

    data: tuple[str, ...] = ()
    """Shard sets with labels: folders or s3://bucket/prefix."""
    arm: Arm = "staged+decoupler"
    """single: a model for each task; joint: one model, all tasks from the start; staged; and with the decoupling part."""
    batch: int = 64
    """Samples of a global batch, over all sets and workers."""
    mix: MixConfig = field(default_factory=MixConfig)
    loader: LoaderConfig = field(default_factory=lambda: LoaderConfig(size=(64, 64)))
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(turn=30.0))
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    make_roll: bool = True
    """Take images without a roll for upright, so that augment.turn makes roll labels."""
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
        self.cluster.check_shares(self.mix.unit, "mix.unit")
        if self.batch < 1:
            raise InputError(f"a batch of {self.batch}", "--batch", "give at least 1")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that the arm goes through; without a curriculum all tasks have all the steps."""
        stages: tuple[Stage, ...] = (self.stage1, self.stage2, self.stage3)
        if self.arm in ("single", "joint"):
            least, most = sum(stage.least for stage in stages), sum(stage.most for stage in stages)
            stages = (replace(self.stage3, least=least, most=most, lr=self.stage1.lr),)
        return stages

    @property
    def steps(self) -> int:
        """The most steps that the run takes."""
        return sum(stage.most for stage in self.stages)

    @property
    def size(self) -> tuple[int, int]:
        """H, W trained at."""
        assert self.loader.size is not None
        return self.loader.size

    @property
    def rolls_made(self) -> bool:
        """Whether turned images have a roll."""
        return self.make_roll and self.augment.turn > 0

    def check(self) -> tuple[FaceSet, ...]:
        """Open the data, and check all that can be checked before anything starts; raises InputError."""
        sets = open_sets(self.data)
        for face_set in sets:
            check_shards(face_set.index)
        trained_tasks(self, sets)
        for stage in self.stages:
            self.parts(sets, stage)
        try_users(self.model.backbone, lambda: self._model(trained_tasks(self, sets)), torch.zeros(2, 3, *self.size))
        return sets

    def _model(self, tasks: tuple[str, ...]) -> Attributes:
        """The model as it is at the run's end."""
        model = Attributes(self.model, tasks, single=self.arm == "single")
        if self.arm == "staged+decoupler":
            model.insert_decoupler()
        return model

    def parts(self, sets: tuple[FaceSet, ...], stage: Stage) -> list[Part]:
        """What each set gives to the batches of a stage; raises InputError."""
        return mixed_parts(sets, self.mix, self.batch, stage.learned, make_roll=self.rolls_made)

    def run(self) -> None:
        """Check, train on the cluster, write the report."""
        config = settled(resolved(replace(self, data=tuple(absolute(url) for url in self.data)), "attributes"))
        sets = config.check()
        run = start_run(config)
        connect(config.cluster)
        count, tasks = sum(len(face_set.train) for face_set in sets), trained_tasks(config, sets)
        print(f"run {config.name}: {config.arm}, {count:,} images of {len(sets)} sets, tasks: {', '.join(tasks)}")
        with shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, name=config.name, runs=config.runs, show=show)
        metrics, history = run.read_json(METRICS), run.read_json(HISTORY)
        if "after" in metrics:
            print_figures(config.name, metrics["after"])
        trained = open_trained(config.runs, config.name)
        faces = held_out_faces(trained.model, sets, trained.size, trained.device, trained.columns)
        write_report(run, to_json(config), metrics, history, faces)
        print(f"report: {run.url}/report.html")


def trained_tasks(config: Train, sets: tuple[FaceSet, ...]) -> tuple[str, ...]:
    """The tasks of all stages of which there is a label, in the order of `TASKS`.

    Raises:
        InputError: a stage has none.
    """
    columns = set(labelled_columns(sets, make_roll=config.rolls_made))
    there = [name for name, task in TASKS.items() if columns & set(task.columns)]
    for number, stage in enumerate(config.stages, 1):
        if not set(stage.learned) & set(there):
            what = f"stage {number} has no labelled sample in the data: it trains {', '.join(stage.learned) or 'no task'}"
            raise InputError(what, ", ".join(config.data), f"labels are there of: {', '.join(there) or 'none'}")
    return tuple(task for task in there if any(task in stage.tasks for stage in config.stages))


class Job(NamedTuple):
    """What a worker has at hand in every stage."""

    config: Train
    worker: Worker
    sets: tuple[FaceSet, ...]
    task: AttributesTask
    journal: Journal
    log: StageLog


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run: what Ray Train starts on every GPU, and starts again when one dies."""
    config = from_json(Train, settings["config"], "the driver")
    worker, run, sets = this_worker(settings), Run(config.runs, config.name), open_sets(config.data)
    torch.manual_seed(config.seed)
    model = Attributes(config.model, trained_tasks(config, sets), single=config.arm == "single")
    task = AttributesTask(model, worker.group)
    task = task.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's images are
    stored = restore_checkpoint(read_checkpoint)
    if stored and stored["data"] != checksum_of(sets):
        remedy = "start a new run, or put the old sets back"
        raise InputError("the data was changed since the run began", ", ".join(config.data), remedy)
    journal = Journal(**stored["journal"]) if stored else Journal()
    job = Job(config, worker, sets, task, journal, StageLog(journal.notes, worker.group))
    restored = job.log.now
    if restored < 0:
        evaluate(job)
    for number, stage in enumerate(config.stages):
        if config.arm == "staged+decoupler" and number == DECOUPLED_FROM:
            torch.manual_seed(config.seed + number)
            model.insert_decoupler()
        if number < restored:
            continue
        task.enter(stage.task_weights(), stage.freeze)
        optimiser = build_optimiser(stage.optim(config.optim), task)
        if stored and number == restored:
            task.load_state_dict(stored["task"])
            optimiser.load_state_dict(stored["optimiser"])
            job.log.cut(stage)
        else:
            job.log.enter(journal.step)
        if not job.log.over:
            train_stage(job, stage, optimiser)
    if journal.evaluations and journal.evaluations[-1]["step"] < journal.step:  # resumed with fewer steps than it had
        evaluate(job)
    if worker.rank == 0:
        write_results(job, run)


def train_stage(job: Job, stage: Stage, optimiser: torch.optim.Optimizer) -> None:
    """Train one stage from where the journal stands to its end."""
    config, worker, journal, log = job.config, job.worker, job.journal, job.log
    model = spread(job.task, worker.group, sync_batch_norm=bool(config.optim.sync_batch_norm))
    parts = config.parts(job.sets, stage)
    stream = mixed_stream(
        parts, config.loader, config.augment, config.cache, Share(worker.rank, worker.world), (config.seed, log.now),
        log.first, journal.step, log.first + stage.most,
    )  # fmt: skip
    batches = behind_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")
    labelled = with_targets(batches, parts, job.task.model.columns, config.size, make_roll=config.rolls_made)
    bad = BadSamples(config.loader.bad_share, sum(len(part.faces.train) for part in parts))
    meter, tally, optim = Meter(worker.group), Tally(config.loader.workers), stage.optim(config.optim)
    for step in steps(model, optimiser, optim, labelled, worker.device, config.seed, worker.rank, log.first):
        journal.note(step)
        meter.add(step)
        tally.note(step.batch)
        over = log.add(step.results["loss"], stage)
        for failure in bad.note(step.batch):
            worker.say(f"could not be read and was replaced: {failure}")
        if step.done % config.record_every == 0 or over:
            more = {"lr": optim.lr_at(step.done - 1 - log.first), "stage": log.now + 1, "allreduce_s": allreduce_s(model)}
            entry = journal.record(meter.read(config.batch) | more, config.steps, config.batch)
            worker.record(entry, tally.counts)
        if (config.evaluate_every and step.done % config.evaluate_every == 0) or over:
            evaluate(job)
        if step.done % config.checkpoint_every == 0 or over:
            log.settle()
            figures = {"step": journal.step, "score": journal.evaluations[-1]["score"]} if journal.evaluations else {}
            write = partial(write_checkpoint, job.task, optimiser, journal, data=checksum_of(job.sets))
            save_checkpoint(worker, f"step-{step.done:08d}", write, figures)
        if over:
            break
    batches.close()  # ends the loader's processes: of a stage that ended early they hold batches that nobody wants
    if worker.rank == 0:
        worker.say(f"stage {log.now + 1} ended at step {journal.step}: {log.entries[-1]['ended']}")


def evaluate(job: Job) -> None:
    """Note the figures of the held-out images, where there are any; all ranks evaluate their share."""
    config, worker = job.config, job.worker
    if not can_evaluate(job.sets):
        return
    share_buffers(job.task, worker.group)
    result = evaluate_faces(
        job.task.model, job.sets, config.size, config.cache, worker.device, config.augment.turn if config.rolls_made else 0.0,
        Share(worker.rank, worker.world), worker.group, config.loader.workers,
    )  # fmt: skip
    for failure in result.bad:
        worker.say(f"could not be read and was left out of the evaluation: {failure}")
    job.journal.evaluations.append({"step": job.journal.step, **result.figures})
    if worker.rank == 0:
        worker.say(f"step {job.journal.step}: score {result.figures['score']:.3f}")


def write_results(job: Job, run: Run) -> None:
    """Rank 0's last act: the model, the figures and what the report is made of go into the run's folder."""
    model, journal, config = job.task.model, job.journal, job.config
    decoupled = any(net.decoupler is not None for net in model.nets.values())
    trained = [name for name in model.columns if name in labelled_columns(job.sets, make_roll=config.rolls_made)]
    shape = {
        "tasks": list(model.tasks),
        "trained": trained,
        "single": config.arm == "single",
        "decoupled": decoupled,
        "size": list(config.size),
    }
    run.write_model({"model": model.state_dict(), **shape})
    run.write_json(HISTORY, journal.state())
    evaluations = {"before": journal.evaluations[0], "after": journal.evaluations[-1]} if journal.evaluations else {}
    run.write_json(METRICS, {
        "step": journal.step, "loss": journal.records[-1]["loss"] if journal.records else None,
        **evaluations, "stages": job.log.entries,
        "weights_crc32c": crc32c_of(job.task), "draws_crc32c": journal.draws, "seconds": journal.seconds,
    })  # fmt: skip


class Trained(NamedTuple):
    """A run's trained model."""

    run: Run
    config: Train
    model: Attributes
    size: tuple[int, int]
    device: torch.device
    columns: list[str]  # that had labels


def open_trained(runs: str, name: str) -> Trained:
    """The model of a run, on the GPU if there is one."""
    run = Run(absolute(runs), name)
    config, state = stored_config(Train, run), run.read_model()
    model = Attributes(replace(config.model, weights=""), state["tasks"], single=state["single"])
    if state["decoupled"]:
        model.insert_decoupler()
    model.load_state_dict(state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = state["size"]
    return Trained(run, config, model.to(device).eval(), (height, width), device, state["trained"])


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run on the held-out images of its sets, or of others."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    data: tuple[str, ...] = ()
    """Other shard sets than the run's own."""
    workers: int = 1
    """Loader processes."""

    def run(self) -> None:
        """Evaluate here, without the cluster."""
        trained = open_trained(self.runs, self.name)
        config, sets = trained.config, open_sets(self.data or trained.config.data)
        turn = config.augment.turn if config.rolls_made else 0.0
        result = evaluate_faces(trained.model, sets, trained.size, config.cache, trained.device, turn, workers=self.workers)
        for failure in result.bad:
            print(f"could not be read and was left out: {failure}")
        print_figures(f"{self.name} on {', '.join(s.index.url for s in sets)}", result.figures)
        trained.run.note_evaluation(" ".join(s.index.url for s in sets), result.figures)


@dataclass(frozen=True)
class Predict:
    """Tell the attributes of images, of those in folders, or of a stream of frames, each by one pass through the model."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    images: tuple[Path, ...] = ()
    """Images, and folders of images."""
    stream: str = ""
    """A camera's number, a video file, or the address of a video stream."""
    frames: int = 0
    """Frames of the stream after which to end; 0: at its end."""

    def run(self) -> None:
        """A line of JSON for each image, here and in the run's prediction.jsonl; a picture of the first ones."""
        if bool(self.images) == bool(self.stream) or self.frames < 0:
            raise InputError("predict takes either --images or --stream, and --frames of at least 0", "", "see `predict --help`")
        trained = open_trained(self.runs, self.name)
        source = frames_of_files(self.images) if self.images else frames_of_stream(self.stream, self.frames)
        at_once = BATCH if self.images else 1  # a frame of a camera is told before the next one comes
        tell_faces(trained.run, trained.model, source, trained.size, trained.device, trained.columns, at_once)


@dataclass(frozen=True)
class Export:
    """Export the model of a trained run: ONNX or torch.export, checked for equal output."""

    name: str
    """The run."""
    to: Path
    """The file: *.onnx or *.pt2."""
    runs: str = ""
    """Where runs are kept, as in training."""

    def run(self) -> None:
        """Write the file; it takes uint8 RGB images [B, 3, H, W] and gives labels [B, C]."""
        export, trained = exporter(self.to, "labels"), open_trained(self.runs, self.name)
        difference = export(trained.model.cpu(), trained.size)
        print(f"exported {self.to}: images of {trained.size[0]}x{trained.size[1]}, greatest difference {difference:.1e}")
        print(f"columns: {', '.join(trained.model.columns)}")
        if untrained := [column for column in trained.model.columns if column not in trained.columns]:
            print(f"never trained, for want of labels: {', '.join(untrained)}")


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
        for seed in self.seeds:
            for arm, config in self._configs(base, seed):
                run = ended_run(config)
                metrics = run.read_json(METRICS)
                if "after" not in metrics:
                    raise InputError("nothing was held out to compare by", run.url, "pack with --held-out above 0")
                figures.setdefault(arm, []).append(metrics["after"])
        print_comparison(base.name, figures)
        compared = Run(base.runs, base.name)
        compared.write_json("comparison.json", {"seeds": self.seeds, "settings": asdict(base), "figures": figures})
        print(f"figures of all runs: {compared.url}/comparison.json")

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for arm in self.arms:
            yield arm, replace(base, arm=arm, seed=seed, name=f"{base.name}-{arm.replace('+', '-')}-{seed}")


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/attributes.py", __doc__ or "", verbs, defaults)
