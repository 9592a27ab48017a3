"""A scheduler's figures for Prometheus: of each schedule, as its records say, and of the scheduler itself.

Schedulers that share a store export the same figures of schedules: take the maximum over them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from cluster.cron import Schedule, times
from cluster.exporter import counter, gauge
from cluster.ledger import Record

OPEN = ("claimed", "submitted")  # states of a job that has not ended
FAILED = ("failed", "lost")
BY_SCHEDULE = {  # metric: description
    "hardshard_schedule_next_start_timestamp_seconds": "When the next job is due; in the past, it is late",
    "hardshard_schedule_start_delay_seconds": "Seconds from the time of the last job that started to its claim",
    "hardshard_schedule_last_success_timestamp_seconds": "The time of the last job that succeeded; 0: none on record",
    "hardshard_schedule_last_failure_timestamp_seconds": "The time of the last job that failed or was lost; 0: none on record",
    "hardshard_schedule_running": "Jobs that are claimed or submitted and have not ended",
}
JOBS = ("hardshard_schedule_jobs", "Times and attempts on record, the last 200, by their state")
LAST_TURN = ("hardshard_scheduler_last_turn_timestamp_seconds", "When the scheduler last reached store and cluster; 0: never")
SKEW = ("hardshard_scheduler_clock_skew_seconds", "Seconds by which the scheduler's clock is ahead of the cluster's")
ERRORS = ("hardshard_scheduler_errors", "Turns in which it did not reach them")

Seen = Mapping[str, tuple[Schedule, Mapping[str, Record]]]  # each schedule with its records, by its name


class ScheduleFigures(Collector):
    """The figures of one scheduler."""

    def __init__(self) -> None:
        self._seen: Seen = {}
        self._turned, self._skew, self._errors = 0.0, 0.0, 0

    def compared(self, here: datetime, there: datetime) -> None:
        """Keep what the clocks of this machine and of the cluster showed."""
        self._skew = (here - there).total_seconds()

    def turned(self, seen: Seen, now: datetime) -> None:
        """Keep what a turn saw."""
        self._seen, self._turned = seen, now.timestamp()

    def failed(self) -> None:
        """Count a turn that failed."""
        self._errors += 1

    def collect(self) -> Iterator[Metric]:
        """The figures, in Prometheus' form."""
        rows = {name: _of_schedule(schedule, records) for name, (schedule, records) in self._seen.items()}
        for place, (metric, about) in enumerate(BY_SCHEDULE.items()):
            yield gauge(metric, about, ("schedule",), [((name,), row[place]) for name, row in rows.items()])
        jobs = [
            ((name, state), float(count))
            for name, (_, records) in self._seen.items()
            for state, count in Counter(record["state"] for record in records.values()).items()
        ]
        yield gauge(*JOBS, ("schedule", "state"), jobs)
        yield gauge(*LAST_TURN, (), [((), self._turned)])
        yield gauge(*SKEW, (), [((), self._skew)])
        yield counter(*ERRORS, (), [((), float(self._errors))])


def _of_schedule(schedule: Schedule, records: Mapping[str, Record]) -> tuple[float, ...]:
    """The values of `BY_SCHEDULE`, in its order."""
    at = {key: datetime.fromisoformat(record["at"]) for key, record in records.items()}
    started = [key for key, record in records.items() if "claimed" in record and record["attempt"] == 1]
    last = max(started, key=at.__getitem__, default=None)
    delay = 0.0 if last is None else (datetime.fromisoformat(records[last]["claimed"]) - at[last]).total_seconds()

    def latest(*states: str) -> float:
        return max((at[key].timestamp() for key, record in records.items() if record["state"] in states), default=0.0)

    following = next(times(schedule, max([schedule.created, *at.values()])), None)
    running = sum(record["state"] in OPEN for record in records.values())
    return following.timestamp() if following else 0.0, delay, latest("succeeded"), latest(*FAILED), float(running)
