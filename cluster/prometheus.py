"""A run's figures for Prometheus, as `ray_hardshard_...`.

They go out through Ray's own agent on every node. Ray lists the agents in a discovery file, so that Prometheus finds the figures
of workers that come, and loses those of workers that go, by itself. Labels are bounded: a run's name, a rank, a tenth, a state.
"""

import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

PREFIX = "hardshard_"
WORKER = ("run", "rank")
AGAIN = 0.5  # seconds after which a gauge is told once more
GAUGES = {  # what a worker records of a step: the metric's name and what it is
    "step": ("step", "Steps done"),
    "steps": ("steps", "Steps of the whole run"),
    "eta_s": ("eta_seconds", "Seconds until the run ends, at its present speed"),
    "loss": ("loss", "Mean loss of the last steps"),
    "accuracy": ("accuracy", "Mean accuracy of the last steps"),
    "mAP": ("map", "Retrieval mAP of the last evaluation, 0 to 1"),
    "lr": ("learning_rate", "Learning rate"),
    "stage": ("stage", "Stage of the curriculum, from 1 on"),
    "samples_per_s": ("samples_per_second", "Samples a second, of all workers"),
    "step_s": ("step_seconds", "Mean seconds of a step"),
    "wait_s": ("data_wait_seconds", "Mean seconds of a step spent waiting for data"),
    "compute_s": ("compute_seconds", "Mean seconds of a step spent in forward, backward (its all-reduce included) and optimiser"),
    "allreduce_s": ("allreduce_seconds", "Mean seconds of a step during which gradients were under way between workers"),
    "difficulty_s": ("difficulty_seconds", "Seconds that the last difficulty vector took to compute"),
    "version": ("difficulty_version", "Number of the difficulty vector that the last step was drawn by"),
    "age": ("difficulty_age_steps", "Steps since that vector was computed"),
    "due": ("difficulty_due_steps", "Steps that a vector is old at most when all is well"),
}
COUNTERS = {  # totals that a worker has counted since it began
    "samples": ("samples", "Samples trained on"),
    "skipped": ("skipped_samples", "Samples that could not be read and were replaced"),
    "gets": ("gets", "GETs from S3 that brought bytes"),
    "bytes": ("read_bytes", "Bytes read from the storage"),
    "hits": ("cache_hits", "Blocks found in the node's cache"),
    "retries": ("get_retries", "GETs that were tried again"),
}


class Steady(Gauge):
    """A gauge that stays until its process ends. One of Ray's own is forgotten when it was not set again for two of the agent's
    report intervals (20 s, Ray 2.60): it would be gone during an evaluation, and of a run that is stuck."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...]) -> None:
        super().__init__(PREFIX + name, about, labels)
        self._last: dict[frozenset[tuple[str, str]], float] = {}
        _repeated().append(self)

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        """Set the value under these labels."""
        self._last[frozenset(tags.items())] = value
        super().set(value, dict(tags))

    def again(self) -> None:
        """Tell Ray all values once more."""
        for tags, value in list(self._last.items()):
            super().set(value, dict(tags))


@cache
def _repeated() -> list[Steady]:
    """This process's steady gauges, and the thread that repeats them."""
    gauges = list[Steady]()

    def repeat() -> None:
        while True:
            time.sleep(AGAIN)
            for gauge in list(gauges):
                gauge.again()

    threading.Thread(target=repeat, name="gauges", daemon=True).start()
    return gauges


class Figures:
    """The figures of one worker of a run."""

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._gauges = {key: Steady(name, about, WORKER) for key, (name, about) in GAUGES.items()}
        self._counters = {key: Counter(PREFIX + name, about, WORKER) for key, (name, about) in COUNTERS.items()}
        self._draws = Counter(PREFIX + "draws", "Samples drawn, by the tenth of their identity's difficulty", (*WORKER, "decile"))
        self._reported: dict[str, float] = {}

    def report(self, record: Mapping[str, Any], counts: Mapping[str, float]) -> None:
        """Put a step's record and the totals until then out; keys that are no figures are passed over."""
        for key, gauge in self._gauges.items():
            if record.get(key) is not None:
                gauge.set(float(record[key]), self._tags)
        for key, total in counts.items():
            more = total - self._reported.get(key, 0.0)
            self._reported[key] = total
            if more <= 0:
                continue
            if key in self._counters:
                self._counters[key].inc(more, self._tags)
            elif key.startswith("draws_"):
                self._draws.inc(more, {**self._tags, "decile": key.removeprefix("draws_")})


def failures() -> Counter:
    """Deaths and errors of a run's workers; counted by its progress actor."""
    return Counter(PREFIX + "worker_failures", "Deaths and errors of workers", ("run",))


def run_step() -> Steady:
    """The last step that a run told of, 0 before; set by its progress actor, and so also there while no worker is."""
    return Steady("run_step", "Steps that the run has told of", ("run",))


@cache
def trials() -> Steady:
    """A sweep's trials by their state: pending, running, ended (early or not), failed."""
    return Steady("trials", "Trials of a sweep", ("run", "state"))
