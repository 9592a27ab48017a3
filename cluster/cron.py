"""When a recurring job is due: pure functions of its schedule, of what was done, and of the current time. All times are UTC."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from cluster.errors import ClusterError

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
ON_TIME = timedelta(minutes=5)  # a time that is later than this was missed
RUN = "{run}"  # in a command: the schedule's name and the time, the same for all attempts of a time
MAX_MISSED = 1000  # older missed times are ignored


@dataclass(frozen=True)
class Schedule:
    """A command and the cron expression by which it is started."""

    name: str
    cron: str
    """Five fields, as Debian's cron reads them: minute, hour, day of the month, month, day of the week."""
    command: tuple[str, ...]
    zone: str = "UTC"
    """The time zone of the expression, such as Europe/Berlin."""
    overlap: Literal["forbid", "allow", "replace"] = "forbid"
    """If the last job still runs: skip this time, start another job beside it, or stop it first."""
    missed: Literal["last", "all", "skip"] = "last"
    """Which of the times that passed while no scheduler ran are made up for: the last one, all, or none."""
    retries: int = 0
    """How often a failed job is started again."""
    working_dir: str = ""
    """The code to ship with each job, as for `ray job submit --working-dir`; empty: the nodes have it."""
    created: datetime = EPOCH
    """Only later times are started."""
    removed: Literal["", "follow", "stop"] = ""
    """Whether it was removed, and what a scheduler does with its jobs that still run before it deletes the record."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self.name):
            raise ClusterError("not a name for a schedule", repr(self.name), "use letters, digits, '-' and '_'")
        if not self.command:
            raise ClusterError("there is no command to run", self.name, "give it after --")
        if not 0 <= self.retries <= 100:
            raise ClusterError(f"retries is {self.retries}", self.name, "give 0 to 100")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as error:
            raise ClusterError("no such time zone", repr(self.zone), "name one such as Europe/Berlin") from error
        if not _can_fire(self.cron):
            raise ClusterError("the cron expression never fires", repr(self.cron), "is there such a day in that month?")


def _can_fire(cron: str) -> bool:
    """Whether the expression has a time at all. Raises ClusterError when it is not a cron expression."""
    fields = cron.split()
    try:
        if len(fields) != 5:  # a sixth would be seconds, which polling is too slow for
            raise CronSimError("it does not have five fields")
        CronSim(" ".join([*fields[:3], "*", fields[4]]), EPOCH)
    except CronSimError as error:
        raise ClusterError(f"not a cron expression ({str(error).lower()})", repr(cron), "such as '0 3 * * MON'") from error
    try:
        return next(CronSim(cron, EPOCH), None) is not None
    except CronSimError as error:
        if str(error) != "Bad day-of-month":  # cronsim raises that for 30 February, too
            raise ClusterError(f"not a cron expression ({str(error).lower()})", repr(cron), "such as '0 3 * * MON'") from error
        return False


def times(schedule: Schedule, after: datetime, *, back: bool = False) -> Iterator[datetime]:
    """The schedule's times after ``after``, or with ``back`` those before it, backwards; ends where none comes in 50 years."""
    there = after.astimezone(ZoneInfo(schedule.zone))
    return (time.astimezone(UTC) for time in CronSim(schedule.cron, there, reverse=back))


class Due(NamedTuple):
    """A scheduled time to handle: start its job, or (``start`` False) note it as missed. ``passed``: earlier times skipped."""

    at: datetime
    start: bool
    passed: int


def due(schedule: Schedule, done: datetime, now: datetime) -> list[Due]:
    """The times to handle at ``now`` when all up to ``done`` have been handled; oldest first."""
    behind = times(schedule, now + timedelta(seconds=1), back=True)  # includes a time that is now
    passed = list(islice(takewhile(lambda time: time > done, behind), MAX_MISSED))[::-1]
    late = [time for time in passed if now - time > ON_TIME]
    starts = passed[len(late) :]
    if schedule.missed == "all":
        starts = passed
    elif schedule.missed == "last" and not starts:
        starts = late[-1:]
    left_out = len(passed) - len(starts)
    if not starts:
        return [Due(late[-1], False, left_out - 1)] if late else []
    return [Due(time, True, left_out if place == 0 else 0) for place, time in enumerate(starts)]
