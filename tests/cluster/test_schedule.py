"""Scheduling: each time's job starts once, whatever fails. The last tests run on a real cluster."""

import itertools
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Head
from s3server import free_ports

from cluster.cron import Schedule
from cluster.errors import ClusterError, run_main
from cluster.jobs import Jobs
from cluster.ledger import Ledger, open_ledger
from cluster.schedule import Add, History, Remove, main
from cluster.scheduler import KEPT, LEASE, Scheduler, check_clock, current

BEGIN = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[2]


class Memory:
    """A pretended cluster: jobs end when the test ends them; as in Ray, an id is accepted once, until the head restarts."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.life, self.submitted, self.refused = 1, list[str](), list[str]()
        self.commands = list[tuple[str, ...]]()
        self.lock = threading.Lock()

    def session(self) -> str:
        return str(self.life)

    def submit(self, job: str, command: tuple[str, ...], working_dir: str) -> None:
        with self.lock:
            if job in self.jobs:
                self.refused.append(job)
                raise RuntimeError("the id is in use")
            self.jobs[job] = "RUNNING"
            self.submitted.append(job)
            self.commands.append(command)

    def status(self, job: str) -> str | None:
        return self.jobs.get(job)

    def ending(self, job: str) -> str:
        return "exit code 2: error: no run"

    def stop(self, job: str) -> None:
        self.jobs[job] = "STOPPED"

    def restart(self) -> None:
        self.life += 1
        self.jobs.clear()


def add(ledger: Ledger, name: str = "nightly", cron: str = "0 * * * *", **changes: Any) -> None:
    schedule = Schedule(name, cron, **{"command": ("echo", "hello"), "created": BEGIN, **changes})
    ledger.put(f"schedules/{name}.json", {**asdict(schedule), "created": BEGIN.isoformat()})


def states(ledger: Ledger, name: str = "nightly") -> list[str]:
    records = [ledger.get(key) for key in ledger.names(f"starts/{name}")]
    return [f"{record['at'][11:13]}.{record['attempt']} {record['state']}" for record in records if record]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(str(tmp_path))


def test_a_time_starts_one_job_and_its_end_is_recorded(ledger: Ledger) -> None:
    add(ledger)
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    scheduler.turn(BEGIN + timedelta(minutes=59))
    assert cluster.submitted == []
    for seconds in (0, 5, 10):
        scheduler.turn(BEGIN + HOUR + timedelta(seconds=seconds))
    assert cluster.submitted == ["nightly-20260310T130000Z-1"]
    assert states(ledger) == ["13.1 submitted"]
    cluster.jobs["nightly-20260310T130000Z-1"] = "SUCCEEDED"
    Scheduler(ledger, cluster).turn(BEGIN + HOUR + timedelta(seconds=15))  # another one, after the first was stopped
    assert states(ledger) == ["13.1 succeeded"]


def test_history_shows_the_run_and_why_it_failed(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(ledger, command=("train", "--name", "{run}"))
    cluster = Memory()
    for seconds in (0, 5):
        Scheduler(ledger, cluster).turn(BEGIN + HOUR + timedelta(seconds=seconds))
        cluster.jobs.update(dict.fromkeys(cluster.jobs, "FAILED"))
    History(store=str(tmp_path), name="nightly").run()
    *_, heads, row = capsys.readouterr().out.splitlines()  # the scheduler has logged to the same place
    assert heads.split()[:5] == ["time", "(UTC)", "attempt", "state", "run"]
    run = "nightly-20260310T130000Z"
    assert row.split() == ["2026-03-10T13:00:00", "1", "failed", run, f"{run}-1", "exit", "code", "2:", "error:", "no", "run"]


@pytest.mark.parametrize(
    ("overlap", "running", "recorded"),
    [
        ("forbid", ["13-1"], ["13.1 submitted", "14.1 left out"]),
        ("allow", ["13-1", "14-1"], ["13.1 submitted", "14.1 submitted"]),
        ("replace", ["14-1"], ["13.1 stopped", "14.1 submitted"]),
    ],
)
def test_overlap(ledger: Ledger, overlap: Any, running: list[str], recorded: list[str]) -> None:
    add(ledger, overlap=overlap)
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    for hours in (1, 2, 2):
        scheduler.turn(BEGIN + hours * HOUR)
    alive = [job for job, status in cluster.jobs.items() if status == "RUNNING"]
    assert alive == [f"nightly-20260310T{job.replace('-', '0000Z-')}" for job in running]
    assert states(ledger) == recorded


def test_a_failed_job_is_retried(ledger: Ledger) -> None:
    add(ledger, retries=1)
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    for _ in range(4):
        scheduler.turn(BEGIN + HOUR)
        cluster.jobs.update(dict.fromkeys(cluster.jobs, "FAILED"))
    assert states(ledger) == ["13.1 failed", "13.2 failed"]


def test_a_scheduler_whose_clock_is_ahead_does_not_silence_the_others(ledger: Ledger) -> None:
    add(ledger, overlap="allow")
    cluster = Memory()
    Scheduler(ledger, cluster).turn(BEGIN + timedelta(days=1))
    assert states(ledger) == ["12.1 submitted"]
    Scheduler(ledger, cluster).turn(BEGIN + HOUR)
    assert states(ledger) == ["13.1 submitted", "12.1 submitted"]


@pytest.mark.parametrize(("seconds", "words"), [(86400, "1 d 0 h ahead of"), (-40, "40 s behind"), (25, ""), (-25, "")])
def test_a_clock_that_is_off_is_named(seconds: int, words: str) -> None:
    here = BEGIN + timedelta(seconds=seconds)
    if not words:
        check_clock(here, BEGIN, "http://head:8265")
        return
    with pytest.raises(
        ClusterError, match=f"this machine's clock is {words} the cluster's: no job is started: http://head:8265; set"
    ):
        check_clock(here, BEGIN, "http://head:8265")


@pytest.mark.parametrize("stop", [False, True])
def test_a_removed_schedule_ends_with_its_last_job(stop: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, cluster, job = open_ledger(str(tmp_path)), Memory(), "nightly-20260310T130000Z-1"
    add(ledger, retries=1)
    scheduler = Scheduler(ledger, cluster)
    scheduler.turn(BEGIN + HOUR)
    Remove(str(tmp_path), name="nightly", stop=stop).run()
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{job} {'is stopped by' if stop else 'still runs'}")
    assert current(ledger) == []
    scheduler.turn(BEGIN + 2 * HOUR)
    assert cluster.jobs == {job: "STOPPED" if stop else "RUNNING"}
    cluster.jobs[job] = "STOPPED" if stop else "FAILED"
    scheduler.turn(BEGIN + 3 * HOUR)
    assert states(ledger) == [f"13.1 {'stopped' if stop else 'failed'}"]
    assert ledger.names("schedules") == []


def test_a_removed_schedules_name_can_be_used_again(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger)
    cluster = Memory()
    Scheduler(ledger, cluster).turn(BEGIN + HOUR)
    Remove(str(tmp_path), name="nightly").run()
    with pytest.raises(ClusterError, match="no schedule 'nightly'"):
        Remove(str(tmp_path), name="nightly").run()
    Add(str(tmp_path), name="nightly", cron="0 0 * * *").run(("true",))
    Scheduler(ledger, cluster).turn(BEGIN + 2 * HOUR)
    assert [schedule.cron for schedule in current(ledger)] == ["0 0 * * *"]


def test_missed_times_are_recorded(ledger: Ledger) -> None:
    add(ledger, missed="skip")
    Scheduler(ledger, Memory()).turn(BEGIN + 3 * HOUR + timedelta(minutes=30))
    assert states(ledger) == ["15.1 missed"]
    (key,) = ledger.names("starts/nightly")
    assert (ledger.get(key) or {})["passed"] == 2


def claimed(ledger: Ledger, cluster: Memory, cause: type[BaseException] = KeyboardInterrupt) -> None:
    """Leave a claim without a job, as of a scheduler that died after its claim, or whose cluster did not take the job."""

    class Dies(Memory):
        def submit(self, job: str, command: tuple[str, ...], working_dir: str) -> None:
            raise cause

    dying = Dies()
    dying.life = cluster.life
    with pytest.raises(cause):
        Scheduler(ledger, dying).turn(BEGIN + HOUR)


@pytest.mark.parametrize("cause", [KeyboardInterrupt, ConnectionError])
def test_a_claim_without_a_job_is_taken_over(ledger: Ledger, cause: type[BaseException]) -> None:
    add(ledger)
    cluster = Memory()
    claimed(ledger, cluster, cause)
    scheduler = Scheduler(ledger, cluster)
    scheduler.turn(BEGIN + HOUR + timedelta(seconds=30))
    assert cluster.submitted == []  # it may be alive yet
    scheduler.turn(BEGIN + HOUR + LEASE + timedelta(seconds=1))
    assert cluster.submitted == ["nightly-20260310T130000Z-1"]
    assert states(ledger) == ["13.1 submitted"]


def test_a_claim_from_before_the_clusters_restart_is_lost_not_started_twice(ledger: Ledger) -> None:
    add(ledger)
    cluster = Memory()
    claimed(ledger, cluster)
    cluster.restart()
    Scheduler(ledger, cluster).turn(BEGIN + HOUR + 2 * LEASE)
    assert cluster.submitted == []
    assert states(ledger) == ["13.1 lost"]


def test_schedules_survive_a_restart_of_the_head(ledger: Ledger) -> None:
    add(ledger)
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    scheduler.turn(BEGIN + HOUR)
    cluster.restart()
    scheduler.turn(BEGIN + HOUR + LEASE)
    scheduler.turn(BEGIN + 2 * HOUR)
    assert states(ledger) == ["13.1 lost", "14.1 submitted"]
    assert len(cluster.submitted) == 2


def test_a_job_that_the_cluster_refuses_has_failed(ledger: Ledger) -> None:
    class Refuses(Memory):
        def submit(self, job: str, command: tuple[str, ...], working_dir: str) -> None:
            raise RuntimeError("no such working_dir")

    add(ledger)
    Scheduler(ledger, Refuses()).turn(BEGIN + HOUR)
    assert states(ledger) == ["13.1 failed"]


def test_all_attempts_of_a_time_are_of_one_run(ledger: Ledger) -> None:
    add(ledger, retries=1, command=("train", "--name", "{run}", "--resume", "auto"))
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    for after in (HOUR, HOUR + timedelta(minutes=5), 2 * HOUR):
        scheduler.turn(BEGIN + after)
        cluster.jobs.update(dict.fromkeys(cluster.jobs, "FAILED"))
    assert [command[2] for command in cluster.commands] == [*["nightly-20260310T130000Z"] * 2, "nightly-20260310T140000Z"]
    assert cluster.commands[0] == ("train", "--name", "nightly-20260310T130000Z", "--resume", "auto")


def test_who_adds_retries_without_a_run_to_resume_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, retries, command in (("a", 1, ("train",)), ("b", 1, ("train", "--name={run}")), ("c", 0, ("train",))):
        Add(str(tmp_path), name, "0 3 * * *", retries=retries).run(command)
    assert [line for line in capsys.readouterr().out.splitlines() if "note" in line] == [
        "note: a retry trains from the start; with `--name {run} --resume auto` in the command it resumes the run"
    ]


def test_old_records_are_deleted(ledger: Ledger) -> None:
    add(ledger, cron="* * * * *", missed="all", overlap="allow")
    cluster = Memory()
    scheduler = Scheduler(ledger, cluster)
    now = BEGIN
    for _ in range(KEPT + 20):
        now += timedelta(minutes=1)
        scheduler.turn(now)
        cluster.jobs.update(dict.fromkeys(cluster.jobs, "SUCCEEDED"))
    assert KEPT <= len(ledger.names("starts/nightly")) <= KEPT + 1
    assert len(set(cluster.submitted)) == len(cluster.submitted) == KEPT + 20


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_many_schedulers_start_each_time_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Six concurrent schedulers on one ledger: every time of three schedules starts exactly once."""
    url = str(tmp_path) if kind == "folder" else request.getfixturevalue("s3_url")
    cluster = Memory()
    for name in ("a", "b", "c"):
        add(open_ledger(url), name, "*/10 * * * *", overlap="allow")

    together = threading.Barrier(6)  # at every turn: their clocks differ by seconds, and a claim is taken over after a minute

    def work(seed: int) -> None:
        scheduler = Scheduler(open_ledger(url), cluster)
        for minutes in range(10, 60, 10):
            together.wait(60)
            scheduler.turn(BEGIN + timedelta(minutes=minutes, seconds=seed))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    wanted = {f"{name}-20260310T12{minutes}00Z-1" for name, minutes in itertools.product("abc", range(10, 60, 10))}
    assert sorted(cluster.submitted) == sorted(wanted)
    assert not cluster.refused  # the ledger let one try, not the cluster


def schedule(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.schedule", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "a", "0 0 30 2 *", "--", "true"], "never fires"),
        (["add", "taken", "0 0 * * *", "--", "true"], "the name 'taken' is in use"),
        (["add", "a", "0 0 * * *"], "there is no command to run"),
        (["add", "a", "0 0 * * *", "--store", "/proc/x", "--", "true"], "cannot be read or written"),
        (["remove", "nobody"], "no schedule 'nobody'"),
        (["history", "nobody"], "no schedule 'nobody'"),
        (["run", "--address", "http://127.0.0.1:1"], "no Ray cluster answers"),
        (["run", "--address", "localhost"], "not the address of a job API"),
        (["list", "--", "true"], "only for add"),
        (["run", "--metrics-port", "70000"], "metrics_port is 70000"),
        (["run", "--metrics-file", "a.txt"], "node exporter reads files that end in .prom"),
    ],
)
def test_wrong_options_end_with_2_and_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(open_ledger(str(tmp_path)), "taken")
    if "--store" not in arguments:
        arguments = [arguments[0], "--store", str(tmp_path), *arguments[1:]]
    monkeypatch.setattr(sys, "argv", ["schedule", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def wait(reached: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.5)


@pytest.mark.slow
def test_two_schedulers_on_a_real_cluster_start_a_job_once(tmp_path: Path, head: Head) -> None:
    """The command contains shell syntax, which must reach the program unchanged."""
    store, log = str(tmp_path / "store"), tmp_path / "log; touch owned"
    code = f"import sys; open({str(log)!r}, 'a').write(sys.argv[1] + chr(10))"
    added = schedule("add", "--store", store, "yearly", "0 0 1 1 *", "--", sys.executable, "-c", code, "$(id); `id` 'x'")
    assert added.returncode == 0, added.stderr
    ledger = open_ledger(store)
    record = ledger.get("schedules/yearly.json") or {}
    ledger.put("schedules/yearly.json", {**record, "created": "2000-01-01T00:00:00+00:00"})  # so that it is due
    command = [sys.executable, "-m", "cluster.schedule", "run", "--store", store, "--address", head.jobs, "--every", "0.5"]
    ports = free_ports(2)
    schedulers = [
        subprocess.Popen([*command, "--metrics-port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for port in ports
    ]
    try:
        wait(lambda: states(ledger, "yearly") == ["00.1 succeeded"])
        time.sleep(2)
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert 'hardshard_schedule_jobs{schedule="yearly",state="succeeded"} 1.0' in answer.read().decode()
    finally:
        for scheduler in schedulers:
            scheduler.kill()
            scheduler.communicate()
    assert log.read_text() == "$(id); `id` 'x'\n"
    history = schedule("history", "--store", store, "yearly").stdout
    assert "succeeded" in history
    assert schedule("remove", "--store", store, "yearly").returncode == 0
    assert "yearly" not in schedule("list", "--store", store).stdout


def test_the_job_api(head: Head, tmp_path: Path) -> None:
    jobs = Jobs(head.jobs)
    assert jobs.session().startswith("session_")
    assert jobs.status("never-was") is None
    jobs.submit("once", ("sleep", "60"), "")
    with pytest.raises(RuntimeError, match="already exists"):
        jobs.submit("once", ("sleep", "60"), "")
    wait(lambda: jobs.status("once") == "RUNNING")
    patient = f"trap 'sleep 5; touch {tmp_path}/ended; exit 143' TERM; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    jobs.submit("slow", ("sh", "-c", patient), "")
    wait(lambda: (tmp_path / "begun").exists())
    jobs.stop("slow")
    jobs.submit("torn", ("sh", "-c", "echo begun; echo error: a line >&2; exit 3"), "")
    jobs.stop("once")
    wait(lambda: jobs.status("once") == "STOPPED")
    wait(lambda: jobs.status("torn") == "FAILED")
    assert jobs.ending("torn") == "exit code 3: error: a line"
    wait(lambda: jobs.status("slow") == "STOPPED")
    assert (tmp_path / "ended").exists()


def test_a_scheduler_whose_clock_is_off_does_not_start(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr("cluster.schedule.datetime", Ahead)
    monkeypatch.setattr(sys, "argv", ["schedule", "run", "--store", str(tmp_path / "store"), "--address", head.jobs])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert error.startswith("error: this machine's clock is ")
    assert f"ahead of the cluster's: no job is started: {head.jobs}; set the clock that is wrong" in error
    assert not (tmp_path / "store").exists()


def test_both_addresses_of_a_cluster_work_everywhere(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/scheduling.md exports the dashboard's as RAY_ADDRESS, docs/cluster.md that of the head."""
    for address in (head.address, head.jobs.removeprefix("http://")):
        assert Jobs(address).session() == Jobs(head.jobs).session()
    assert Jobs(head.jobs).head.rpartition(":")[2] == head.address.rpartition(":")[2]
    environment = {**os.environ, "RAY_ADDRESS": head.jobs, "PYTHONPATH": str(ROOT)}
    status = [sys.executable, "-m", "cluster.status", "--once"]
    shown = subprocess.run(status, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "0 runs" in shown.stdout, shown.stderr
    code = "import ray; from cluster.config import *; from cluster.launch import *; connect(ClusterConfig()); print(ray.nodes())"
    joined = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "NodeID" in joined.stdout, joined.stderr
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    refused = subprocess.run(status, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no Ray cluster answers (ConnectionRefusedError): http://127.0.0.1:1; start one")


def test_a_client_of_the_job_api_uses_its_token(head: Head) -> None:
    code = f"from cluster.jobs import Jobs; print(Jobs({head.jobs!r}).session())"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout.startswith("session_"), ended.stderr
