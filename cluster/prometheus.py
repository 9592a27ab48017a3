"""A run's figures for Prometheus, named `ray_hardshard_...`.

Ray's agent on every node serves them. Ray lists the agents in a file for Prometheus' service discovery, so that Prometheus finds
the figures of new workers without configuration, and drops those of dead ones. Labels have few values: a run's name, a rank, a
decile, a state. Totals are exported as gauges, too: Ray's agents keep a counter for ever, also when its run has ended (Ray 2.60),
and Prometheus' rate() takes either.
"""

import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

PREFIX = "hardshard_"
WORKER = ("run", "rank")
REPEAT_S = 0.5  # seconds after which a gauge is set again
GAUGES = {  # key of a step's record: the metric's name and description
    "step": ("step", "Steps done"),
    "steps": ("steps", "Steps of the whole run"),
    "eta_s": ("eta_seconds", "Seconds until the run ends, at its current speed"),
    "loss": ("loss", "Mean loss of the last steps"),
    "accuracy": ("accuracy", "Mean accuracy of the last steps"),
    "mAP": ("map", "Retrieval mAP of the last evaluation, 0 to 1"),
    "lr": ("learning_rate", "Learning rate"),
    "stage": ("stage", "Stage of the curriculum, from 1 on"),
    "samples_per_s": ("samples_per_second", "Samples a second, of all workers"),
    "step_s": ("step_seconds", "Mean seconds of a step"),
    "wait_s": ("data_wait_seconds", "Mean seconds of a step spent waiting for data"),
    "compute_s": ("compute_seconds", "Mean seconds of a step spent in forward, backward (its all-reduce included) and optimiser"),
    "allreduce_s": ("allreduce_seconds", "Mean seconds of a step during which workers exchanged gradients"),
    "difficulty_s": ("difficulty_seconds", "Seconds that the last difficulty vector took to compute"),
    "version": ("difficulty_version", "Version of the difficulty vector by which the last step's samples were drawn"),
    "age": ("difficulty_age_steps", "Steps since that vector was computed"),
    "due": ("difficulty_due_steps", "Largest age of a vector, in steps, that interval and lag allow"),
}
TOTALS = {  # key of a worker's total since it started: the metric's name and description
    "samples": ("samples", "Samples trained on"),
    "skipped": ("skipped_samples", "Samples that could not be read and were replaced"),
    "gets": ("gets", "GETs from S3 that returned bytes"),
    "bytes": ("read_bytes", "Bytes read from the storage"),
    "hits": ("cache_hits", "Blocks found in the node's cache"),
    "retries": ("get_retries", "Retries of GETs"),
}


class PersistentGauge(Gauge):
    """A gauge that keeps its value until its process ends. Ray's agent drops a gauge that was not set for two report intervals
    (20 s, Ray 2.60): it would be missing during evaluations, and when a run hangs."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...]) -> None:
        super().__init__(PREFIX + name, about, labels)
        self._last: dict[frozenset[tuple[str, str]], float] = {}
        _persistent_gauges().append(self)

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        """Set the value under these labels."""
        self._last[frozenset(tags.items())] = value
        super().set(value, dict(tags))

    def repeat(self) -> None:
        """Set all values again."""
        for tags, value in list(self._last.items()):
            super().set(value, dict(tags))


@cache
def _persistent_gauges() -> list[PersistentGauge]:
    """This process's persistent gauges; starts the thread that repeats them."""
    gauges = list[PersistentGauge]()

    def repeat() -> None:
        while True:
            time.sleep(REPEAT_S)
            for gauge in list(gauges):
                gauge.repeat()

    threading.Thread(target=repeat, name="gauges", daemon=True).start()
    return gauges


class Figures:
    """The metrics of one worker of a run."""

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._gauges = {key: PersistentGauge(name, about, WORKER) for key, (name, about) in GAUGES.items()}
        self._totals = {key: PersistentGauge(f"{name}_total", about, WORKER) for key, (name, about) in TOTALS.items()}
        about = "Samples drawn, by the decile of their identity's difficulty"
        self._draws = PersistentGauge("draws_total", about, (*WORKER, "decile"))

    def report(self, record: Mapping[str, Any], counts: Mapping[str, float]) -> None:
        """Export a step's record and the totals so far; keys without a metric are ignored."""
        for key, gauge in self._gauges.items():
            if record.get(key) is not None:
                gauge.set(float(record[key]), self._tags)
        for key, total in counts.items():
            if key in self._totals:
                self._totals[key].set(total, self._tags)
            elif key.startswith("draws_"):
                self._draws.set(total, {**self._tags, "decile": key.removeprefix("draws_")})


def failures() -> PersistentGauge:
    """Deaths and errors of a run's workers, counted by its progress actor."""
    return PersistentGauge("worker_failures_total", "Deaths and errors of workers", ("run",))


def run_step() -> PersistentGauge:
    """The last step that a run reported, 0 before the first. Set by its progress actor, so that it outlives workers."""
    return PersistentGauge("run_step", "Last step that the run reported", ("run",))


@cache
def trials() -> PersistentGauge:
    """A sweep's trials by their state: pending, running, ended (early or not), failed."""
    return PersistentGauge("trials", "Trials of a sweep", ("run", "state"))
