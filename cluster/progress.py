"""A small actor for each run that holds what its workers report: records of steps, notices and failures."""

import asyncio
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
    """Holds what workers report until the driver drains it (the last 10,000 records and notices), and the run's latest state."""

    def __init__(self, run: str, runs: str) -> None:
        self._records: deque[Record] = deque(maxlen=10_000)
        self._notices: deque[str] = deque(maxlen=10_000)
        self._state: Record = {"run": run, "runs": runs, "begun": time.time(), "reported": None, "failures": 0, "errors": []}
        self._asked, self._training = asyncio.Event(), False
        self._failures, self._step = failures(), run_step()
        self._step.set(0, {"run": run})
        self._failures.set(0, {"run": run})  # so that Prometheus counts the first one

    def record(self, record: Record) -> None:
        """Add the figures of a step."""
        self._records.append(record)
        self._state |= {"record": record, "reported": time.time()}
        self._step.set(record.get("step", 0), {"run": self._state["run"]})

    def begin(self) -> None:
        """Note that workers have started."""
        self._training = True

    def stop(self) -> bool:
        """Ask the workers to end the run; returns whether there are workers, as far as is known."""
        self._asked.set()
        return self._training

    async def until_stopped(self) -> None:
        """Return when the workers are asked to end the run."""
        await self._asked.wait()

    def say(self, notice: str) -> None:
        """Add a sentence for the console."""
        self._notices.append(notice)

    def fail(self, errors: list[str]) -> None:
        """Count failures of workers, with their messages, and print these; does not act on them."""
        self._notices.extend(f"failed: {error}" for error in errors)
        self._training = False
        self._state["failures"] += len(errors)
        self._failures.set(self._state["failures"], {"run": self._state["run"]})
        self._state["errors"] = [*self._state["errors"], *((time.time(), error) for error in errors)][-5:]

    def drain(self) -> tuple[list[Record], list[str]]:
        """All records and notices since the last call."""
        reported = list(self._records), list(self._notices)
        self._records.clear()
        self._notices.clear()
        return reported

    def state(self) -> Record:
        """The last record and when it was reported, the number of failures, and the last errors with their times."""
        return self._state


def running() -> list[Record]:
    """The states of all runs on the cluster that this process has joined."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX))
    states = []
    for name in names:
        try:
            states.append(ray.get(ray.get_actor(name, namespace=NAMESPACE).state.remote(), timeout=10))
        except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):  # it has just ended, or it hangs
            continue
    return states
