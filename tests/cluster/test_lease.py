"""The lease on a run's folder: one driver at a time, a dead one's is taken over, and one that was taken over ends."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import lease
from cluster.config import ClusterConfig
from cluster.errors import ClusterError, UnreachableError
from cluster.launch import claimed
from cluster.ledger import open_ledger
from cluster.status import Watch, drivers_table, print_table

HOLDER = """
import sys
from cluster import lease
from cluster.errors import ClusterError
lease.RENEW_S = 0.2
with lease.held(sys.argv[1], "run") as held:
    print("held", flush=True)
    input()
    try:
        held.check()
    except ClusterError as error:
        print(error)
"""


@pytest.fixture(params=["folder", "S3"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "folder" else str(request.getfixturevalue("s3_url"))


@contextmanager
def holder(runs: str) -> Iterator["subprocess.Popen[str]"]:
    """Another driver, which holds the lease; it checks it once a line comes, and ends."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, runs], stdin=-1, stdout=-1, text=True) as process:  # pipes
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process takes itself for one of another machine."""
    monkeypatch.setattr(lease, "_system", lambda: "another machine")
    monkeypatch.setattr(lease, "STALE_S", 3.0)


def records(runs: str) -> list[str]:
    return open_ledger(f"{runs}/run").names("lease")


def test_a_second_driver_is_refused_in_a_line_and_may_begin_when_the_first_has_ended(runs: str) -> None:
    with holder(runs) as other:
        with pytest.raises(ClusterError) as caught, lease.held(runs, "run"):
            pass
        line = str(caught.value)
        assert line.startswith(f"'run' is under way: process {other.pid} on ")
        assert line.endswith(f" s ago: {runs}/run; stop it first, or choose another --name")
        other.communicate("\n")
    for token in (2, 3):
        with lease.held(runs, "run") as held:
            held.check()
            assert records(runs) == [f"lease/{token:08d}.json"]


def test_a_killed_driver_of_this_machine_is_replaced_at_once(runs: str) -> None:
    with holder(runs) as other:
        other.kill()
        other.wait()
        began = time.monotonic()
        with lease.held(runs, "run"):
            assert time.monotonic() - began < lease.STALE_S / 10


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_elsewhere_is_refused_as_soon_as_this_one_renews_its_lease(
    runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "'run' is under way: process "
    with holder(runs), pytest.raises(ClusterError, match=message), lease.held(runs, "run"):
        pass
    assert "may be under way" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_that_does_not_renew_its_lease_is_taken_over_and_ends_when_it_wakes_up(runs: str) -> None:
    with holder(runs) as other:
        other.send_signal(signal.SIGSTOP)
        with lease.held(runs, "run") as held:
            other.send_signal(signal.SIGCONT)
            out, _ = other.communicate("\n")
            assert out.startswith("'run' was taken over by process ")
            assert out.count("\n") == 1
            held.check()
            names = records(runs)
            assert names[-1] == "lease/00000002.json"  # what the other one has written since is of no account


@pytest.mark.usefixtures("elsewhere")
def test_one_that_was_dead_for_long_is_replaced_at_once(tmp_path: Path) -> None:
    with holder(str(tmp_path)) as other:
        other.kill()
        other.wait()
    time.sleep(lease.STALE_S)
    began = time.monotonic()
    with lease.held(str(tmp_path), "run"):
        assert time.monotonic() - began < lease.STALE_S / 2


def test_where_the_records_were_deleted_by_hand_one_of_two_drivers_ends(runs: str) -> None:
    with lease.held(runs, "run") as first:
        open_ledger(f"{runs}/run").delete(records(runs)[0])
        first.check()
        with lease.held(runs, "run") as second:
            second.check()
            with pytest.raises(ClusterError, match="taken over"):
                first.check()


def test_one_of_many_gets_it(runs: str) -> None:
    everybody = threading.Barrier(8)

    def claim(_: int) -> str:
        try:
            with claimed(ClusterConfig(), "run", runs):
                everybody.wait(60)
                return ""
        except ClusterError as error:
            everybody.wait(60)
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(claim, range(8)))
    assert answers[0] == ""
    assert all("'run' is under way" in answer for answer in answers[1:])


def test_a_refused_step_leaves_the_lease_free(runs: str) -> None:
    for _ in range(2):
        with pytest.raises(ClusterError, match="no checkpoint of step 7"), claimed(ClusterConfig(), "run", runs, 7):
            pass


def test_an_unreachable_storage_is_a_passing_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Ray the workers then try again from the newest checkpoint."""
    with lease.held(s3_url, "run"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(UnreachableError, match="EndpointConnectionError") as caught:
            lease.Lease(s3_url, "run", 1, "some driver").check()
        assert caught.value.transient


def test_status_shows_who_trains_in_a_folder(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> list[str]:
        Watch(runs=runs).run()
        return capsys.readouterr().out.splitlines()[1:]

    assert rows() == []
    with lease.held(runs, "ended"):
        pass
    with holder(runs) as other, lease.held(runs, "own"):
        own, run = rows()
        assert own.split()[:2] == ["own", "process"]
        assert run.split()[:4] == ["run", "process", str(other.pid), "on"]
        assert run.rstrip().endswith(" s ago")
    print_table(drivers_table([("run", "process 1 on a", 2 * lease.STALE_S)]))
    assert "6:00 min ago (dead or cut off: --resume takes the run over)" in capsys.readouterr().out
