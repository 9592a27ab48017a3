"""Starts recurring jobs on the cluster.

    python -m cluster.schedule add nightly "0 3 * * *" --zone Europe/Berlin -- python trainers/reid.py --data s3://bucket/market1501
    python -m cluster.schedule run         start them when due, until Ctrl-C; several of these may run at a time
    python -m cluster.schedule list | history NAME | remove NAME [--stop]

Schedules, and the state of each start, are records in --store (a folder or s3://bucket/prefix), which outlives schedulers and
clusters. A scheduler claims a time by creating its record, which only one scheduler can do, and then submits the job. The job's
id is made from the time, so that the cluster refuses a second job of the same time. If a scheduler dies after its claim, another
takes the claim over and submits the job, under the same id. If the cluster was restarted in between, nobody knows whether the job
ran: it is marked as lost, not started twice.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.table import Table

from cluster.config import ExportConfig
from cluster.cron import RUN, Due, Schedule, due, times
from cluster.errors import ClusterError, run_main
from cluster.exporter import Exporter, exported
from cluster.jobs import RUNNING, UNREACHABLE, Jobs
from cluster.ledger import Ledger, Record, open_ledger
from cluster.schedule_figures import OPEN, ScheduleFigures
from cluster.status import span
from datasets.command_line import POSITIONAL, parse, take_verb

PROGRAM = "python -m cluster.schedule"
STAMP = "%Y%m%dT%H%M%SZ"
LEASE = timedelta(minutes=1)  # age of a claim after which another scheduler takes it over
SKEW = timedelta(seconds=30)  # difference of a scheduler's clock from the cluster's with which it still starts jobs
KEPT = 200  # records of ended jobs that are kept of each schedule
ENDED = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}


class Cluster(Protocol):
    """The methods of `cluster.jobs.Jobs` that a scheduler calls."""

    def session(self) -> str: ...
    def submit(self, job: str, command: tuple[str, ...], working_dir: str) -> None: ...
    def status(self, job: str) -> str | None: ...
    def stop(self, job: str) -> None: ...


class Scheduler:
    """Starts the jobs that are due; `turn` is called every few seconds, in any number of processes."""

    def __init__(self, ledger: Ledger, cluster: Cluster) -> None:
        self.ledger, self.cluster = ledger, cluster
        self.seen: dict[str, tuple[Schedule, dict[str, Record]]] = {}  # schedules and their records, as of the last turn
        self._ended: dict[str, Record] = {}  # records that will not change any more

    def turn(self, now: datetime) -> None:
        """Update the records of jobs that run, and start the jobs due at ``now``.

        Raises:
            ClusterError: the storage of the records refuses or does not answer.
            ConnectionError, requests.RequestException: the cluster is unreachable (`UNREACHABLE`).
        """
        session, seen = self.cluster.session(), {}  # first: no time is claimed while the cluster is unreachable
        for schedule in schedules(self.ledger):
            records = self._records(schedule.name)
            for key, record in records.items():
                if record["state"] in OPEN:
                    self._follow(schedule, key, record, session, now)
            if schedule.removed:
                self._end(schedule, records)
                continue
            self._retry(schedule, records, session, now)
            times_done = [_parsed(record["at"]) for record in records.values()]
            done = max([schedule.created, *(at for at in times_done if at <= now)])  # later ones: by a clock that was wrong
            for entry in due(schedule, done, now):
                self._act(schedule, entry, records, session, now)
            self._forget(records)
            seen[schedule.name] = schedule, records
        self.seen = seen

    def _records(self, name: str) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for key in self.ledger.names(f"starts/{name}"):
            record = self._ended.get(key) or start_record(self.ledger, key)
            if record is not None:  # else another scheduler has deleted it
                found[key] = record
                if record["state"] not in OPEN:
                    self._ended[key] = record
        return found

    def _follow(self, schedule: Schedule, key: str, record: Record, session: str, now: datetime) -> None:
        """Update the record of a job that has not ended, and take over a claim whose scheduler died."""
        status = self.cluster.status(record["job"])
        if status in ENDED:
            self._set(key, record, ENDED[status])
        elif status is not None and record["state"] == "claimed":
            self._set(key, record, "submitted")
        elif status is None and record["session"] != session:
            self._set(key, record, "lost", "the cluster was restarted")
        elif status is None and record["state"] == "submitted":
            self._set(key, record, "lost", "the cluster does not know it any more")
        elif status is None and schedule.removed:
            self._set(key, record, "stopped", "its schedule was removed")
        elif status is None and now - _parsed(record["claimed"]) > LEASE:
            self._submit(schedule, key, record)

    def _retry(self, schedule: Schedule, records: dict[str, Record], session: str, now: datetime) -> None:
        """Start the newest time's job again if it failed and retries are left."""
        newest = max(records.values(), key=lambda record: (record["at"], record["attempt"]), default=None)
        if newest and newest["state"] in ("failed", "lost") and newest["attempt"] <= schedule.retries:
            self._start(schedule, _parsed(newest["at"]), newest["attempt"] + 1, 0, records, session, now)

    def _act(self, schedule: Schedule, entry: Due, records: dict[str, Record], session: str, now: datetime) -> None:
        running = {key: record for key, record in records.items() if record["state"] in OPEN}
        if not entry.start:
            self._note(schedule, entry, records, "missed", "")
        elif running and schedule.overlap == "forbid":
            self._note(schedule, entry, records, "left out", "the job before it was still running")
        else:
            if schedule.overlap == "replace":
                self._stop(running)
            self._start(schedule, entry.at, 1, entry.passed, records, session, now)

    def _stop(self, running: dict[str, Record]) -> None:
        for record in running.values():
            if self.cluster.status(record["job"]) in RUNNING:
                self.cluster.stop(record["job"])

    def _end(self, schedule: Schedule, records: dict[str, Record]) -> None:
        """Delete a schedule that was removed, when its last job has ended."""
        running = {key: record for key, record in records.items() if record["state"] in OPEN}
        if schedule.removed == "stop":
            self._stop(running)
        if not running:
            self.ledger.delete(_place(schedule.name))

    def _note(self, schedule: Schedule, entry: Due, records: dict[str, Record], state: str, note: str) -> None:
        key = _key(schedule.name, entry.at, 1)
        record = {"at": entry.at.isoformat(), "attempt": 1, "state": state, "job": "", "note": note, "passed": entry.passed}
        self.ledger.create(key, record)
        records[key] = record

    def _start(
        self, schedule: Schedule, at: datetime, attempt: int, passed: int, records: dict[str, Record], session: str, now: datetime
    ) -> None:
        """Claim a time, and submit its job if no other scheduler has claimed it."""
        key, job = _key(schedule.name, at, attempt), f"{schedule.name}-{at.strftime(STAMP)}-{attempt}"
        record = {
            "at": at.isoformat(), "attempt": attempt, "state": "claimed", "job": job, "note": "", "passed": passed,
            "claimed": now.isoformat(), "session": session,
        }  # fmt: skip
        claimed = self.ledger.create(key, record)
        records[key] = record  # counts as running, also when another scheduler has claimed it
        if claimed:
            self._submit(schedule, key, record)

    def _submit(self, schedule: Schedule, key: str, record: Record) -> None:
        command = tuple(word.replace(RUN, record["job"].rpartition("-")[0]) for word in schedule.command)
        try:
            self.cluster.submit(record["job"], command, schedule.working_dir)
        except (RuntimeError, ValueError) as error:
            if self.cluster.status(record["job"]) is None:  # else another scheduler has taken the claim over just before
                self._set(key, record, "failed", f"the cluster refuses it ({str(error).splitlines()[0][:200]})")
                return
        self._set(key, record, "submitted")

    def _set(self, key: str, record: Record, state: str, note: str = "") -> None:
        record |= {"state": state, "note": note}
        self.ledger.put(key, record)
        say(f"{record['job']}: {state}{f', {note}' if note else ''}")

    def _forget(self, records: dict[str, Record]) -> None:
        """Delete the oldest records; the newest must stay: they say up to which time all is done."""
        ended = [key for key, record in sorted(records.items()) if record["state"] not in OPEN]
        for key in ended[: max(0, len(ended) - KEPT)]:
            self.ledger.delete(key)
            self._ended.pop(key, None)


def schedules(ledger: Ledger) -> list[Schedule]:
    """All schedules, by name; also those that were removed while a job of theirs still ran."""
    names = ledger.names("schedules")
    return [_schedule(record, f"{ledger.url}/{name}") for name in names if (record := ledger.get(name)) is not None]


def current(ledger: Ledger) -> list[Schedule]:
    """The schedules that were not removed, by name."""
    return [schedule for schedule in schedules(ledger) if not schedule.removed]


def _schedule(record: Record, where: str) -> Schedule:
    try:
        created = _parsed(record["created"]).astimezone(UTC)
        return Schedule(**{**record, "command": tuple(map(str, record["command"])), "created": created})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClusterError("the record of a schedule is damaged", where, "remove the schedule, and add it again") from error


def start_record(ledger: Ledger, key: str) -> Record | None:
    """The record of one start, or None. Raises ClusterError for a damaged one."""
    record = ledger.get(key)
    if record is None:
        return None
    times_of = ("at", "claimed") if record.get("state") in OPEN else ("at",)
    session = ("session",) if record.get("state") in OPEN else ()
    right = all(isinstance(record.get(name), str) for name in ("state", "job", "note", *times_of, *session))
    try:
        right = right and all(_parsed(record[name]).tzinfo for name in times_of)
    except ValueError:
        right = False
    if not right or not isinstance(record.get("attempt"), int) or not isinstance(record.get("passed"), int):
        raise ClusterError("the record of a start is damaged", f"{ledger.url}/{key}", "remove it")
    return record


def check_clock(here: datetime, there: datetime, where: str) -> None:
    """Raises ClusterError when this machine's time differs from the cluster's by more than `SKEW`: jobs would start wrongly."""
    if abs(here - there) > SKEW:
        side = "ahead of" if here > there else "behind"
        what = f"this machine's clock is {span(abs(here - there).total_seconds())} {side} the cluster's: no job is started"
        raise ClusterError(what, where, "set the clock that is wrong, best by NTP")


def _place(name: str) -> str:
    return f"schedules/{name}.json"


def _key(name: str, at: datetime, attempt: int) -> str:
    return f"starts/{name}/{at.strftime(STAMP)}.{attempt:03d}.json"


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(text)


def say(text: str) -> None:
    """Print a line of the scheduler's log."""
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {text}", flush=True)


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
        if not ledger.create(_place(self.name), record):
            if not (ledger.get(_place(self.name)) or {}).get("removed"):
                raise ClusterError(f"the name '{self.name}' is in use", ledger.url, "remove it first, or choose another")
            ledger.put(_place(self.name), record)
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
        ledger.put(_place(self.name), {**(ledger.get(_place(self.name)) or {}), "removed": "stop" if self.stop else "follow"})
        records = [record for key in ledger.names(f"starts/{self.name}") if (record := start_record(ledger, key))]
        for job in [record["job"] for record in records if record["state"] in OPEN]:
            print(f"{job} {'is stopped by the next scheduler that looks' if self.stop else 'still runs: --stop stops it, too'}")


@dataclass(frozen=True)
class History(Stored):
    """List the times of a schedule, with the state of each job."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""

    def run(self) -> None:
        """Print the table."""
        ledger, table = self.ledger, Table(box=None, header_style="dim")
        keys = ledger.names(f"starts/{self.name}") if self.name else []
        if not keys:
            check_known(ledger, self.name)
        for name in ("time (UTC)", "attempt", "state", "job", "missed before", "note"):
            table.add_column(name, overflow="fold")
        for record in (record for key in keys if (record := start_record(ledger, key))):
            passed = str(record["passed"] or "")
            table.add_row(record["at"][:19], str(record["attempt"]), record["state"], record["job"], passed, record["note"])
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
