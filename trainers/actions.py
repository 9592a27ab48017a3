"""Classify actions in video clips, one action a clip: two-stream networks, C3D, I3D, CNN + LSTM, torchvision's video models.

python -m datasets.pack_videos ucf101 UCF-101 s3://bucket/ucf101         and once more with --stream flow
python trainers/actions.py --data s3://bucket/ucf101 --name rgb --cluster.workers 8
python trainers/actions.py --name rgb --resume                       continue a run
python trainers/actions.py evaluate --name rgb --fuse flow           two streams: their summed logits
python trainers/actions.py predict --name rgb --videos some.mp4 a_folder
python trainers/actions.py export --name rgb --to rgb.onnx
python trainers/actions.py compare --data RGB --flow FLOW --seeds 0 1       all arms in one table
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
from datasets.loading.clips import ClipSet, ClipStream
from datasets.splits import evaluation_split
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.inputs import video_files
from trainers.engine.job import resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import METRICS, Run
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnData, OnRun, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.video.action_model import Actions, ActionsTask
from trainers.tasks.video.config import ActionsConfig
from trainers.tasks.video.data import checksum_of, evaluation_clips, joints_of, joints_of_state, open_action_set
from trainers.tasks.video.evaluation import Floats, align_logits, evaluate_actions, figures_of_actions
from trainers.tasks.video.predict import TrainedOnClips, predict_actions
from trainers.tasks.video.report import confused_classes, print_comparison, print_figures, write_report


@dataclass(frozen=True)
class Train(ActionsConfig):
    """Train a model of single actions on a set of clips; write checkpoints, evaluate, write a report."""

    def run(self) -> None:
        """Check settings and data, train on the cluster (or here), and write the run's report."""
        config = resolved(self, "actions")
        clips, run = config.check(), start_run(config)
        connect(config.cluster)
        count = len(clips.clips_of("train"))
        print(f"run {config.name}: {config.model.name}, {clips.stream}, {count:,} clips, {len(clips.class_names)} classes")
        with claimed(config.cluster, config.name, config.runs, config.resume_from) as folder, shown(run, config) as show:
            launch(train_worker, {"config": to_json(config)}, config.cluster, folder, show)
        if figures := run.read_json(METRICS).get("after"):
            print_figures(config.name, figures)
        write_report(run, confused_classes(run, clips.class_names))


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Run the training loop of one worker; `cluster.launch` starts it on every worker, and again after a failure."""
    config = from_json(Train, settings["config"], "the driver")
    clips = open_action_set(config.data)
    torch.manual_seed(config.seed)
    joints = joints_of(clips)
    model = Actions(config.model, len(clips.class_names), config.clip, clips.stream, joints)
    task = ActionsTask(model, config.smoothing, config.mixup).to(worker.device)
    run = TrainingRun(config, worker, checksum_of(clips), score="top1")
    run.start(task, build_optimiser(config.optim, task), ema=config.optim.ema, keep=task.model)
    if run.fresh:
        evaluate(run, clips)
    chosen = clips.clips_of("train")
    stream = ClipStream(
        clips, chosen, config.clip, config.batch, config.loader, config.cache, RankSlice(worker.rank, worker.world), config.seed,
        run.log.step, config.steps, augment=config.augment,
    )  # fmt: skip
    for step in run.steps(stream, config.optim, samples=len(chosen)):
        if run.record_due(step):
            run.record(step)
        if run.evaluate_due(step):
            evaluate(run, clips)
        if run.checkpoint_due(step):
            run.save()
    if run.evaluation_missing:
        evaluate(run, clips)
    about = {name: clips.index.about[name] for name in ("rate", "side")} | {"joints": list(joints or ())}
    run.finish({"model": run.kept.state_dict(), "classes": list(clips.class_names), "stream": clips.stream, **about})


def evaluate(run: TrainingRun, clips: ClipSet) -> None:
    """Record the metrics of the test clips, if the set has any; every rank evaluates its slice."""
    if evaluation_split(clips.index.splits) is not None:
        config, chosen = run.config, evaluation_clips(clips)
        logits, bad = evaluate_actions(run.kept, clips, chosen, config.clip, config.cache, **run.for_evaluation(run.kept))
        figures, confused = figures_of_actions(logits, clips, chosen)
        run.evaluated(figures, bad, f"top 1 {figures['top1']:.1%}", confusion=confused)


def open_trained(verb: OnRun) -> TrainedOnClips[Actions]:
    """The trained model of the run that a command names."""
    opened = open_run(Train, verb)
    config, state = opened.config, opened.state
    joints = joints_of_state(state)
    model = Actions(config.model, len(state["classes"]), config.clip, state["stream"], joints, fetch=False)
    return TrainedOnClips(opened, opened.loaded(model))


def logits_of(trained: TrainedOnClips[Actions], data: str, workers: int) -> tuple[Floats, ClipSet, Any]:
    """Logits of a set's test clips, the set, and the clips' numbers; raises InputError when the set has other classes."""
    config, clips = trained.opened.config, open_action_set(data or trained.opened.config.data)
    if not trained.fits(clips):
        what = f"the set has {len(clips.class_names)} classes of {clips.stream}, the run has others"
        raise InputError(what, clips.index.url, "evaluate on a set of the same classes and stream")
    chosen, device = evaluation_clips(clips), trained.opened.device
    logits, bad = evaluate_actions(trained.model, clips, chosen, config.clip, config.cache, device, workers=workers)
    print_unread(bad)
    return logits, clips, chosen


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnData):
    """Evaluate a trained run on the test clips of its set or of another; alone, or fused with a run on the other stream."""

    fuse: str = ""
    """Another run, such as one on flow; it is evaluated on its own set, and the logits are summed."""

    def run(self) -> None:
        """Evaluate in this process, without the cluster."""
        trained = open_trained(self)
        logits, clips, chosen = logits_of(trained, self.data, self.workers)
        title = f"{self.name} on {clips.index.url}"
        if self.fuse:
            other, others, theirs = logits_of(open_trained(replace(self, name=self.fuse)), "", self.workers)
            logits, title = logits + align_logits(other, others, theirs, clips, chosen), f"{self.name} + {self.fuse}"
        figures, _ = figures_of_actions(logits, clips, chosen)
        print_figures(title, figures)
        trained.opened.run.note_evaluation(self.fuse or clips.index.url, figures)


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Predict the action in video files, or npz files of frames."""

    videos: tuple[str, ...]
    """Files and folders of files, local or in S3."""

    def run(self) -> None:
        """Print a line of JSON for each file; write the lines to the run's prediction.jsonl, and a picture of the first files."""
        trained = open_trained(self)
        trained.refuse_skeletons("use a model of RGB or flow; `evaluate` takes packed sets")
        with video_files(self.videos) as files:
            predict_actions(trained, files)


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the model of a trained run, as ONNX or torch.export, and check that its output is the same."""

    def run(self) -> None:
        """Write the file: input uint8 clips [B, 3, L, H, W], output logits [B, C]."""
        write, trained = exporter(self.to, "logits"), open_trained(self)
        trained.refuse_skeletons("export a model of images")
        clip = trained.opened.config.clip
        what = f"clips of {clip.frames} frames of {clip.size[0]}x{clip.size[1]}, {trained.stream}"
        export(write, trained.model, (clip.frames, *clip.size), self.to, what, {"classes": trained.classes})


Arm = Literal[
    "c3d", "c3d_lstm", "i3d-rgb", "i3d-flow", "two-stream", "cnn2d-rgb", "cnn2d-flow", "two-stream-2d", "cnn_lstm", "skeleton_cnn"
]
FUSED: dict[str, tuple[str, str]] = {"two-stream": ("i3d-rgb", "i3d-flow"), "two-stream-2d": ("cnn2d-rgb", "cnn2d-flow")}


@dataclass(frozen=True)
class Compare:
    """Train several arms and seeds with the same settings (data: the RGB set), print one table; finished runs are only read.

    The arms two-stream and two-stream-2d add the logits of two runs, one on RGB and one on flow.
    """

    sets: ClassVar = ("model.name",)
    first: ClassVar = ("arms", "seeds", "jobs")
    train: Train = field(default_factory=Train, metadata=FLAT)
    flow: str = ""
    """The set of the same videos packed as flow, for arms on flow."""
    arms: tuple[Arm, ...] = get_args(Arm)[:-1]
    """skeleton_cnn and cnn_lstm are for skeletons, all but skeleton_cnn for RGB and flow."""
    seeds: tuple[int, ...] = (0, 1)
    jobs: int = 1
    """Runs that are trained at once."""

    def run(self) -> None:
        """Train the missing runs; print the table, and write it as JSON into the runs' folder."""
        if not self.flow and (on_flow := [arm for arm in self.arms if arm.endswith("-flow") or arm in FUSED]):
            raise InputError(f"the arms {', '.join(on_flow)} need --flow", "compare", "pack the source with --stream flow")
        compare(
            self.train, self.arms, self.seeds, self._configs, print_comparison, jobs=self.jobs, connect=connect,
            curves={"top1": "top 1", "mean_class": "mean class accuracy"}, more=self._fused,
            remedy="pack with --test, or --held-out above 0", flow=self.flow,
        )  # fmt: skip

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        """The runs to train; an arm of two streams combines two of them."""
        wanted = dict.fromkeys(run for arm in self.arms for run in FUSED.get(arm, (arm,)))
        for arm in wanted:
            name, _, stream = arm.partition("-")
            data, model = self.flow if stream == "flow" else base.data, replace(base.model, name=name)
            yield arm, replace(base, data=data, model=model, seed=seed, name=f"{base.name}-{arm}-{seed}")

    def _fused(self, base: Train, seed: int) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for arm in self.arms:
            if arm in FUSED:
                rgb, flow = (f"{base.name}-{part}-{seed}" for part in FUSED[arm])
                run = Run(base.runs, rgb)
                if flow not in run.read_json(METRICS).get("evaluations", {}):
                    Evaluate(name=rgb, runs=base.runs, fuse=flow, workers=base.loader.workers).run()
                found[arm] = run.read_json(METRICS)["evaluations"][flow]
        return found


defaults = partial(compared_defaults, Train, Compare)  # the defaults of a verb's options

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/actions.py", __doc__ or "", verbs, defaults)
