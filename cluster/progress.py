"""What a run's workers tell the person who started it: records of its steps, and notices. A small actor in between."""

from collections import deque
from typing import Any

import ray

Record = dict[str, Any]


@ray.remote(num_cpus=0)
class Progress:
    """Holds what was told until the driver drains it; the last 10,000 of each kind when nobody does."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=10_000)
        self._notices: deque[str] = deque(maxlen=10_000)

    def record(self, record: Record) -> None:
        """Numbers of a step."""
        self._records.append(record)

    def say(self, notice: str) -> None:
        """A sentence for the console."""
        self._notices.append(notice)

    def drain(self) -> tuple[list[Record], list[str]]:
        """Everything told since the last time."""
        told = list(self._records), list(self._notices)
        self._records.clear()
        self._notices.clear()
        return told
