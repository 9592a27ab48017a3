"""Starts recurring jobs on the cluster.

    python -m cluster.schedule add nightly "0 3 * * *" --zone Europe/Berlin -- python trainers/reid.py --data s3://bucket/market1501
    python -m cluster.schedule run         start them when due, until Ctrl-C; several of these may run at a time
    python -m cluster.schedule list | history NAME | remove NAME [--stop]

Schedules, and the state of each start, are records in --store (a folder or s3://bucket/prefix), which outlives schedulers and
clusters. How each time is started once: `cluster.scheduler`.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from cluster.config import ExportConfig
from cluster.cron import RUN, Schedule, times
from cluster.errors import ClusterError, run_main
from cluster.exporter import Exporter, exported
from cluster.jobs import UNREACHABLE, Jobs
from cluster.ledger import Ledger, open_ledger
from cluster.schedule_figures import OPEN, ScheduleFigures
from cluster.scheduler import Scheduler, check_clock, current, place_of, say, start_record
from datasets.command_line import POSITIONAL, parse, take_verb

PROGRAM = "python -m cluster.schedule"


@dataclass(frozen=True)
class Stored:
    """Where the schedules are stored."""

    store: str = ""
    """A folder that all schedulers share, or s3://bucket/prefix; empty: $HARDSHARD_SCHEDULES, else ./schedules."""

    @property
    def ledger(self) -> Ledger:
        """The ledger at ``store``."""
        return open_ledger(self.store or os.environ.get("HARDSHARD_SCHEDULES", "") or str(Path("schedules").absolute()))


@dataclass(frozen=True)
class Add(Stored):
    """Add a schedule: NAME "CRON" -- COMMAND ..."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""
    cron: str = field(default="", metadata=POSITIONAL)
    """Five fields: minute, hour, day of the month, month, day of the week."""
    zone: str = "UTC"
    """The time zone of the expression, such as Europe/Berlin."""
    overlap: Literal["forbid", "allow", "replace"] = "forbid"
    """If the last job still runs: skip this time, start another job beside it, or stop it first."""
    missed: Literal["last", "all", "skip"] = "last"
    """Which of the times that passed while no scheduler ran are made up for: the last one, all (with overlap allow), or none."""
    retries: int = 0
    """How often a failed job is started again."""
    working_dir: str = ""
    """A folder or URI of the code to ship with each job; empty: the nodes have it."""

    def run(self, command: tuple[str, ...]) -> None:
        """Store the schedule; raises ClusterError for a name in use."""
        settings = {name: value for name, value in asdict(self).items() if name != "store"}
        schedule = Schedule(**settings, command=command, created=datetime.now(UTC))
        ledger = self.ledger
        record = {**asdict(schedule), "created": schedule.created.isoformat()}
        if not ledger.create(place_of(self.name), record):
            if not (ledger.get(place_of(self.name)) or {}).get("removed"):
                raise ClusterError(f"the name '{self.name}' is in use", ledger.url, "remove it first, or choose another")
            ledger.put(place_of(self.name), record)
        if self.retries and not any(RUN in word for word in command):
            print(f"note: a retry trains from the start; with `--name {RUN} --resume auto` in the command it resumes the run")
        print(f"{self.name}: first at {_shown(schedule, next(times(schedule, schedule.created)))}")


@dataclass(frozen=True)
class List(Stored):
    """List the schedules, each with its next time and the state of its last job."""

    def run(self) -> None:
        """Print the table."""
        ledger, table = self.ledger, Table(box=None, header_style="dim")
        for name in ("name", "cron", "next", "overlap", "missed", "retries", "last", "command"):
            table.add_column(name, overflow="fold")
        for schedule in current(ledger):
            last = [record for key in ledger.names(f"starts/{schedule.name}")[-1:] if (record := start_record(ledger, key))]
            latest = f"{last[0]['at'][:16]} {last[0]['state']}" if last else "never"
            row = (schedule.name, schedule.cron, _shown(schedule, next(times(schedule, datetime.now(UTC)))), schedule.overlap)
            table.add_row(*row, schedule.missed, str(schedule.retries), latest, " ".join(schedule.command))
        print_table(table)


@dataclass(frozen=True)
class Remove(Stored):
    """Remove a schedule: it starts no more jobs. Its history is kept, and goes on until the end of its running jobs."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""
    stop: bool = False
    """Stop its running jobs."""

    def run(self) -> None:
        """Mark the schedule's record, which a scheduler deletes when the last job has ended."""
        ledger = self.ledger
        check_known(ledger, self.name)
        ledger.put(place_of(self.name), {**(ledger.get(place_of(self.name)) or {}), "removed": "stop" if self.stop else "follow"})
        records = [record for key in ledger.names(f"starts/{self.name}") if (record := start_record(ledger, key))]
        for job in [record["job"] for record in records if record["state"] in OPEN]:
            print(f"{job} {'is stopped by the next scheduler that looks' if self.stop else 'still runs: --stop stops it, too'}")


@dataclass(frozen=True)
class History(Stored):
    """List the times of a schedule, with the state of each job, its run, and why it failed."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""

    def run(self) -> None:
        """Print the table."""
        ledger, table = self.ledger, Table(box=None, header_style="dim")
        keys = ledger.names(f"starts/{self.name}") if self.name else []
        if not keys:
            check_known(ledger, self.name)
        for name in ("time (UTC)", "attempt", "state", "run", "job", "missed before", "note"):
            table.add_column(name, overflow="fold")
        for record in (record for key in keys if (record := start_record(ledger, key))):
            what = (record["state"], record.get("run", ""), record["job"], str(record["passed"] or ""), record["note"])
            table.add_row(record["at"][:19], str(record["attempt"]), *what)
        print_table(table)


@dataclass(frozen=True)
class Start(Stored, ExportConfig):
    """Start jobs when they are due, until Ctrl-C."""

    address: str = ""
    """The cluster: its dashboard, http://host:8265, or host:port of its head; empty: RAY_ADDRESS, or this machine's."""
    every: float = 5.0
    """Seconds between two checks."""

    def run(self) -> None:
        """Start what is due, every few seconds, until stopped. Prints an error once when it appears and once when it is over."""
        if not self.every > 0:
            raise ClusterError(f"every is {self.every}", "--every", "give seconds above 0")
        ledger, cluster = self.ledger, Jobs(self.address)
        check_clock(datetime.now(UTC), cluster.now(), cluster.address)
        ledger.put("scheduler.json", {"begun": datetime.now(UTC).isoformat()})  # fails at once if the storage cannot be written
        say(f"{len(current(ledger))} schedules in {ledger.url}, cluster {cluster.address}")
        figures = ScheduleFigures()
        with exported(figures, self) as exporter:
            self._turn_forever(ledger, cluster, figures, exporter)

    def _turn_forever(self, ledger: Ledger, cluster: Jobs, figures: ScheduleFigures, exporter: Exporter) -> None:
        scheduler, printed = Scheduler(ledger, cluster), ""
        while True:
            try:
                now, there = datetime.now(UTC), cluster.now()
                figures.compared(now, there)
                check_clock(now, there, cluster.address)
                scheduler.turn(now)
                figures.turned(scheduler.seen, now)
                problem = ""
            except ClusterError as error:
                problem = str(error)
            except (*UNREACHABLE, RuntimeError) as error:
                problem = f"the cluster is unreachable ({type(error).__name__}); retrying"
            if problem:
                figures.failed()
            if problem != printed:
                say(problem or "no more errors")
                printed = problem
            exporter.update()
            time.sleep(self.every)


def check_known(ledger: Ledger, name: str) -> None:
    """Raises ClusterError when there is no schedule of that name."""
    names = [schedule.name for schedule in current(ledger)]
    if name not in names:
        raise ClusterError(f"no schedule '{name}'", ledger.url, f"there are: {', '.join(names) or 'none'}")


def print_table(table: Table) -> None:
    """Print a table; in a terminal, folded to its width."""
    Console(width=None if sys.stdout.isatty() else 250, markup=False, highlight=False).print(table)


def _shown(schedule: Schedule, at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z" + (f" ({schedule.zone})" if schedule.zone != "UTC" else "")


def main() -> None:
    """Run the command line; the command to schedule comes after ``--``."""
    arguments, command = sys.argv[1:], tuple[str, ...]()
    if "--" in arguments:
        end = arguments.index("--")
        arguments, command = arguments[:end], tuple(arguments[end + 1 :])
    verbs = {"add": Add, "list": List, "remove": Remove, "history": History, "run": Start}
    name = take_verb(PROGRAM, __doc__ or "", verbs, arguments)
    verb: Any = parse(verbs[name], f"{PROGRAM} {name}", arguments)
    if isinstance(verb, Add):
        verb.run(command)
    elif command:
        raise ClusterError("a command after -- is only for add", " ".join(command))
    else:
        verb.run()


if __name__ == "__main__":
    run_main(main)
