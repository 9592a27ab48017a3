"""When a recurring job is due: pure functions of its schedule, of what was done, and of the time now. All times are UTC."""

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
ON_TIME = timedelta(minutes=5)  # a start no later than this is not a missed one
MAX_MISSED = 1000  # missed times that are looked at


@dataclass(frozen=True)
class Schedule:
    """A command that runs at the times of a cron expression."""

    name: str
    cron: str
    """Five fields, as Debian's cron reads them: minute, hour, day of the month, month, day of the week."""
    command: tuple[str, ...]
    zone: str = "UTC"
    """The time zone that the expression is meant in, such as Europe/Berlin."""
    overlap: Literal["forbid", "allow", "replace"] = "forbid"
    """While the last start still runs: leave a time out, start beside it, or stop it first."""
    missed: Literal["last", "all", "skip"] = "last"
    """Of the times that passed while no scheduler ran: make up for the last one, for all, for none."""
    retries: int = 0
    """Starts after a failed one, of the same time."""
    working_dir: str = ""
    """The code to ship with each start, as of `ray job submit --working-dir`; empty: the nodes have it."""
    created: datetime = EPOCH
    """Times up to then are none of its own."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self.name):
            raise ClusterError("not a name for a schedule", repr(self.name), "use letters, digits, '-' and '_'")
        if not self.command:
            raise ClusterError("there is no command to run", self.name, "put it behind --")
        if not 0 <= self.retries <= 100:
            raise ClusterError(f"retries is {self.retries}", self.name, "give 0 to 100")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as error:
            raise ClusterError("no such time zone", repr(self.zone), "name one such as Europe/Berlin") from error
        if not _can_fire(self.cron):
            raise ClusterError("the cron expression never fires", repr(self.cron), "is there such a day in that month?")


def _can_fire(cron: str) -> bool:
    """Raises ClusterError when it is no cron expression at all."""
    fields = cron.split()
    try:
        if len(fields) != 5:  # a sixth would be seconds, which no poll keeps to
            raise CronSimError("it has not five fields")
        CronSim(" ".join([*fields[:3], "*", fields[4]]), EPOCH)
    except CronSimError as error:
        raise ClusterError(f"not a cron expression ({str(error).lower()})", repr(cron), "such as '0 3 * * MON'") from error
    try:
        return next(CronSim(cron, EPOCH), None) is not None
    except CronSimError as error:
        if str(error) != "Bad day-of-month":  # which is also said of 30 February
            raise ClusterError(f"not a cron expression ({str(error).lower()})", repr(cron), "such as '0 3 * * MON'") from error
        return False


def times(schedule: Schedule, after: datetime, *, back: bool = False) -> Iterator[datetime]:
    """The times later than ``after``, or earlier ones backwards; ends when there is none in 50 years."""
    there = after.astimezone(ZoneInfo(schedule.zone))
    return (time.astimezone(UTC) for time in CronSim(schedule.cron, there, reverse=back))


class Due(NamedTuple):
    """A time to act for. ``start`` False: it is too late for it. ``passed``: earlier times that are left out for it."""

    at: datetime
    start: bool
    passed: int


def due(schedule: Schedule, done: datetime, now: datetime) -> list[Due]:
    """What to do at ``now`` when all times up to ``done`` have been dealt with; oldest first."""
    behind = times(schedule, now + timedelta(seconds=1), back=True)  # a time that is now, too
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
