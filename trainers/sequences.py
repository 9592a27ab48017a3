"""Recognise the sequence of actions in a video, whole or online: frame features, an RNN, and CTC, without frame labels.

python -m datasets.pack_videos video_csv VIDEOS s3://bucket/set       a csv: file, labels in order ("pour;stir;drink")
python trainers/sequences.py --data s3://bucket/set --name cook --cluster.workers 8
python trainers/sequences.py --name cook --resume                continue a run
python trainers/sequences.py evaluate --name cook
python trainers/sequences.py predict --name cook --videos some.mp4 a_folder
python trainers/sequences.py predict --name cook --stream 0      a camera, a video file or its address, a folder of frames
python trainers/sequences.py export --name cook --to cook.onnx
python trainers/sequences.py compare --data ... --seeds 0 1          CTC against frame-wise training, in one table
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
from datasets.loading.clips import ClipSet, ClipStream, open_clips
from datasets.splits import evaluation_split
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.inputs import local_stream, video_files
from trainers.engine.job import resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import METRICS
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnData, OnRun, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.video.config import SequencesConfig
from trainers.tasks.video.data import checksum_of, evaluation_clips, joints_of, joints_of_state
from trainers.tasks.video.evaluation import choose_smoothing, evaluate_sequences, figures_of_sequences
from trainers.tasks.video.predict import TrainedOnClips, predict_files, predict_stream, save_predictions, timelines
from trainers.tasks.video.report import print_comparison, print_figures, write_report
from trainers.tasks.video.sequence_model import FromClips, LossKind, SequenceModel, SequenceTask
from trainers.tasks.video.smoothing import Smoothing


@dataclass(frozen=True)
class Train(SequencesConfig):
    """Train a model of action sequences on a set of clips; write checkpoints, evaluate, write a report."""

    def run(self) -> None:
        """Check settings and data, train on the cluster (or here), and write the run's report."""
        config = resolved(self, "sequences")
        clips, run = config.check(), start_run(config)
        connect(config.cluster)
        count = len(config.training_clips(clips))
        left_out = len(clips.clips_of("train")) - count
        print(f"run {config.name}: {config.loss}, {count:,} videos ({left_out} left out), {len(clips.class_names)} actions")
        with claimed(config.cluster, config.name, config.runs, config.resume_from) as folder, shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, folder, show)
        pictures = []
        if figures := run.read_json(METRICS).get("after"):
            print_figures(config.name, figures)
            pictures = list(timelines(open_trained(OnRun(name=config.name, runs=config.runs)), clips))
        write_report(run, pictures)


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Run the training loop of one worker; `cluster.launch` starts it on every worker, and again after a failure."""
    config = from_json(Train, settings["config"], "the driver")
    clips = open_clips(config.data)
    joints = joints_of(clips)
    torch.manual_seed(config.seed)
    model = SequenceModel(config.model, len(clips.class_names), joints, config.clip.size)
    task = SequenceTask(model, config.loss, worker.group).to(worker.device)
    run = TrainingRun(config, worker, checksum_of(clips), score="edit", sign=-1)
    run.start(task, build_optimiser(config.optim, task), ema=config.optim.ema, keep=task.model)
    if run.fresh:
        evaluate(run, clips)
    chosen = config.training_clips(clips)
    stream = ClipStream(
        clips, chosen, config.clip, config.batch, config.loader, config.cache, RankSlice(worker.rank, worker.world), config.seed,
        run.log.step, config.steps, whole=True, frame_targets=clips.frame_actions() if config.loss == "frames" else (),
        augment=config.augment,
    )  # fmt: skip
    task.kind = config.loss_at(run.log.step)
    for step in run.steps(stream, config.optim, samples=len(chosen)):
        task.kind = config.loss_at(step.done)
        if run.record_due(step):
            run.record(step)
        if run.evaluate_due(step):
            evaluate(run, clips)
        if run.checkpoint_due(step):
            run.save()
    if run.evaluation_missing:
        evaluate(run, clips)
    kept = {name: clips.index.about[name] for name in ("rate", "side")} | {"joints": list(joints or ())}
    kept["smoothing"] = list(smoothing_of(run, clips) or ())
    run.finish({"model": run.kept.state_dict(), "classes": list(clips.class_names), "stream": clips.stream, **kept})


def evaluate(run: TrainingRun, clips: ClipSet) -> None:
    """Record the metrics of the test videos, if the set has any; every rank evaluates its slice."""
    if evaluation_split(clips.index.splits) is not None:
        config, chosen = run.config, evaluation_clips(clips)
        where = run.for_evaluation(run.kept)
        smoothing = smoothing_of(run, clips)
        found, bad = evaluate_sequences(
            run.kept, clips, chosen, config.clip, config.cache, beam=config.beam_width, smoothing=smoothing, **where
        )
        figures = figures_of_sequences(found, clips, chosen)
        run.evaluated(figures, bad, f"edit distance {figures['edit']:.1%}")


def smoothing_of(run: TrainingRun, clips: ClipSet) -> Smoothing | None:
    """The smoothing of a frame-wise model's outputs, chosen on training videos; None for a model trained by CTC."""
    config = run.config
    if config.loss == "ctc":
        return None
    where = run.for_evaluation(run.kept)
    return choose_smoothing(run.kept, clips, config.training_clips(clips), config.clip, config.cache, **where)


def open_trained(verb: OnRun) -> TrainedOnClips[SequenceModel]:
    """The trained model of the run that a command names."""
    opened = open_run(Train, verb)
    state = opened.state
    joints = joints_of_state(state)
    config = opened.config
    model = SequenceModel(replace(config.model, weights=""), len(state["classes"]), joints, config.clip.size)
    return TrainedOnClips(opened, opened.loaded(model))


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnData):
    """Evaluate a trained run on the test videos of its set or of another."""

    def run(self) -> None:
        """Evaluate in this process, without the cluster."""
        trained = open_trained(self)
        config, run = trained.opened.config, trained.opened.run
        clips = open_clips(self.data or config.data)
        if not trained.fits(clips):
            what = f"the set has {len(clips.class_names)} actions in {clips.stream}, the run has others"
            raise InputError(what, clips.index.url, "evaluate on a set of the same actions and stream")
        chosen, device = evaluation_clips(clips), trained.opened.device
        stored = trained.opened.state.get("smoothing")  # runs of earlier versions have none
        smoothing = Smoothing(*stored) if stored else None
        found, bad = evaluate_sequences(
            trained.model, clips, chosen, config.clip, config.cache, device, config.beam_width, smoothing, workers=self.workers
        )
        print_unread(bad)
        figures = figures_of_sequences(found, clips, chosen)
        print_figures(f"{self.name} on {clips.index.url}", figures)
        run.note_evaluation(clips.index.url, figures)


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Predict the actions in videos, or recognise them online in a stream of frames."""

    videos: tuple[str, ...] = ()
    """Video files, npz files of frames, and folders of these, local or in S3."""
    stream: str = ""
    """A camera's number, a video file or its address (s3:// too), or a folder of frames; needs a causal model of RGB."""
    chunk: int = 8
    """Frames of the stream that are processed at once: fewer report sooner, more need less computing."""
    threshold: float = 0.0
    """Probability above which an action of the stream is reported."""

    def run(self) -> None:
        """Print only JSON to stdout: a line for each video, or for each action of the stream when it is recognised; draw the
        timeline of the stream or of the last video."""
        if bool(self.videos) == bool(self.stream) or self.chunk < 1 or not 0 <= self.threshold < 1:
            what = "predict takes either --videos or --stream, --chunk of at least 1, --threshold from 0 to below 1"
            raise InputError(what, "", "see `predict --help`")
        trained = open_trained(self)
        if trained.stream == "skeletons" or (self.stream and trained.stream != "rgb"):
            what, remedy = f"the model's input is {trained.stream}", "use a model of RGB; `evaluate` takes packed sets"
            raise InputError(what, trained.opened.run.url, remedy)
        if self.stream:
            with local_stream(self.stream) as source:
                save_predictions(trained, predict_stream(trained, source, self.chunk, self.threshold))
            return
        with video_files(self.videos) as files:
            save_predictions(trained, predict_files(trained, files))


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the model of a trained run for videos of one length as ONNX or torch.export; check that its output is the same."""

    frames: int = 64
    """T, the number of frames of a video."""

    def run(self) -> None:
        """Write the file: input uint8 RGB videos [B, 3, T, H, W], output log-probabilities [B, T, C + 1], 0 is the blank."""
        if self.frames < 1:
            raise InputError(f"frames is {self.frames}", "--frames", "give at least 1")
        write, trained = exporter(self.to, "log_probs"), open_trained(self)
        trained.refuse_skeletons("export a model of images")
        height, width = trained.opened.config.clip.size
        model, size = FromClips(trained.model.cpu()), (self.frames, height, width)
        what = f"{self.frames} frames of {height}x{width}"
        export(write, model, size, self.to, what, {"outputs": ("blank", *trained.classes)})


Arm = Literal["ctc", "ctc-cold", "ctc-both-ways", "frames", "even"]


@dataclass(frozen=True)
class Compare:
    """Train several arms and seeds with the same settings, and print one table; finished runs are read, not trained again."""

    sets: ClassVar = ("loss", "model.causal")
    first: ClassVar = ("arms", "seeds", "lookaheads", "jobs")
    train: Train = field(default_factory=Train, metadata=FLAT)
    arms: tuple[Arm, ...] = get_args(Arm)
    seeds: tuple[int, ...] = (0, 1)
    lookaheads: tuple[int, ...] = ()
    """Train each arm with each of these --model.lookahead, for a curve of delay and edit distance; none: with the one given."""
    jobs: int = 1
    """Runs that are trained at once."""

    def run(self) -> None:
        """Train the missing runs; print the table, and write it as JSON into the runs' folder."""
        remedy = "pack with --test, or --held-out above 0"
        names = [name for name, _, _ in self._wanted()]
        compare(
            self.train, names, self.seeds, self._configs, print_comparison,
            jobs=self.jobs, connect=connect, curves={"edit": "edit distance", "exact": "exact"}, remedy=remedy,
        )  # fmt: skip

    def _wanted(self) -> Iterator[tuple[str, Arm, int]]:
        """The name in the table, the arm and the look-ahead of each kind of run."""
        for arm in self.arms:
            if self.lookaheads:
                yield from ((f"{arm}-ahead-{frames}", arm, frames) for frames in self.lookaheads)
            else:
                yield arm, arm, 0 if arm == "ctc-both-ways" else self.train.model.lookahead

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for name, arm, frames in self._wanted():
            loss: LossKind = arm if arm == "frames" or arm == "even" else "ctc"
            model = replace(base.model, causal=arm != "ctc-both-ways", lookahead=frames)
            flat_start = base.flat_start if arm in ("ctc", "ctc-both-ways") else 0.0
            changes: dict[str, Any] = {"loss": loss, "flat_start": flat_start, "model": model, "seed": seed}
            yield name, replace(base, name=f"{base.name}-{name}-{seed}", **changes)


defaults = partial(compared_defaults, Train, Compare)  # the defaults of a verb's options

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/sequences.py", __doc__ or "", verbs, defaults)
