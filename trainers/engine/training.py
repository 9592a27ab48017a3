"""What surrounds the training loop on one worker: restore, count, record, checkpoint, finish. The loop itself is the job's:

run = TrainingRun(config, worker, checksum_of(data), score="mAP")
run.start(task, build_optimiser(config.optim, task))
for step in run.steps(stream, config.optim, samples=len(train)):
    if run.record_due(step):
        run.record(step)
    if run.evaluate_due(step):
        evaluate(run, data)
    if run.checkpoint_due(step):
        run.save()
run.finish({"model": task.state_dict()})
"""

import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import torch
from torch import nn

from datasets.errors import InputError
from datasets.loading.batches import Batch, RankSlice, Stream
from datasets.loading.stats import BadSamples, LoaderStats
from datasets.loading.workers import load_in_workers
from datasets.sampling.difficulty_table import DifficultyTable
from trainers.engine.checkpoint import crc32c_of, read_state, write_state
from trainers.engine.config import addresses, to_json
from trainers.engine.distributed import allreduce_s, broadcast_buffers, distribute
from trainers.engine.loop import Meter, Step, steps
from trainers.engine.optim import OptimConfig, moving_average
from trainers.engine.run import CONFIG, HISTORY, METRICS, Run
from trainers.engine.watch import watched
from trainers.engine.worker import Asked, Worker

STATE = "state.pt"
NAMED_FIRST_S = 10.0  # Ray notices a process that does not answer at all; it is named before those that wait for it


@dataclass
class TrainingLog:
    """What a run has done so far. It is part of the checkpoints, so that a resumed run has the records of the whole run."""

    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time that they took, restarts included."""
    draws: int = 0
    """crc32c over the positions in this rank's slices of all batches: equal for equal runs."""
    records: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """What a job keeps besides, for its report."""

    def __post_init__(self) -> None:
        self._began = time.perf_counter() - self.seconds

    def count(self, step: Step) -> None:
        """Count a step."""
        self.step, self.seconds = step.done, time.perf_counter() - self._began
        self.draws = google_crc32c.extend(self.draws, step.batch["positions"].numpy().tobytes())

    def record(self, means: Mapping[str, float], steps: int, batch: int) -> dict[str, float]:
        """Keep a record of the last steps' means; returns it with ``steps`` and ``eta_s`` (seconds left) for the live line."""
        entry = {"step": self.step, **means}
        self.records.append(entry)
        return {**entry, "steps": steps, "eta_s": (steps - self.step) * batch / means["samples_per_s"]}

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint or a JSON file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class OwnFiles(Protocol):
    """Files of a checkpoint that every rank writes and reads for itself, such as its rows of a sharded classifier."""

    def write(self, folder: Path) -> None:
        """Write this rank's."""

    def read(self, folder: Path, state: dict[str, Any]) -> dict[str, Any]:
        """The state that rank 0 wrote, with this rank's part put in."""

    def wanted(self, names: list[str]) -> Sequence[str]:
        """The names of those files of a checkpoint that this rank reads."""


class TrainingRun:
    """What surrounds the training loop of one run."""

    log: TrainingLog
    fresh: bool
    """Whether there was no checkpoint: the run starts at step 0."""
    kept: Any
    """The module that is evaluated and stored at the end; see `start`."""
    stored: dict[str, Any]
    """The state in the checkpoint that the run continues from; empty for a fresh run."""

    def __init__(
        self, config: Any, worker: Worker, data: int, files: OwnFiles | None = None, *, score: str = "", sign: int = 1,
        made_of: str = "",
    ) -> None:  # fmt: skip
        """Read the run's newest whole checkpoint, if any. ``data``: a checksum of the data set; a resumed run must find the same.
        ``score``: the figure of an evaluation by which a sweep compares runs; ``sign`` -1: smaller is better. ``made_of``: the
        figures that it is the mean of, as a pattern such as ``*.skill``; empty: it is a figure of its own.

        Raises:
            InputError: the data were changed.
            Exception: with ``exit_code`` 2: there are checkpoints, and none of them is whole.
        """
        self.config, self.worker, self.data, self.files = config, worker, data, files
        self.stored = worker.restore(self._read, files.wanted if files else None) or {}
        if self.stored and self.stored["data"] != data:
            where = ", ".join(addresses(config))
            raise InputError("the data were changed since the run began", where, "start a new run, or put the old data back")
        self.fresh, self.log = not self.stored, TrainingLog(**self.stored.get("journal", {}))
        if self.stored and worker.rank == 0:
            worker.say(f"continues from the checkpoint of step {self.log.step:,}")
        self._asked: Asked = ""
        self._over, self._score_by = False, (score, sign, made_of or score)

    def _read(self, folder: Path) -> dict[str, Any]:
        state = read_state(folder / STATE)
        return self.files.read(folder, state) if self.files else state

    def start(
        self, task: nn.Module, *optimisers: torch.optim.Optimizer, restore: bool = True, alone: Sequence[str] = (),
        ema: float = 0.0, keep: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Train this task with these optimisers from now on, distributed over the ranks. Call it before `steps`.

        ``restore``: load weights and optimiser states from the checkpoint, if there is one. ``alone``: names of parameters that
        this rank alone holds. ``keep``: the part of the task that is evaluated and stored at the end (None: the task), which is
        `kept` from now on; with ``ema`` above 0 that is a copy with the moving average of the weights, of this decay.
        """
        kept = task if keep is None else keep
        self._average = moving_average(kept, ema) if ema else None
        self.kept, self._averaged = self._average.module if self._average else kept, kept
        if restore and "task" in self.stored:  # taken out, so that a second copy of them does not stay in memory
            task.load_state_dict(self.stored.pop("task"))
            if self._average:
                self._average.load_state_dict(self.stored.pop("average"))
            states = (self.stored.pop("optimiser"), *self.stored.pop("others", []))
            for optimiser, state in zip(optimisers, states, strict=True):
                optimiser.load_state_dict(state)
        self.task, self.optimisers, self.alone = task, optimisers, alone
        sync = bool(self.config.optim.sync_batch_norm)
        self._distributed = distribute(task, self.worker.group, sync_batch_norm=sync, alone=alone)

    def steps(
        self, stream: Stream, *optim: OptimConfig, samples: int, first: int = 0, ends: Callable[[Step], bool] | None = None,
        prepare: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda batches: batches, table: DifficultyTable | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """Train on the stream's batches, one optimiser step each (`trainers.engine.loop.steps`), until the last step.

        ``optim``: a config for each optimiser; ``samples``: the size of the training data; ``first``: the step from which the
        learning rate counts. ``ends``: decides whether a step is the last one; without it ``config.steps`` does. ``prepare``:
        adds labels to batches. ``table``: the difficulty vector that samples are drawn by, for the counters.

        Raises:
            InputError: too many samples cannot be read, or the loss is no longer finite.
            Exception: the worker's, when the run has been asked to end and its checkpoint is stored.
        """
        config, worker = self.config, self.worker
        bad, self._optim, self._first = BadSamples(config.loader.bad_share, samples), optim[0], first
        self._meter, self._stats = Meter(worker.group), LoaderStats(config.loader.workers, table)
        with closing(load_in_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")) as batches:
            beside = list(zip(self.optimisers[1:], optim[1:], strict=True))
            made = steps(
                self._distributed, self.optimisers[0], optim[0], prepare(batches), worker.device, config.seed, worker.rank, first,
                beside, self.alone, worker.group,
            )  # fmt: skip
            for step in watched(made, config.cluster.stuck_s + NAMED_FIRST_S, worker.stuck):
                if self._average:
                    self._average.update_parameters(self._averaged)
                self.log.count(step)
                self._meter.add(step)
                self._stats.count(step.batch)
                for failure in bad.note(step.batch):
                    worker.say(f"could not be read and was replaced: {failure}")
                self._over = ends(step) if ends else step.done == config.steps
                yield step
                if self._over:
                    return
                if self._asked == "stop":
                    worker.flush()
                    worker.stop(step.done)

    def record_due(self, step: Step) -> bool:
        """Whether to record after this step: every ``record_every`` steps, and after the last."""
        return self._over or step.done % self.config.record_every == 0

    def evaluate_due(self, step: Step) -> bool:
        """Whether to evaluate after this step: every ``evaluate_every`` steps unless that is 0, and after the last."""
        return self._over or (self.config.evaluate_every > 0 and step.done % self.config.evaluate_every == 0)

    def checkpoint_due(self, step: Step) -> bool:
        """Whether to store a checkpoint after this step: every ``checkpoint_every`` steps, after the last, and when one
        is asked for."""
        return self._over or self._asked != "" or step.done % self.config.checkpoint_every == 0

    def record(self, step: Step, figures: Mapping[str, float] | None = None) -> None:
        """Record means over the steps since the last record, and the job's own ``figures``. They go to the console, TensorBoard
        and Prometheus. A run that has been asked to end does so at the same step: a resumed run then has the same records."""
        means = self._meter.read(self.config.batch)
        means |= {"lr": self._optim.lr_at(step.done - 1 - self._first), **(figures or {})}
        means |= {"allreduce_s": allreduce_s(self._distributed)}
        self.worker.record(self.log.record(means, self.config.steps, self.config.batch), self._stats.counts)
        self._asked = self.worker.asked()

    def for_evaluation(self, model: nn.Module) -> dict[str, Any]:
        """Keyword arguments of an evaluation of the model: which part of the data this rank evaluates, where, and with whom.

        Every rank gets rank 0's buffers first: its statistics of batch norm are the model's where ranks keep their own.
        """
        worker = self.worker
        broadcast_buffers(model, worker.group)
        part = RankSlice(worker.rank, worker.world)
        return {"device": worker.device, "part": part, "group": worker.group, "workers": self.config.loader.workers}

    @property
    def evaluation_missing(self) -> bool:
        """Whether the last evaluation is not of the last step: the run was resumed with fewer steps than it had made."""
        return bool(self.log.evaluations) and self.log.evaluations[-1]["step"] < self.log.step

    def evaluated(self, figures: Mapping[str, float], bad: Sequence[str], summary: str, **notes: Any) -> None:
        """Keep an evaluation's figures. ``bad``: the samples that could not be read; ``summary``: the main figure, to print;
        ``notes``: what the report shows besides."""
        for failure in bad:
            self.worker.say(f"could not be read and was left out of the evaluation: {failure}")
        self.log.evaluations.append({"step": self.log.step, **figures})
        self.log.notes |= notes
        if self.worker.rank == 0:
            self.worker.say(f"step {self.log.step}: {summary}")

    def _score(self) -> dict[str, float]:
        """The last evaluation's score, and as ``score/<figure>`` what it is made of; nothing if there is none. On rank 0: others
        lack the figures of some evaluations."""
        name, sign, made_of = self._score_by
        last = self.log.evaluations[-1] if self.log.evaluations else {}
        if name not in last:
            return {}
        return {"score": sign * last[name], **{f"score/{each}": last[each] for each in fnmatch.filter(last, made_of)}}

    def save(self, **more: Any) -> None:
        """Store a checkpoint, and report step and score to a sweep, while training goes on. ``more``: tensors and plain values
        that the job needs to continue."""
        score = self._score() if self.worker.rank == 0 else {}
        figures = {"step": self.log.step, **score} if score else {}
        write_own = self.files.write if self.files else None
        self.worker.save(f"step-{self.log.step:08d}", lambda folder: self._write(folder, more), figures, write_own)
        if self._asked == "store" and self.worker.rank == 0:
            self.worker.say(f"a node is about to be withdrawn: stored a checkpoint of step {self.log.step:,}")

    def _write(self, folder: Path, more: Mapping[str, Any]) -> None:
        first, *others = [optimiser.state_dict() for optimiser in self.optimisers]
        state = {"task": self.task.state_dict(), "optimiser": first, "journal": self.log.state(), "data": self.data}
        state |= {"average": self._average.state_dict()} if self._average else {}
        (folder / CONFIG).write_text(to_json(self.config))  # a copy, for a run's folder that has lost its own
        write_state(folder / STATE, {**state, **({"others": others} if others else {}), **more})

    def finish(
        self, model: Mapping[str, Any], history: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Wait for the last checkpoint; put the model, the metrics and the history into the run's folder. Every rank calls it,
        rank 0 writes.

        ``history`` and ``metrics``: what the job adds to these files.
        """
        self.worker.flush()
        if self.worker.rank:
            return
        run, log = Run(self.config.runs, self.config.name), self.log
        run.write_model(dict(model))
        run.write_json(HISTORY, {**log.state(), **(history or {})})
        evaluations = {"before": log.evaluations[0], "after": log.evaluations[-1]} if log.evaluations else {}
        run.write_json(METRICS, {
            "step": log.step, "loss": log.records[-1]["loss"] if log.records else None, **evaluations, **self._score(),
            **(metrics or {}), "weights_crc32c": crc32c_of(self.task), "draws_crc32c": log.draws, "seconds": log.seconds,
        })  # fmt: skip
