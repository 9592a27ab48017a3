"""Recurring jobs on the cluster.

    python -m cluster.schedule add nightly "0 3 * * *" --zone Europe/Berlin -- python trainers/reid.py --data s3://bucket/market1501
    python -m cluster.schedule run         start them when due, until Ctrl-C; several of these may run at a time
    python -m cluster.schedule list | history NAME | remove NAME

Schedules and what became of each time are records in --store (a folder or s3://bucket/prefix), which outlives schedulers and
clusters. Before a job is submitted its time is claimed by creating a record, which only one scheduler can; the job's id is made
from the time, so that the cluster refuses it a second time. A claim whose scheduler died is taken over, under the same id, unless
the cluster has begun another life since: then nobody knows whether the job ran, and it is lost rather than started twice.
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

from cluster.cron import Due, Schedule, due, times
from cluster.errors import ClusterError, run_main
from cluster.jobs import AWAY, RUNNING, Jobs
from cluster.ledger import Ledger, Record, open_ledger
from datasets.command_line import POSITIONAL, parse, take_verb

PROGRAM = "python -m cluster.schedule"
STAMP = "%Y%m%dT%H%M%SZ"
LEASE = timedelta(minutes=1)  # after which a claim is another scheduler's to take over
KEPT = 200  # records of a schedule that has ended
OPEN = ("claimed", "submitted")
ENDED = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}


class Cluster(Protocol):
    """What a scheduler needs of `cluster.jobs.Jobs`."""

    def session(self) -> str: ...
    def submit(self, job: str, command: tuple[str, ...], working_dir: str) -> None: ...
    def status(self, job: str) -> str | None: ...
    def stop(self, job: str) -> None: ...


class Scheduler:
    """Starts what is due; `turn` is called every few seconds, in any number of processes."""

    def __init__(self, ledger: Ledger, cluster: Cluster) -> None:
        self.ledger, self.cluster = ledger, cluster
        self._ended: dict[str, Record] = {}  # records that change no more

    def turn(self, now: datetime) -> None:
        """Follow the jobs under way, and start what is due at ``now``. Raises the errors of `AWAY` when the cluster is away."""
        session = self.cluster.session()  # first: while the cluster is away no time is claimed
        for schedule in schedules(self.ledger):
            records = self._records(schedule.name)
            for key, record in records.items():
                if record["state"] in OPEN:
                    self._follow(schedule, key, record, session, now)
            self._retry(schedule, records, session, now)
            done = max([schedule.created, *(_parsed(record["at"]) for record in records.values())])
            for entry in due(schedule, done, now):
                self._act(schedule, entry, records, session, now)
            self._forget(records)

    def _records(self, name: str) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for key in self.ledger.names(f"starts/{name}"):
            record = self._ended.get(key) or start_record(self.ledger, key)
            if record is not None:  # else it was forgotten meanwhile
                found[key] = record
                if record["state"] not in OPEN:
                    self._ended[key] = record
        return found

    def _follow(self, schedule: Schedule, key: str, record: Record, session: str, now: datetime) -> None:
        """Bring the record of a job under way up to date, and take over a claim that its scheduler left."""
        status = self.cluster.status(record["job"])
        if status in ENDED:
            self._set(key, record, ENDED[status])
        elif status is not None and record["state"] == "claimed":
            self._set(key, record, "submitted")
        elif status is None and record["session"] != session:
            self._set(key, record, "lost", "the cluster began another life")
        elif status is None and record["state"] == "submitted":
            self._set(key, record, "lost", "the cluster does not know it any more")
        elif status is None and now - _parsed(record["claimed"]) > LEASE:
            self._submit(schedule, key, record)

    def _retry(self, schedule: Schedule, records: dict[str, Record], session: str, now: datetime) -> None:
        """Start the newest time again when it failed and may be retried."""
        newest = max(records.values(), key=lambda record: (record["at"], record["attempt"]), default=None)
        if newest and newest["state"] in ("failed", "lost") and newest["attempt"] <= schedule.retries:
            self._start(schedule, _parsed(newest["at"]), newest["attempt"] + 1, 0, records, session, now)

    def _act(self, schedule: Schedule, entry: Due, records: dict[str, Record], session: str, now: datetime) -> None:
        running = {key: record for key, record in records.items() if record["state"] in OPEN}
        if not entry.start:
            self._note(schedule, entry, records, "missed", "")
        elif running and schedule.overlap == "forbid":
            self._note(schedule, entry, records, "left out", "the start before it was still running")
        else:
            if schedule.overlap == "replace":
                for record in running.values():
                    if self.cluster.status(record["job"]) in RUNNING:
                        self.cluster.stop(record["job"])
            self._start(schedule, entry.at, 1, entry.passed, records, session, now)

    def _note(self, schedule: Schedule, entry: Due, records: dict[str, Record], state: str, note: str) -> None:
        key = _key(schedule.name, entry.at, 1)
        record = {"at": entry.at.isoformat(), "attempt": 1, "state": state, "job": "", "note": note, "passed": entry.passed}
        self.ledger.create(key, record)
        records[key] = record

    def _start(
        self, schedule: Schedule, at: datetime, attempt: int, passed: int, records: dict[str, Record], session: str, now: datetime
    ) -> None:
        """Claim a time; submit its job if the claim is ours."""
        key, job = _key(schedule.name, at, attempt), f"{schedule.name}-{at.strftime(STAMP)}-{attempt}"
        record = {
            "at": at.isoformat(), "attempt": attempt, "state": "claimed", "job": job, "note": "", "passed": passed,
            "claimed": now.isoformat(), "session": session,
        }  # fmt: skip
        ours = self.ledger.create(key, record)
        records[key] = record  # another's is under way just so
        if ours:
            self._submit(schedule, key, record)

    def _submit(self, schedule: Schedule, key: str, record: Record) -> None:
        try:
            self.cluster.submit(record["job"], schedule.command, schedule.working_dir)
        except (RuntimeError, ValueError) as error:
            if self.cluster.status(record["job"]) is None:  # else another took the claim over a moment earlier
                self._set(key, record, "failed", f"the cluster refuses it ({str(error).splitlines()[0][:200]})")
                return
        self._set(key, record, "submitted")

    def _set(self, key: str, record: Record, state: str, note: str = "") -> None:
        record |= {"state": state, "note": note}
        self.ledger.put(key, record)
        say(f"{record['job']}: {state}{f', {note}' if note else ''}")

    def _forget(self, records: dict[str, Record]) -> None:
        """Remove the oldest records; the newest tell up to when all is done."""
        ended = [key for key, record in sorted(records.items()) if record["state"] not in OPEN]
        for key in ended[: max(0, len(ended) - KEPT)]:
            self.ledger.delete(key)
            self._ended.pop(key, None)


def schedules(ledger: Ledger) -> list[Schedule]:
    """All schedules, by name."""
    names = ledger.names("schedules")
    return [_schedule(record, f"{ledger.url}/{name}") for name in names if (record := ledger.get(name)) is not None]


def _schedule(record: Record, where: str) -> Schedule:
    try:
        created = _parsed(record["created"]).astimezone(UTC)
        return Schedule(**{**record, "command": tuple(map(str, record["command"])), "created": created})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClusterError("a damaged record of a schedule", where, "remove the schedule, and add it again") from error


def start_record(ledger: Ledger, key: str) -> Record | None:
    """What became of one start; None where there is no record of it. Raises ClusterError for a damaged one."""
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
        raise ClusterError("a damaged record of a start", f"{ledger.url}/{key}", "remove it")
    return record


def _key(name: str, at: datetime, attempt: int) -> str:
    return f"starts/{name}/{at.strftime(STAMP)}.{attempt:03d}.json"


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(text)


def say(text: str) -> None:
    """A line of the scheduler's log."""
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {text}", flush=True)


@dataclass(frozen=True)
class Stored:
    """Where the schedules are."""

    store: str = ""
    """A folder that all schedulers see, or s3://bucket/prefix; empty: $HARDSHARD_SCHEDULES, else ./schedules."""

    @property
    def ledger(self) -> Ledger:
        """Opened."""
        return open_ledger(self.store or os.environ.get("HARDSHARD_SCHEDULES", "") or str(Path("schedules").absolute()))


@dataclass(frozen=True)
class Add(Stored):
    """Add a schedule: NAME "CRON" -- COMMAND ..."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""
    cron: str = field(default="", metadata=POSITIONAL)
    """Five fields: minute, hour, day of the month, month, day of the week."""
    zone: str = "UTC"
    """The time zone that it is meant in, such as Europe/Berlin."""
    overlap: Literal["forbid", "allow", "replace"] = "forbid"
    """While the last start still runs: leave a time out, start beside it, or stop it first."""
    missed: Literal["last", "all", "skip"] = "last"
    """Of the times that passed while no scheduler ran: make up for the last one, for all (with overlap allow), for none."""
    retries: int = 0
    """Starts after a failed one, of the same time."""
    working_dir: str = ""
    """A folder or URI of the code to ship with each start; empty: the nodes have it."""

    def run(self, command: tuple[str, ...]) -> None:
        """Store it; refuses a name in use."""
        settings = {name: value for name, value in asdict(self).items() if name != "store"}
        schedule = Schedule(**settings, command=command, created=datetime.now(UTC))
        ledger = self.ledger
        if not ledger.create(f"schedules/{self.name}.json", {**asdict(schedule), "created": schedule.created.isoformat()}):
            raise ClusterError(f"the name '{self.name}' is in use", ledger.url, "remove it first, or choose another")
        print(f"{self.name}: first at {_shown(schedule, next(times(schedule, schedule.created)))}")


@dataclass(frozen=True)
class List(Stored):
    """List the schedules, when they are next due, and what became of the last start."""

    def run(self) -> None:
        """Print the table."""
        ledger, table = self.ledger, Table(box=None, header_style="dim")
        for name in ("name", "cron", "next", "overlap", "missed", "retries", "last", "command"):
            table.add_column(name, overflow="fold")
        for schedule in schedules(ledger):
            last = [record for key in ledger.names(f"starts/{schedule.name}")[-1:] if (record := start_record(ledger, key))]
            told = f"{last[0]['at'][:16]} {last[0]['state']}" if last else "never"
            row = (schedule.name, schedule.cron, _shown(schedule, next(times(schedule, datetime.now(UTC)))), schedule.overlap)
            table.add_row(*row, schedule.missed, str(schedule.retries), told, " ".join(schedule.command))
        print_table(table)


@dataclass(frozen=True)
class Remove(Stored):
    """Remove a schedule; what runs goes on, its history stays."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""

    def run(self) -> None:
        """Remove it."""
        known(self.ledger, self.name)
        self.ledger.delete(f"schedules/{self.name}.json")


@dataclass(frozen=True)
class History(Stored):
    """Tell what became of each time of a schedule."""

    name: str = field(default="", metadata=POSITIONAL)
    """The schedule's name."""

    def run(self) -> None:
        """Print the table."""
        ledger, table = self.ledger, Table(box=None, header_style="dim")
        keys = ledger.names(f"starts/{self.name}") if self.name else []
        if not keys:
            known(ledger, self.name)
        for name in ("time (UTC)", "attempt", "state", "job", "missed before", "note"):
            table.add_column(name, overflow="fold")
        for record in (record for key in keys if (record := start_record(ledger, key))):
            passed = str(record["passed"] or "")
            table.add_row(record["at"][:19], str(record["attempt"]), record["state"], record["job"], passed, record["note"])
        print_table(table)


@dataclass(frozen=True)
class Start(Stored):
    """Start what is due, until Ctrl-C."""

    address: str = ""
    """The cluster's dashboard, http://host:8265; empty: RAY_ADDRESS, or this machine's."""
    every: float = 5.0
    """Seconds between two looks."""

    def run(self) -> None:
        """Look again and again; what fails for a while is said once and tried again."""
        if not self.every > 0:
            raise ClusterError(f"every is {self.every}", "--every", "give seconds above 0")
        ledger, cluster = self.ledger, Jobs(self.address)
        ledger.put("scheduler.json", {"begun": datetime.now(UTC).isoformat()})  # shows at once whether the storage can be written
        say(f"{len(schedules(ledger))} schedules in {ledger.url}, cluster {cluster.address}")
        scheduler, trouble = Scheduler(ledger, cluster), ""
        while True:
            try:
                scheduler.turn(datetime.now(UTC))
                said = ""
            except ClusterError as error:
                said = str(error)
            except (*AWAY, RuntimeError) as error:
                said = f"the cluster is away ({type(error).__name__})"
            if said != trouble:
                say(said or "all is well again")
                trouble = said
            time.sleep(self.every)


def known(ledger: Ledger, name: str) -> None:
    """Raises ClusterError when there is no schedule of that name."""
    names = [schedule.name for schedule in schedules(ledger)]
    if name not in names:
        raise ClusterError(f"no schedule '{name}'", ledger.url, f"there are: {', '.join(names) or 'none'}")


def print_table(table: Table) -> None:
    """A table, folded at a terminal's width only."""
    Console(width=None if sys.stdout.isatty() else 250, markup=False, highlight=False).print(table)


def _shown(schedule: Schedule, at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z" + (f" ({schedule.zone})" if schedule.zone != "UTC" else "")


def main() -> None:
    """The command line."""
    arguments, command = sys.argv[1:], tuple[str, ...]()
    if "--" in arguments:
        place = arguments.index("--")
        arguments, command = arguments[:place], tuple(arguments[place + 1 :])
    verbs = {"add": Add, "list": List, "remove": Remove, "history": History, "run": Start}
    name = take_verb(PROGRAM, __doc__ or "", verbs, arguments)
    verb: Any = parse(verbs[name], f"{PROGRAM} {name}", arguments)
    if isinstance(verb, Add):
        verb.run(command)
    elif command:
        raise ClusterError("a command stands behind -- only with add", " ".join(command))
    else:
        verb.run()


if __name__ == "__main__":
    run_main(main)
