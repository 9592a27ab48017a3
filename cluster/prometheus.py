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

from cluster.figures import DRAWS, GAUGES, PREFIX, RUN_STEP, TOTALS, WORKER

REPEAT_S = 0.5  # seconds after which a gauge is set again


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
        self._draws = PersistentGauge(f"{DRAWS[0]}_total", DRAWS[1], (*WORKER, "decile"))

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
    return PersistentGauge(*RUN_STEP, ("run",))


@cache
def trials() -> PersistentGauge:
    """A sweep's trials by their state: pending, running, ended (early or not), failed."""
    return PersistentGauge("trials", "Trials of a sweep", ("run", "state"))
