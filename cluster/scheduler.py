"""Starts the jobs of schedules when they are due, once each, and follows them to their end.

Schedules, and the state of each start, are records in a ledger, which outlives schedulers and clusters. A scheduler claims a time
by creating its record, which only one scheduler can do, and then submits the job. The job's id is made from the time, so that the
cluster refuses a second job of the same time. If a scheduler dies after its claim, another takes the claim over and submits the
job, under the same id. If the cluster was restarted in between, nobody knows whether the job ran: it is marked as lost, not
started twice.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol

from cluster.cron import RUN, Due, Schedule, due
from cluster.errors import ClusterError
from cluster.jobs import RUNNING
from cluster.ledger import Ledger, Record
from cluster.schedule_figures import OPEN
from cluster.status import span

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
    def ending(self, job: str) -> str: ...
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
            self._set(key, record, ENDED[status], self.cluster.ending(record["job"]) if status == "FAILED" else "")
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
            self.ledger.delete(place_of(schedule.name))

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
            "claimed": now.isoformat(), "session": session, "run": run_of(job) if RUN in " ".join(schedule.command) else "",
        }  # fmt: skip
        claimed = self.ledger.create(key, record)
        records[key] = record  # counts as running, also when another scheduler has claimed it
        if claimed:
            self._submit(schedule, key, record)

    def _submit(self, schedule: Schedule, key: str, record: Record) -> None:
        command = tuple(word.replace(RUN, run_of(record["job"])) for word in schedule.command)
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


def run_of(job: str) -> str:
    """The name that stands for `RUN` in the command of a job: the same in all attempts."""
    return job.rpartition("-")[0]


def place_of(name: str) -> str:
    """The name of a schedule's record."""
    return f"schedules/{name}.json"


def _key(name: str, at: datetime, attempt: int) -> str:
    return f"starts/{name}/{at.strftime(STAMP)}.{attempt:03d}.json"


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(text)


def say(text: str) -> None:
    """Print a line of the scheduler's log."""
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {text}", flush=True)
