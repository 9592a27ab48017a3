"""Launching under Ray: workers' errors reach the driver, failed workers restart, impossible settings are refused at once."""

import gc
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray._raylet import GcsClient

from cluster import connection, ray_train
from cluster.checkpoint_folder import RAY_SNAPSHOT
from cluster.config import ClusterConfig
from cluster.errors import ClusterError, RunFailedError, StoppedError
from cluster.launch import claimed, connect, launch
from cluster.ledger import open_ledger
from cluster.ray_compat import processes
from cluster.ray_worker import RayWorker
from cluster.storage import storage_uri
from datasets.errors import InputError

TWO = ClusterConfig(workers=2, max_failures=1)

pytestmark = pytest.mark.usefixtures("cluster")


def start(work: Any, runs: Path, config: ClusterConfig = TWO, **settings: Any) -> tuple[Any, list[Any], list[str]]:
    shown, said = list[Any](), list[str]()

    def show(records: list[Any], notices: list[str]) -> None:
        shown.extend(records)
        said.extend(notices)

    with claimed(config, f"run-{uuid.uuid4().hex[:8]}", str(runs)) as folder:
        result = launch(work, settings, config, folder, show)
    return result, shown, said


def sums(worker: RayWorker, settings: dict[str, Any]) -> float:
    total = torch.tensor(float(worker.rank + 1))
    dist.all_reduce(total, group=worker.group)
    worker.say(f"rank {worker.rank} of {worker.world}")
    assert gc.get_freeze_count(), "this process is no fork of one that has imported what it needs"
    if worker.rank == 0:
        worker.record({"step": 1})
    return float(total)


def refuses(worker: RayWorker, settings: dict[str, Any]) -> None:
    with Path(settings["log"]).open("a") as log:
        log.write(f"{worker.rank}\n")
    if worker.rank == 1:
        raise InputError("the set is torn", "s3://b/x", "mend it")
    dist.barrier()


def dies_once(worker: RayWorker, settings: dict[str, Any]) -> int:
    begun = worker.restore(lambda folder: int((folder / "done").read_text()))
    for step in range(begun or 0, 6):
        worker.save(f"step-{step}", lambda folder, step=step: (folder / "done").write_text(str(step + 1)))
        if step == 5 and begun is None and worker.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
    return int(begun or 0)


def counts(worker: RayWorker, settings: dict[str, Any]) -> int:
    """Store a checkpoint for each step up to ``steps``; returns the step that the run went on from."""
    begun = int(worker.restore(lambda folder: int((folder / "done").read_text())) or 0)
    for step in range(begun + 1, int(settings["steps"]) + 1):
        worker.save(f"step-{step:08d}", lambda folder, step=step: (folder / "done").write_text(f"{step}"))
        if "lose" in settings:
            worker.flush()
            open_ledger(settings["lose"]).create("lease/00000099.json", {"host": "other", "process": 1, "since": "now"})
    return begun


def asks(worker: RayWorker, settings: dict[str, Any]) -> int:
    """Count steps with a checkpoint for each, until the run is asked to end; returns the step that the run went on from."""
    begun = int(worker.restore(lambda folder: int((folder / "done").read_text())) or 0)
    for step in range(begun + 1, begun + settings["steps"] + 1):
        worker.record({"step": step})
        asked = worker.asked()
        worker.save(f"step-{step:08d}", lambda folder, step=step: (folder / "done").write_text(f"{step}"))
        if asked == "stop":
            worker.stop(step)
        time.sleep(0.05)
    return begun


def freezes_once(worker: RayWorker, settings: dict[str, Any]) -> None:
    if worker.rank == 1 and not Path(settings["frozen"]).exists():
        time.sleep(1)  # Ray Train waits for the workers' first answers without a limit of ours
        Path(settings["frozen"]).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(2)


def stuck_once(worker: RayWorker, settings: dict[str, Any]) -> None:
    if worker.rank == 1 and not Path(settings["stuck"]).exists():
        Path(settings["stuck"]).touch()
        worker.stuck("no step for 310 s, in queue.py:171 get")
    dist.barrier()


def fails(worker: RayWorker, settings: dict[str, Any]) -> None:
    raise RuntimeError("a fault of ours")


def test_workers_exchange_tensors_and_report(tmp_path: Path) -> None:
    result, shown, said = start(sums, tmp_path)
    assert result == 3.0
    assert shown == [{"step": 1}]
    assert sorted(said) == ["rank 0 of 2", "rank 1 of 2"]


def test_an_input_error_of_one_worker_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        start(refuses, tmp_path, log=str(tmp_path / "log"))
    assert str(caught.value) == "the set is torn: s3://b/x; mend it"
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1"]  # nobody was started again


def test_a_killed_worker_resumes_from_the_checkpoint(tmp_path: Path) -> None:
    result, _, _ = start(dies_once, tmp_path)
    assert 1 <= result <= 6


def test_sigterm_has_all_workers_store_a_checkpoint_and_end(tmp_path: Path) -> None:
    said = list[str]()

    def show(records: list[Any], notices: list[str]) -> None:
        said.extend(notices)
        if records and records[-1]["step"] >= 3 and not said:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with claimed(TWO, "run", str(tmp_path)) as folder, pytest.raises(StoppedError) as stopped:
        launch(asks, {"steps": 10_000}, TWO, folder, show)
    assert signal.getsignal(signal.SIGTERM) is before
    assert said == ["asked to end: the workers store a checkpoint after their current steps"]
    assert stopped.value.step == max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run").glob("step-*"))
    assert f"continue it with: python {sys.argv[0]} --name run --runs {tmp_path} --resume" in str(stopped.value)
    with claimed(TWO, "run", str(tmp_path)) as folder:
        assert launch(asks, {"steps": 1}, TWO, folder, lambda records, notices: None) == stopped.value.step


def test_sigterm_ends_a_run_whose_workers_wait_for_resources(tmp_path: Path) -> None:
    def show(records: list[Any], notices: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # at the notice that the run waits

    config = ClusterConfig(workers=3, cpus=2)
    with claimed(config, "run", str(tmp_path)) as folder, pytest.raises(StoppedError, match="stopped; continue it with"):
        launch(asks, {"steps": 1}, config, folder, show)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "notice"),
    [
        (freezes_once, "failed: rank 1: its process did not answer (--cluster.stuck_s)"),
        (stuck_once, f"rank 1 on {socket.gethostname()} is stuck and is restarted: no step for 310 s, in queue.py:171 get"),
    ],
)
def test_a_worker_that_hangs_is_named_and_the_workers_are_restarted(work: Any, notice: str, tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    _, _, said = start(work, tmp_path, replace(TWO, stuck_s=8), frozen=flag, stuck=flag)
    assert notice in said


@pytest.mark.slow
def test_a_killed_controller_is_replaced_and_the_workers_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    def show(records: list[Any], notices: list[str]) -> None:
        said.extend(notices)
        if records and records[-1]["step"] >= 3 and not said:
            said.append("killed")
            [controller] = processes("TrainController")
            os.kill(controller, signal.SIGKILL)

    said = list[str]()
    with claimed(TWO, "run", str(tmp_path)) as folder:
        assert launch(asks, {"steps": 100}, TWO, folder, show) >= 3
    assert said == ["killed", "failed: Ray Train's controller: its process was killed or crashed"]


@pytest.mark.slow
def test_a_run_goes_on_from_its_newest_whole_checkpoint_whatever_ray_has_noted(tmp_path: Path) -> None:
    """Ray Train's own list of checkpoints may be damaged, and may name checkpoints that are gone."""

    def go_on(steps: int, **settings: Any) -> tuple[int, list[str]]:
        said = list[str]()
        with claimed(one, "run", str(tmp_path)) as folder:
            begun = launch(counts, {"steps": steps, **settings}, one, folder, lambda records, notices: said.extend(notices))
        return begun, [notice for notice in said if "passed over" in notice]

    run, one = tmp_path / "run", ClusterConfig(workers=1)
    assert go_on(3) == (0, [])
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000002", "step-00000003"]
    (run / RAY_SNAPSHOT).write_bytes(b"")
    (run / "step-00000003" / "done").write_bytes(b"")
    passed = "passed over step-00000003 (done has 0 of 1 bytes). The run goes on from step-00000002"
    assert go_on(4) == (2, [passed])
    shutil.rmtree(run / "step-00000004")
    with pytest.raises(ClusterError, match="'run' was taken over by process 1 on other since now"):
        go_on(6, lose=str(run))
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000003", "step-00000004"]


def waits(worker: RayWorker, settings: dict[str, Any]) -> None:
    Path(settings["began"]).touch()
    time.sleep(600)


DRIVER = """
import sys
from pathlib import Path
from cluster.config import ClusterConfig
from cluster.launch import connect
from test_launch import start, waits
connect(ClusterConfig())
start(waits, Path(sys.argv[1]), began=sys.argv[2])
"""


def alive() -> set[str]:
    """The actors of the cluster, with their classes; asked of the control store, as this cluster has no dashboard."""
    states = ray._private.state.actors().values()
    return {f"{state['ActorClassName']} {state['ActorID']}" for state in states if state["State"] != "DEAD"}


def test_a_killed_driver_leaves_no_actor_and_no_reservation(tmp_path: Path) -> None:
    """Ray's own cleaner of reservations needs a dashboard, and stays for ever when it has done its work."""
    before, free = alive(), ray.available_resources()["CPU"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "runs"), str(tmp_path / "began")], env=environment)
    try:
        until(lambda: (tmp_path / "began").exists(), 240)  # a machine that runs other tests is slow
        assert any("Cleaner" in actor for actor in alive())
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not [actor for actor in alive() - before if not actor.startswith("_AutoscalingCoordinator")])
    until(lambda: ray.available_resources().get("CPU") == free)


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached in time; alive: {alive()}"
        time.sleep(0.2)


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    said = list[str]()
    one = ClusterConfig(workers=1, max_failures=0)
    with claimed(one, "run", str(tmp_path)) as folder, pytest.raises(RunFailedError) as failed:
        launch(fails, {}, one, folder, lambda records, notices: said.extend(notices))
    assert str(failed.value).startswith("rank 0: RuntimeError: a fault of ours; continue it with: python ")
    assert "\n" not in str(failed.value)
    assert said[0] == "failed: rank 0: RuntimeError: a fault of ours"
    assert "in fails" in said[1]  # the traceback


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClusterConfig(workers=400), "400 workers of 1 CPUs were asked for and the cluster has 4 CPUs"),
        (ClusterConfig(workers=2, gpu=True), "2 workers need a GPU each and the cluster has 0"),
    ],
)
def test_more_workers_than_the_cluster_can_hold_are_refused(config: ClusterConfig, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        connect(config)


def client(address: str) -> subprocess.CompletedProcess[str]:
    """A command that connects to the cluster at an address; it has the token, but RAY_AUTH_MODE does not say so."""
    code = (
        "from cluster.config import ClusterConfig\n"
        "from cluster.launch import connect\n"
        "from datasets.errors import run_main\n"
        "run_main(lambda: connect(ClusterConfig()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | {"RAY_ADDRESS": address}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def refusal(address: str) -> str:
    """The one line in which a command refuses the cluster at an address."""
    ended = client(address)
    assert ended.returncode == 2
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert address in error
    return error


def test_a_client_uses_its_token() -> None:
    ended = client(ray.get_runtime_context().gcs_address)
    assert ended.returncode == 0, ended.stderr


def test_no_cluster_at_the_address_is_one_line() -> None:
    assert "no Ray cluster answers" in refusal("127.0.0.1:1")


OWN = """
import functools, json, sys, psutil, ray
from cluster.config import ClusterConfig
from cluster.connection import connect, join
if sys.argv[1] == "join":
    join("auto")
    print(ray.get_runtime_context().gcs_address)
else:
    connect(ClusterConfig(workers=1))
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    listening = {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"}
    print(json.dumps([ray.get_runtime_context().gcs_address, sorted(listening)]), flush=True)
    input()
"""


def test_a_ray_that_a_run_starts_listens_only_on_loopback_and_can_be_joined() -> None:
    """Ray's search for servers on this machine would also find those of the tests' cluster: the other one is passed to it."""
    command = [sys.executable, "-c", OWN]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with subprocess.Popen([*command, "start"], env=environment, stdin=-1, stdout=-1, text=True) as owner:  # pipes
        assert owner.stdin
        assert owner.stdout
        address, listening = json.loads(owner.stdout.readline())
        assert address.startswith("127.0.0.1:")
        assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"} != set()
        patched = OWN.replace(
            "    join(", f"    ray._private.services.find_gcs_addresses = functools.cache(lambda: [{address!r}])\n    join("
        )
        environment.pop("RAY_ADDRESS")
        joined = subprocess.run(
            [sys.executable, "-c", patched, "join"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert joined.stdout.strip() == address, joined.stderr
        assert f"joined the Ray cluster at {address}, which runs on this machine; RAY_ADDRESS=host:port chooses" in joined.stderr
        owner.stdin.write("\n")


def test_an_old_ray_on_the_cluster_is_one_line() -> None:
    address = ray.get_runtime_context().gcs_address
    control = GcsClient(address=address)
    where = {"namespace": b"cluster"}
    stored = control.internal_kv_get(b"CLUSTER_METADATA", **where)
    old = json.dumps({**json.loads(stored), "ray_version": "2.9.0"}).encode()
    control.internal_kv_put(b"CLUSTER_METADATA", old, True, **where)
    try:
        error = refusal(address)
    finally:
        control.internal_kv_put(b"CLUSTER_METADATA", stored, True, **where)
    assert "the cluster runs another Ray or Python" in error
    assert "2.9.0" in error


def test_errors_pickle() -> None:
    error = pickle.loads(pickle.dumps(ClusterError("what", "where", "remedy")))  # noqa: S301 - our own
    assert (str(error), error.exit_code) == ("what: where; remedy", 2)


@pytest.mark.parametrize("fewest", [-1, 3])
def test_fewest_is_at_most_all_workers(fewest: int) -> None:
    with pytest.raises(ClusterError, match=f"cluster.fewest is {fewest}"):
        ClusterConfig(workers=2, fewest=fewest)
    assert list(ClusterConfig(workers=4, fewest=2).sizes) == [2, 3, 4]
    assert list(ClusterConfig(workers=4).sizes) == [4]


def test_every_number_of_workers_divides_a_step() -> None:
    ClusterConfig(workers=4).check_divisible(64, "--batch")
    ClusterConfig(workers=4, fewest=2).check_divisible(12, "--batch")
    with pytest.raises(ClusterError, match=r"64 samples cannot be divided evenly among 3 workers: --batch; .* from 2 to 4"):
        ClusterConfig(workers=4, fewest=2).check_divisible(64, "--batch")
    with pytest.raises(ClusterError, match="0 samples"):
        ClusterConfig(workers=1).check_divisible(0, "--batch")


def test_workers_take_gpus_that_the_autoscaler_can_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that scales up from zero nodes has no GPU when a run starts."""
    assert not ray_train._on_gpus(ClusterConfig())
    grows = {"CPU": 64, "GPU": 8}
    monkeypatch.setattr(connection, "max_resources", lambda: grows)
    assert ray_train._on_gpus(ClusterConfig())
    assert not ray_train._on_gpus(ClusterConfig(gpu=False))


def test_storage_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    assert storage_uri("s3://b/runs") == "s3://b/runs?endpoint_override=127.0.0.1%3A8333&scheme=http"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert storage_uri("s3://b/runs") == "s3://b/runs"
    assert storage_uri("runs") == str(Path("runs").absolute())
