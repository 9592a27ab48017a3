"""Actions in video clips, one a clip: C3D, I3D (RGB, flow, both), CNN + LSTM, and torchvision's video models.

python -m datasets.pack_videos ucf101 UCF-101 s3://bucket/ucf101         and once more with --stream flow
python trainers/actions.py --data s3://bucket/ucf101 --name rgb --cluster.workers 8
python trainers/actions.py --name rgb --resume                       go on with a run
python trainers/actions.py evaluate --name rgb --fuse flow           two streams: their summed logits
python trainers/actions.py predict --name rgb --videos some.mp4 a_folder
python trainers/actions.py export --name rgb --to rgb.onnx
python trainers/actions.py compare --data RGB --flow FLOW --seeds 0 1       all arms in one table
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import tyro

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.launch import ClusterConfig, connect, launch
from cluster.worker import Worker, restore_checkpoint, save_checkpoint, this_worker
from datasets.cache import CacheConfig
from datasets.clips import ClipConfig, ClipSet, ClipStream, cuts_of_views, open_clips
from datasets.decode import Image
from datasets.errors import InputError, printable
from datasets.index import check_shards
from datasets.loader import BadSamples, LoaderConfig, Share, behind_workers
from datasets.pack_videos import frames_of_file
from datasets.splits import evaluation_split
from datasets.tally import Tally
from trainers.engine.cli import run_job
from trainers.engine.clip_pictures import confusion_picture, film_of, films_picture
from trainers.engine.clip_report import print_comparison, print_figures, write_report
from trainers.engine.clips import Floats, checksum_of, evaluate_actions, evaluation_clips
from trainers.engine.config import HARMLESS, from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.frames import video_files
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
from trainers.engine.loop import Meter, OptimConfig, allreduce_s, build_optimiser, share_buffers, steps
from trainers.engine.ranks import spread
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.metrics.actions import TOP, clip_figures, confusion
from trainers.models.actions import ActionModelConfig, Actions, ActionsTask, check_clips

SHOWN = 12  # videos in the picture of a prediction


@dataclass(frozen=True)
class Train(JobConfig):
    """Train a model of single actions on a set of clips: checkpoint, evaluate, report."""

    data: str = ""
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

    def run(self) -> None:
        """Check, train on the cluster, write the report."""
        config = settled(resolved(replace(self, data=absolute(self.data) if self.data else ""), "actions"))
        clips = config.check()
        run = start_run(config)
        connect(config.cluster)
        count = len(clips.clips_of("train"))
        print(f"run {config.name}: {config.model.name}, {clips.stream}, {count:,} clips, {len(clips.class_names)} classes")
        with shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, name=config.name, runs=config.runs, show=show)
        metrics, history = run.read_json(METRICS), run.read_json(HISTORY)
        pictures = []
        if "after" in metrics:
            print_figures(config.name, metrics["after"])
            confused = [
                confusion_picture(np.array(history["notes"]["confusion"]), clips.class_names, dark) for dark in (False, True)
            ]
            pictures = [("Which classes are mixed up", "Each row's shares of test clips.", confused[0], confused[1])]
        write_report(run, to_json(config), metrics, history, pictures)
        print(f"report: {run.url}/report.html")


def open_single(url: str) -> ClipSet:
    """A set of pictures or flow in which each clip has one action.

    Raises:
        InputError: it holds skeletons, sequences, or clips of fewer than two classes.
    """
    clips = open_clips(url)
    if clips.stream == "skeletons":
        raise InputError("the set holds skeletons", clips.index.url, "train on it by trainers/sequences.py")
    several = [clip for clip, actions in enumerate(clips.actions) if len(actions) != 1]
    if several:
        what = f"{len(several)} clips have several actions"
        raise InputError(what, clips.name(several[0]), "train on sequences by trainers/sequences.py")
    if len(clips.class_names) < 2:
        raise InputError("fewer than two classes", clips.index.url, "there is nothing to tell apart: are the labels right?")
    clips.clips_of("train")
    return clips


class Job(NamedTuple):
    """What a worker has at hand."""

    config: Train
    worker: Worker
    clips: ClipSet
    task: ActionsTask
    journal: Journal


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run: what Ray Train starts on every GPU, and starts again when one dies."""
    config = from_json(Train, settings["config"], "the driver")
    worker, run, clips = this_worker(settings), Run(config.runs, config.name), open_single(config.data)
    torch.manual_seed(config.seed)
    task = ActionsTask(Actions(config.model, len(clips.class_names), config.clip, clips.stream)).to(worker.device)
    optimiser = build_optimiser(config.optim, task)
    stored = restore_checkpoint(read_checkpoint)
    if stored and stored["data"] != checksum_of(clips):
        raise InputError("the data was changed since the run began", config.data, "start a new run, or put the old set back")
    if stored:
        task.load_state_dict(stored["task"])
        optimiser.load_state_dict(stored["optimiser"])
    job = Job(config, worker, clips, task, Journal(**stored["journal"]) if stored else Journal())
    if not stored:
        evaluate(job)
    if job.journal.step < config.optim.steps:
        train(job, optimiser)
    if worker.rank == 0:
        write_results(job, run)


def train(job: Job, optimiser: torch.optim.Optimizer) -> None:
    """Train from where the journal stands to the last step."""
    config, worker, clips, journal = job.config, job.worker, job.clips, job.journal
    model = spread(job.task, worker.group, sync_batch_norm=bool(config.optim.sync_batch_norm))
    chosen, last = clips.clips_of("train"), config.optim.steps
    stream = ClipStream(
        clips, chosen, config.clip, config.batch, config.loader, config.cache, Share(worker.rank, worker.world), config.seed,
        journal.step, last,
    )  # fmt: skip
    batches = behind_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")
    bad, meter, tally = BadSamples(config.loader.bad_share, len(chosen)), Meter(worker.group), Tally(config.loader.workers)
    for step in steps(model, optimiser, config.optim, batches, worker.device, config.seed, worker.rank):
        journal.note(step)
        meter.add(step)
        tally.note(step.batch)
        for failure in bad.note(step.batch):
            worker.say(f"could not be read and was replaced: {failure}")
        if step.done % config.record_every == 0 or step.done == last:
            more = {"lr": config.optim.lr_at(step.done - 1), "allreduce_s": allreduce_s(model)}
            worker.record(journal.record(meter.read(config.batch) | more, last, config.batch), tally.counts)
        if (config.evaluate_every and step.done % config.evaluate_every == 0) or step.done == last:
            evaluate(job)
        if step.done % config.checkpoint_every == 0 or step.done == last:
            figures = {"step": journal.step, "score": journal.evaluations[-1]["top1"]} if journal.evaluations else {}
            write = partial(write_checkpoint, job.task, optimiser, journal, data=checksum_of(clips))
            save_checkpoint(worker, f"step-{step.done:08d}", write, figures)


def evaluate(job: Job) -> None:
    """Note the figures of the test clips, where there are any; all ranks evaluate their share."""
    config, worker, clips = job.config, job.worker, job.clips
    if evaluation_split(clips.index.splits) is None:
        return
    share_buffers(job.task, worker.group)
    chosen = evaluation_clips(clips)
    logits, bad = evaluate_actions(
        job.task.model, clips, chosen, config.clip, config.cache, worker.device, Share(worker.rank, worker.world), worker.group,
        config.loader.workers,
    )  # fmt: skip
    for failure in bad:
        worker.say(f"could not be read and was left out of the evaluation: {failure}")
    figures, confused = figures_of(logits, clips, chosen)
    job.journal.evaluations.append({"step": job.journal.step, **figures})
    job.journal.notes["confusion"] = confused
    if worker.rank == 0:
        worker.say(f"step {job.journal.step}: top 1 {figures['top1']:.1%}")


def figures_of(logits: Floats, clips: ClipSet, chosen: np.ndarray) -> tuple[dict[str, float], list[list[int]]]:
    """The figures and the confusion matrix of those clips that could be read.

    Raises:
        InputError: none could.
    """
    read = ~np.isnan(logits[:, 0])
    if not read.any():
        raise InputError("no test clip can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    labels = np.array([clips.actions[clip][0] for clip in chosen[read]], np.int64)
    return clip_figures(logits[read], labels), confusion(logits[read], labels).tolist()


def write_results(job: Job, run: Run) -> None:
    """Rank 0's last act: the model, the figures and what the report is made of go into the run's folder."""
    journal, about = job.journal, job.clips.index.about
    kept = {"classes": list(job.clips.class_names), "stream": job.clips.stream, "rate": about["rate"], "side": about["side"]}
    run.write_model({"model": job.task.model.state_dict(), **kept})
    run.write_json(HISTORY, journal.state())
    evaluations = {"before": journal.evaluations[0], "after": journal.evaluations[-1]} if journal.evaluations else {}
    run.write_json(METRICS, {
        "step": journal.step, "loss": journal.records[-1]["loss"], **evaluations,
        "weights_crc32c": crc32c_of(job.task), "draws_crc32c": journal.draws, "seconds": journal.seconds,
    })  # fmt: skip


class Trained(NamedTuple):
    """A run's trained model, and of the set that it was trained on: classes, stream, frames a second, frames' shorter side."""

    run: Run
    config: Train
    model: Actions
    device: torch.device
    class_names: tuple[str, ...]
    stream: Literal["rgb", "flow"]
    rate: float
    side: int


def open_trained(runs: str, name: str) -> Trained:
    """The model of a run, on the GPU if there is one."""
    run = Run(absolute(runs), name)
    config, state = stored_config(Train, run), run.read_model()
    model = Actions(config.model, len(state["classes"]), config.clip, state["stream"], fetch=False)
    model.load_state_dict(state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kept = (tuple(state["classes"]), state["stream"], state["rate"], state["side"])
    return Trained(run, config, model.to(device).eval(), device, *kept)


def logits_of(trained: Trained, data: str, workers: int) -> tuple[Floats, ClipSet, np.ndarray]:
    """Logits of a set's test clips; raises InputError when its classes are not the run's."""
    clips = open_single(data or trained.config.data)
    if clips.class_names != trained.class_names or clips.stream != trained.stream:
        what = f"the set has {len(clips.class_names)} classes of {clips.stream}, and the run others"
        raise InputError(what, clips.index.url, "evaluate on a set of the same classes and stream")
    chosen = evaluation_clips(clips)
    config = trained.config
    logits, bad = evaluate_actions(trained.model, clips, chosen, config.clip, config.cache, trained.device, workers=workers)
    for failure in bad:
        print(f"could not be read and was left out: {failure}")
    return logits, clips, chosen


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run on the test clips of its set, or of another; alone, or fused with a run on the other stream."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    data: str = ""
    """Another set than the run's own."""
    fuse: str = ""
    """Another run, on its own set, such as one of flow: the logits are summed."""
    workers: int = 1
    """Loader processes."""

    def run(self) -> None:
        """Evaluate here, without the cluster."""
        trained = open_trained(self.runs, self.name)
        logits, clips, chosen = logits_of(trained, self.data, self.workers)
        title = f"{self.name} on {clips.index.url}"
        if self.fuse:
            other, others, theirs = logits_of(open_trained(self.runs, self.fuse), "", self.workers)
            logits = logits + matched(other, others, theirs, clips, chosen)
            title = f"{self.name} + {self.fuse}"
        figures, _ = figures_of(logits, clips, chosen)
        print_figures(title, figures)
        trained.run.note_evaluation(self.fuse or clips.index.url, figures)


def matched(other: Floats, others: ClipSet, theirs: np.ndarray, clips: ClipSet, chosen: np.ndarray) -> Floats:
    """The other stream's logits in the order of these clips; one that is too short for flow has zeros there.

    Raises:
        InputError: the sets are not of the same clips.
    """
    place = {others.index.identities[clip]: row for row, clip in enumerate(theirs.tolist())}
    names = [clips.index.identities[clip] for clip in chosen.tolist()]
    if clips.class_names != others.class_names or not set(place) <= set(names):
        what = "the two runs were trained on sets of other clips or classes"
        raise InputError(what, f"{clips.index.url} and {others.index.url}", "pack both from one source with the same options")
    return np.stack([other[place[name]] if name in place else np.zeros_like(other[0]) for name in names])


@dataclass(frozen=True)
class Predict:
    """Tell the action in video files, or npz files of frames."""

    name: str
    """The run."""
    videos: tuple[Path, ...]
    """Files, and folders of them."""
    runs: str = ""
    """Where runs are kept, as in training."""

    def run(self) -> None:
        """A line of JSON for each file, here and in the run's prediction.jsonl; a picture of the first ones."""
        trained = open_trained(self.runs, self.name)
        lines, films = [], list[tuple[list[Image], str]]()
        for path in video_files(self.videos):
            frames = frames_of_file(path, trained.rate, trained.side, trained.stream)
            views = torch.from_numpy(cuts_of_views(frames, trained.config.clip, trained.stream)).permute(0, 4, 1, 2, 3)
            with torch.no_grad():
                p = trained.model(views.to(trained.device)).float().mean(dim=0).softmax(dim=0).cpu()
            best = p.topk(min(TOP, len(p)))
            told = {trained.class_names[c]: round(float(v), 4) for v, c in zip(best.values, best.indices.tolist(), strict=True)}
            lines.append(json.dumps({"video": printable(str(path)), "action": next(iter(told)), "probabilities": told}))
            print(lines[-1])
            if len(films) < SHOWN:
                title = ", ".join(f"{action} {share:.0%}" for action, share in told.items())
                films.append((film_of(list(frames)), f"{printable(path.name)}: {title}"))
        trained.run.objects.put("prediction.png", films_picture(films))
        trained.run.write_text("prediction.jsonl", "".join(f"{line}\n" for line in lines))


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
        """Write the file; it takes uint8 clips [B, 3, L, H, W] and gives logits [B, C]."""
        export, trained = exporter(self.to, "logits"), open_trained(self.runs, self.name)
        clip = trained.config.clip
        difference = export(trained.model.cpu(), (clip.frames, *clip.size))
        shape = f"{clip.frames} frames of {clip.size[0]}x{clip.size[1]}, {trained.stream}"
        print(f"exported {self.to}: clips of {shape}, greatest difference {difference:.1e}")
        print(f"classes: {', '.join(trained.class_names)}")


Arm = Literal["c3d", "i3d-rgb", "i3d-flow", "two-stream", "cnn_lstm"]


@dataclass(frozen=True)
class Compare:
    """Train arms over seeds with the same settings (data: the RGB set), and print one table; what has ended is only read."""

    train: Annotated[Train, tyro.conf.arg(name="")] = field(default_factory=Train)
    flow: str = ""
    """The flow set of the same source, for i3d-flow and two-stream."""
    arms: tuple[Arm, ...] = get_args(Arm)
    seeds: tuple[int, ...] = (0, 1)

    def run(self) -> None:
        """Train what is not there yet; the table goes to the console and, as JSON, into the runs' folder."""
        if not self.arms or len(self.seeds) < 2:
            raise InputError("a comparison needs an arm and two seeds or more", "compare", "give --arms and --seeds")
        if not self.flow and {"i3d-flow", "two-stream"} & set(self.arms):
            raise InputError("the arms i3d-flow and two-stream need --flow", "compare", "pack the source with --stream flow")
        base = resolved(self.train, "compare")
        figures: dict[str, list[dict[str, float]]] = {arm: [] for arm in self.arms}
        for seed in self.seeds:
            for arm, config in self._configs(base, seed):
                run = ended_run(config)
                if arm in figures:
                    figures[arm].append(_compared(run.read_json(METRICS).get("after"), run))
            if "two-stream" in figures:
                figures["two-stream"].append(self._two_stream(base, seed))
        print_comparison(base.name, figures)
        Run(base.runs, base.name).write_json(
            "comparison.json", {"seeds": self.seeds, "settings": asdict(base), "flow": self.flow, "figures": figures}
        )

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        """What is to be trained: the two-stream arm is made of two others."""
        wanted = set(self.arms) | ({"i3d-rgb", "i3d-flow"} if "two-stream" in self.arms else set())
        for arm in ("c3d", "i3d-rgb", "i3d-flow", "cnn_lstm"):
            if arm in wanted:
                model = replace(base.model, name=arm.partition("-")[0])
                data = self.flow if arm == "i3d-flow" else base.data
                yield arm, replace(base, data=data, model=model, seed=seed, name=f"{base.name}-{arm}-{seed}")

    def _two_stream(self, base: Train, seed: int) -> dict[str, float]:
        rgb, flow = f"{base.name}-i3d-rgb-{seed}", f"{base.name}-i3d-flow-{seed}"
        run = Run(base.runs, rgb)
        if flow not in run.read_json(METRICS).get("evaluations", {}):
            Evaluate(rgb, base.runs, fuse=flow, workers=base.loader.workers).run()
        return _compared(run.read_json(METRICS)["evaluations"][flow], run)


def _compared(figures: dict[str, float] | None, run: Run) -> dict[str, float]:
    if figures is None:
        raise InputError("no test clips to compare by", run.url, "pack with --test, or --held-out above 0")
    return figures


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/actions.py", __doc__ or "", verbs, defaults)
