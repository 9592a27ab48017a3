"""What a run's workers tell: records of its steps, notices, failures. A small actor, which watchers ask, too."""

import time
from collections import deque
from typing import Any

import ray

from cluster.prometheus import failures, run_step

NAMESPACE = "hardshard"
PREFIX = "progress:"  # of the actors' names
Record = dict[str, Any]


@ray.remote(num_cpus=0)
class Progress:
    """Holds what was told until the driver drains it, the last 10,000 of each kind when nobody does; and the run's last state."""

    def __init__(self, run: str, runs: str) -> None:
        self._records: deque[Record] = deque(maxlen=10_000)
        self._notices: deque[str] = deque(maxlen=10_000)
        self._state: Record = {"run": run, "runs": runs, "begun": time.time(), "told": None, "failures": 0, "errors": []}
        self._failures, self._step = failures(), run_step()
        self._step.set(0, {"run": run})

    def record(self, record: Record) -> None:
        """Numbers of a step."""
        self._records.append(record)
        self._state |= {"record": record, "told": time.time()}
        self._step.set(record.get("step", 0), {"run": self._state["run"]})

    def say(self, notice: str) -> None:
        """A sentence for the console."""
        self._notices.append(notice)

    def fail(self, errors: list[str]) -> None:
        """What workers died of; the run goes on without this being acted on."""
        self._failures.inc(len(errors), {"run": self._state["run"]})
        self._state["failures"] += len(errors)
        self._state["errors"] = [*self._state["errors"], *((time.time(), error) for error in errors)][-5:]

    def drain(self) -> tuple[list[Record], list[str]]:
        """Everything told since the last time."""
        told = list(self._records), list(self._notices)
        self._records.clear()
        self._notices.clear()
        return told

    def state(self) -> Record:
        """Where the run stands: the last record and when it came, failures so far, and the last errors with their times."""
        return self._state


def running() -> list[Record]:
    """The states of all runs on the cluster that this process has joined."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX))
    states = []
    for name in names:
        try:
            states.append(ray.get(ray.get_actor(name, namespace=NAMESPACE).state.remote(), timeout=10))
        except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):  # it ended just now, or hangs
            continue
    return states
