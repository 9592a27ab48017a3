"""Ordered actions in a video, learned without frame labels: features of each frame, an RNN, CTC; recognised online.

python -m datasets.pack_videos video_csv VIDEOS s3://bucket/set       a csv: file, labels in order ("pour;stir;drink")
python trainers/sequences.py --data s3://bucket/set --name cook --cluster.workers 8
python trainers/sequences.py --name cook --resume                go on with a run
python trainers/sequences.py evaluate --name cook
python trainers/sequences.py predict --name cook --videos some.mp4 a_folder
python trainers/sequences.py predict --name cook --stream 0      a camera, a video file or its address, a folder of frames
python trainers/sequences.py export --name cook --to cook.onnx
python trainers/sequences.py compare --data ... --seeds 0 1          CTC against frame-wise training, in one table
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import tyro

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.launch import ClusterConfig, connect, launch
from cluster.worker import Worker, restore_checkpoint, save_checkpoint, this_worker
from datasets.cache import CacheConfig
from datasets.clips import ClipConfig, ClipSet, ClipStream, Reader, View, open_clips, seen
from datasets.errors import InputError, printable
from datasets.index import Int64s, check_shards
from datasets.loader import BadSamples, LoaderConfig, Share, behind_workers
from datasets.pack_videos import frames_of_file
from datasets.splits import evaluation_split
from datasets.store import read_samples
from datasets.strips import STRIP, Frames, frames_of_strip
from datasets.tally import Tally
from datasets.video import frames_of_path, shrunk
from trainers.engine.cli import run_job
from trainers.engine.clip_pictures import Film, film_of, timeline
from trainers.engine.clip_report import print_comparison, print_figures, write_report
from trainers.engine.clips import Told, checksum_of, evaluate_sequences, evaluation_clips, feasible_clips, figures_of_sequences
from trainers.engine.config import ALLOWED, HARMLESS, from_json, to_json
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
from trainers.engine.online import Recogniser, recognise
from trainers.engine.ranks import spread
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.metrics.ctc_decoding import Floats, greedy, prefix_beam
from trainers.models.sequence import FromClips, LossKind, SequenceModel, SequenceModelConfig, SequenceTask
from trainers.models.users import try_users

SHOWN = 4  # test clips whose timeline stands in the report


@dataclass(frozen=True)
class Train(JobConfig):
    """Train a model of action sequences on a set of clips: checkpoint, evaluate, report."""

    data: str = ""
    """A set made by `python -m datasets.pack_videos`: a folder or s3://bucket/prefix."""
    batch: int = 8
    """Videos of a global batch, over all workers; each is taken as a whole."""
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(size=(64, 64)))
    """stride, size, margin and flip; a sequence is never cut in time."""
    loss: LossKind = "ctc"
    """ctc; or as baselines cross-entropy of each frame, by the set's frame labels (frames) or by even parts of a video (even)."""
    flat_start: float = 0.2
    """Share of the steps, at the start, that ctc leaves to even parts: alone, it tells nothing for long."""
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
            raise InputError(f"a share of {self.flat_start} of the steps", "--flat-start", "give 0 or more, and less than 1")

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
        chosen = training_clips(clips, self)
        if self.loss == "frames" and not all(len(clips.frame_actions()[clip]) for clip in chosen.tolist()):
            raise InputError("the set has no frame labels", clips.index.url, "train by --loss ctc, or --loss even")
        if clips.stream != "skeletons":
            model = partial(SequenceModel, self.model, len(clips.class_names))
            try_users(self.model.backbone, model, torch.zeros(1, 2, *self.clip.size, 3))
        return clips

    def run(self) -> None:
        """Check, train on the cluster, write the report."""
        config = settled(resolved(replace(self, data=absolute(self.data) if self.data else ""), "sequences"))
        clips = config.check()
        run = start_run(config)
        connect(config.cluster)
        chosen = training_clips(clips, config)
        left_out = len(clips.clips_of("train")) - len(chosen)
        print(f"run {config.name}: {config.loss}, {len(chosen):,} videos ({left_out} left out), {len(clips.class_names)} actions")
        with shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, name=config.name, runs=config.runs, show=show)
        metrics, history = run.read_json(METRICS), run.read_json(HISTORY)
        pictures = []
        if "after" in metrics:
            print_figures(config.name, metrics["after"])
            pictures = list(timelines(open_trained(config.runs, config.name), clips))
        write_report(run, to_json(config), metrics, history, pictures)
        print(f"report: {run.url}/report.html")


def training_clips(clips: ClipSet, config: Train) -> Int64s:
    """The clips to train on; raises InputError for those that are too short, unless they are to be left out."""
    return feasible_clips(clips, clips.clips_of("train"), config.clip.stride, skip=config.infeasible == "skip")


def joints_of(clips: ClipSet) -> tuple[int, int] | None:
    """J, D of a set of skeletons, None for pictures; raises InputError when the first frame cannot be read."""
    if clips.stream != "skeletons":
        return None
    (data,) = read_samples(clips.index, clips.first[:1])
    try:
        if isinstance(data, ValueError):
            raise data
        frames = frames_of_strip(data, min(STRIP, int(clips.frames[0])))
    except ValueError as error:
        what = f"{clips.name(0)}: {error}"
        raise InputError("the first clip cannot be read", what, "check the set with `python -m datasets.inspect`") from error
    return int(frames.shape[1]), int(frames.shape[2])


class Job(NamedTuple):
    """What a worker has at hand."""

    config: Train
    worker: Worker
    clips: ClipSet
    task: SequenceTask
    journal: Journal
    joints: tuple[int, int] | None


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run: what Ray Train starts on every GPU, and starts again when one dies."""
    config = from_json(Train, settings["config"], "the driver")
    worker, run, clips = this_worker(settings), Run(config.runs, config.name), open_clips(config.data)
    joints = joints_of(clips)
    torch.manual_seed(config.seed)
    task = SequenceTask(SequenceModel(config.model, len(clips.class_names), joints), config.loss, worker.group).to(worker.device)
    optimiser = build_optimiser(config.optim, task)
    stored = restore_checkpoint(read_checkpoint)
    if stored and stored["data"] != checksum_of(clips):
        raise InputError("the data was changed since the run began", config.data, "start a new run, or put the old set back")
    if stored:
        task.load_state_dict(stored["task"])
        optimiser.load_state_dict(stored["optimiser"])
    job = Job(config, worker, clips, task, Journal(**stored["journal"]) if stored else Journal(), joints)
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
    chosen, last = training_clips(clips, config), config.optim.steps
    stream = ClipStream(
        clips, chosen, config.clip, config.batch, config.loader, config.cache, Share(worker.rank, worker.world), config.seed,
        journal.step, last, whole=True, frame_targets=clips.frame_actions() if config.loss == "frames" else (),
    )  # fmt: skip
    batches = behind_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")
    bad, meter, tally = BadSamples(config.loader.bad_share, len(chosen)), Meter(worker.group), Tally(config.loader.workers)
    job.task.kind = config.loss_at(journal.step)
    for step in steps(model, optimiser, config.optim, batches, worker.device, config.seed, worker.rank):
        job.task.kind = config.loss_at(step.done)
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
            figures = {"step": journal.step, "score": -journal.evaluations[-1]["edit"]} if journal.evaluations else {}
            write = partial(write_checkpoint, job.task, optimiser, journal, data=checksum_of(clips))
            save_checkpoint(worker, f"step-{step.done:08d}", write, figures)


def evaluate(job: Job) -> None:
    """Note the figures of the test videos, where there are any; all ranks evaluate their share."""
    config, worker, clips = job.config, job.worker, job.clips
    if evaluation_split(clips.index.splits) is None:
        return
    share_buffers(job.task, worker.group)
    chosen = evaluation_clips(clips)
    told, bad = evaluate_sequences(
        job.task.model, clips, chosen, config.clip, config.cache, worker.device, config.beam_width,
        Share(worker.rank, worker.world), worker.group, config.loader.workers,
    )  # fmt: skip
    for failure in bad:
        worker.say(f"could not be read and was left out of the evaluation: {failure}")
    figures = figures_of(told, clips, chosen)
    job.journal.evaluations.append({"step": job.journal.step, **figures})
    if worker.rank == 0:
        worker.say(f"step {job.journal.step}: edit distance {figures['edit']:.1%}")


def figures_of(told: list[Told], clips: ClipSet, chosen: Int64s) -> dict[str, float]:
    """The figures of those videos that could be read; raises InputError when none could."""
    if not told:
        raise InputError("no test video can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    return figures_of_sequences(told, clips, chosen)


def write_results(job: Job, run: Run) -> None:
    """Rank 0's last act: the model, the figures and what the report is made of go into the run's folder."""
    journal, about = job.journal, job.clips.index.about
    kept = {"stream": job.clips.stream, "rate": about["rate"], "side": about["side"], "joints": list(job.joints or ())}
    run.write_model({"model": job.task.model.state_dict(), "classes": list(job.clips.class_names), **kept})
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
    model: SequenceModel
    device: torch.device
    class_names: tuple[str, ...]
    stream: Literal["rgb", "flow", "skeletons"]
    rate: float
    side: int

    def log_probs(self, frames: Frames) -> Floats:
        """Of a whole video's frames, as stored: [T, ...] -> [T / stride, C + 1]."""
        shown = seen(frames[:: self.config.clip.stride], self.config.clip, View(), self.stream)
        with torch.no_grad():
            table: Floats = self.model(torch.from_numpy(shown.copy())[None].to(self.device))[0].cpu().numpy()
        return table

    def times(self, count: int) -> npt.NDArray[np.float64]:
        """When the frames that the model sees come, in seconds."""
        return np.arange(count) * self.config.clip.stride / self.rate


def open_trained(runs: str, name: str) -> Trained:
    """The model of a run, on the GPU if there is one."""
    run = Run(absolute(runs), name)
    config, state = stored_config(Train, run), run.read_model()
    joints = (int(state["joints"][0]), int(state["joints"][1])) if state["joints"] else None
    model = SequenceModel(replace(config.model, weights=""), len(state["classes"]), joints)
    model.load_state_dict(state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kept = (tuple(state["classes"]), state["stream"], state["rate"], state["side"])
    return Trained(run, config, model.to(device).eval(), device, *kept)


def timelines(trained: Trained, clips: ClipSet) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Pictures of the first test clips that can be read, for a report."""
    reader = Reader(clips, trained.config.cache)
    for clip in evaluation_clips(clips)[:SHOWN].tolist():
        frames = reader.request(clip, np.arange(clips.frames[clip]))()
        if not isinstance(frames, ValueError):
            log_probs = trained.log_probs(frames)
            times = trained.times(len(log_probs))
            told = [(trained.class_names[event.action], float(times[event.frame])) for event in greedy(log_probs)]
            true = [clips.class_names[action] for action in clips.actions[clip]]
            film = film_of(list(frames)) if trained.stream == "rgb" else []
            draw = partial(timeline, log_probs, times, told, trained.class_names, film, true)
            yield f"Test clip {clips.index.identities[clip]}", "Told greedily.", draw(), draw(dark=True)
    reader.close()


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run on the test videos of its set, or of another."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    data: str = ""
    """Another set than the run's own."""
    workers: int = 1
    """Loader processes."""

    def run(self) -> None:
        """Evaluate here, without the cluster."""
        trained = open_trained(self.runs, self.name)
        config, clips = trained.config, open_clips(self.data or trained.config.data)
        if clips.class_names != trained.class_names or clips.stream != trained.stream:
            what = f"the set has {len(clips.class_names)} actions in {clips.stream}, and the run others"
            raise InputError(what, clips.index.url, "evaluate on a set of the same actions and stream")
        chosen = evaluation_clips(clips)
        told, bad = evaluate_sequences(
            trained.model, clips, chosen, config.clip, config.cache, trained.device, config.beam_width, workers=self.workers
        )
        for failure in bad:
            print(f"could not be read and was left out: {failure}")
        figures = figures_of(told, clips, chosen)
        print_figures(f"{self.name} on {clips.index.url}", figures)
        trained.run.note_evaluation(clips.index.url, figures)


@dataclass(frozen=True)
class Predict:
    """Tell the actions in videos, or online in a stream of frames."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    videos: tuple[Path, ...] = ()
    """Video files, npz files of frames, and folders of them."""
    stream: str = ""
    """A camera's number, a video file or its address, or a folder of frames; needs a causal model of RGB."""
    chunk: int = 8
    """Frames of the stream that are recognised at once: fewer tell sooner, more take less computing."""
    threshold: float = 0.0
    """Probability above which an action of the stream is told."""

    def run(self) -> None:
        """Only JSON on stdout: a line for each video, or for each action of the stream as it is recognised; a picture of the
        timeline, for the last video."""
        if bool(self.videos) == bool(self.stream) or self.chunk < 1 or not 0 <= self.threshold < 1:
            what = "predict takes either --videos or --stream, --chunk of at least 1, --threshold from 0 to below 1"
            raise InputError(what, "", "see `predict --help`")
        trained = open_trained(self.runs, self.name)
        if trained.stream == "skeletons" or (self.stream and trained.stream != "rgb"):
            raise InputError(
                f"the model is one of {trained.stream}", trained.run.url, "use one of RGB; `evaluate` takes packed sets"
            )
        lines = list(self._online(trained) if self.stream else self._offline(trained))
        trained.run.write_text("prediction.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"lines and picture: {trained.run.url}/prediction.jsonl, prediction.png", file=sys.stderr)

    def _offline(self, trained: Trained) -> Iterator[str]:
        for path in video_files(self.videos):
            frames = frames_of_file(path, trained.rate, trained.side, trained.stream)
            log_probs = trained.log_probs(frames)
            times = trained.times(len(log_probs))
            told = [(trained.class_names[event.action], round(float(times[event.frame]), 3)) for event in greedy(log_probs)]
            line = {"video": printable(str(path)), "actions": [a for a, _ in told], "times": [t for _, t in told]}
            if trained.config.beam_width:
                best, _ = prefix_beam(log_probs, trained.config.beam_width)[0]
                line["beam"] = [trained.class_names[action] for action in best]
            print(json.dumps(line))
            film = film_of(list(frames)) if trained.stream == "rgb" else []
            trained.run.objects.put("prediction.png", timeline(log_probs, times, told, trained.class_names, film))
            yield json.dumps(line)

    def _online(self, trained: Trained) -> Iterator[str]:
        recogniser = Recogniser(trained.model, trained.device, self.threshold)
        source = frames_of_path(self.stream, trained.rate)
        began, tables, lines, film = time.perf_counter(), list[Floats](), list[dict[str, Any]](), Film()
        for chunk in recognise(source, recogniser, trained.config.clip, trained.rate, self.chunk, trained.class_names):
            tables.append(chunk.log_probs)
            for image in chunk.images:
                film.add(image)
            for line in chunk.lines:
                lines.append(line)
                print(json.dumps(line), flush=True)
                yield json.dumps(line)
        took = time.perf_counter() - began
        log_probs: Floats = np.concatenate(tables)
        delays = sorted(line["delay"] for line in lines)
        median = f"{delays[len(delays) // 2] * 1000:.1f} ms" if delays else "–"
        speed = f"{len(log_probs):,} frames, {len(log_probs) / took:,.0f} frames/s"
        print(f"{speed}, {len(lines)} actions, median delay {median}", file=sys.stderr)
        told = [(line["action"], line["time"]) for line in lines]
        times = trained.times(len(log_probs))
        shown = film_of([shrunk(image, trained.side) for image in film.images])
        trained.run.objects.put("prediction.png", timeline(log_probs, times, told, trained.class_names, shown))


@dataclass(frozen=True)
class Export:
    """Export the model of a trained run for videos of a fixed length: ONNX or torch.export, checked for equal output."""

    name: str
    """The run."""
    to: Path
    """The file: *.onnx or *.pt2."""
    runs: str = ""
    """Where runs are kept, as in training."""
    frames: int = 64
    """T, the length of the videos."""

    def run(self) -> None:
        """Write the file; it takes uint8 RGB videos [B, 3, T, H, W] and gives log-probabilities [B, T, C + 1], 0 the blank."""
        if self.frames < 1:
            raise InputError(f"no video is {self.frames} frames long", "--frames", "give at least 1")
        export, trained = exporter(self.to, "log_probs"), open_trained(self.runs, self.name)
        if trained.stream == "skeletons":
            raise InputError("the model is one of skeletons", trained.run.url, "export one of pictures")
        size = trained.config.clip.size
        difference = export(FromClips(trained.model.cpu()), (self.frames, *size))
        print(f"exported {self.to}: {self.frames} frames of {size[0]}x{size[1]}, greatest difference {difference:.1e}")
        print(f"outputs: blank, {', '.join(trained.class_names)}")


Arm = Literal["ctc", "ctc-cold", "ctc-both-ways", "frames", "even"]


@dataclass(frozen=True)
class Compare:
    """Train arms over seeds with the same settings, and print one table; runs that have ended are read, not trained again."""

    train: Annotated[Train, tyro.conf.arg(name="")] = field(default_factory=Train)
    arms: tuple[Arm, ...] = get_args(Arm)
    seeds: tuple[int, ...] = (0, 1)

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
                    raise InputError("no test videos to compare by", run.url, "pack with --test, or --held-out above 0")
                figures.setdefault(arm, []).append(metrics["after"])
        print_comparison(base.name, figures)
        Run(base.runs, base.name).write_json(
            "comparison.json", {"seeds": self.seeds, "settings": asdict(base), "figures": figures}
        )

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for arm in self.arms:
            loss: LossKind = arm if arm == "frames" or arm == "even" else "ctc"
            model = replace(base.model, causal=arm != "ctc-both-ways")
            flat_start = base.flat_start if arm in ("ctc", "ctc-both-ways") else 0.0
            yield arm, replace(base, loss=loss, flat_start=flat_start, model=model, seed=seed, name=f"{base.name}-{arm}-{seed}")


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/sequences.py", __doc__ or "", verbs, defaults)
