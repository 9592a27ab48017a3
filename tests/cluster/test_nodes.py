"""Ray nodes with addresses of their own, in network namespaces of this machine: runs over several nodes, and their faults."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from metadata import announce

from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack
from trainers.engine.run import Run

ROOT = Path(__file__).parents[2]
NET = "10.213.7"
PORT = 6379
STEPS = 5000  # of an elastic run and its like: more than a minute of them

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def until(reached: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.2)


class Nodes:
    """Namespaces on a bridge, node k at 10.213.7.k with a Ray of its own; node 1 is the head and has no CPU for training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tag = folder, uuid.uuid4().hex[:5]
        self.rays: dict[int, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"{NET}.1:{PORT}", "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15", "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000", "RAY_health_check_initial_delay_ms": "0",
        }  # fmt: skip
        ip("link", "add", f"b{self.tag}", "type", "bridge")
        ip("link", "set", f"b{self.tag}", "up")

    def name(self, k: int) -> str:
        return f"n{self.tag}{k}"

    def connect(self, k: int) -> None:
        """Make node k's namespace, with an address on the bridge."""
        space, outside = self.name(k), f"v{self.tag}{k}"
        ip("netns", "add", space)
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", outside, "master", f"b{self.tag}", "up")
        ip("-n", space, "addr", "add", f"{NET}.{k}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", space, "link", "set", device, "up")

    def inside(self, k: int, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command within node k."""
        self.log = self.folder / f"{k}-{uuid.uuid4().hex[:4]}.log"
        within = ["ip", "netns", "exec", self.name(k), *command]
        with self.log.open("wb") as log:
            return subprocess.Popen(within, env=self.environment, cwd=ROOT, stdout=log, stderr=log)

    def start(self, k: int, cpus: int) -> None:
        """Start Ray on node k."""
        if not any(self.name(k) in line for line in subprocess.check_output(["ip", "netns"], text=True).splitlines()):
            self.connect(k)
        ray = str(Path(sys.executable).with_name("ray"))
        place = [f"--node-ip-address={NET}.{k}", f"--temp-dir={self.folder}/r{k}{uuid.uuid4().hex[:3]}", f"--num-cpus={cpus}"]
        join = ["--head", f"--port={PORT}", "--include-dashboard=false"] if k == 1 else [f"--address={NET}.1:{PORT}"]
        self.rays[k] = self.inside(k, ray, "start", "--block", *place, *join)
        until(lambda: "Ray runtime started" in self.log.read_text(), 120)

    def kill(self, k: int) -> None:
        """Kill all of node k's processes, as a power cut does."""
        for process in self.processes(k):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.rays.pop(k).wait(30)

    def processes(self, k: int) -> list[psutil.Process]:
        found = subprocess.check_output(["ip", "netns", "pids", self.name(k)], text=True).split()
        return [psutil.Process(int(pid)) for pid in found if psutil.pid_exists(int(pid))]

    def trains(self, k: int) -> bool:
        """Whether a training process runs on node k."""
        found = [process.info for process in psutil.process_iter(["pid", "cmdline"])]
        titles = {entry["pid"]: " ".join(entry["cmdline"] or ()) for entry in found}
        return any("RayTrainWorker" in titles.get(process.pid, "") for process in self.processes(k))

    def raylet(self, k: int) -> bool:
        """Whether node k is in the cluster: its raylet runs."""
        return any(process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE for process in self.processes(k))

    def cut(self, k: int, *, off: bool) -> None:
        """Take node k off the network, or put it on again."""
        ip("link", "set", f"v{self.tag}{k}", "down" if off else "up")

    def close(self) -> None:
        for k in list(self.rays):
            self.kill(k)
        for line in subprocess.check_output(["ip", "netns"], text=True).splitlines():
            if line.startswith(f"n{self.tag}"):
                ip("netns", "del", line.split()[0])
        ip("link", "del", f"b{self.tag}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("data") / "omniglot")
    pack("omniglot", ARCHIVE, folder, OPTIONS)
    return folder


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as folder:  # short: paths of sockets have a limit
        made = Nodes(Path(folder))
        try:
            made.start(1, 0)
            yield made
        finally:
            made.close()


def train(nodes: Nodes, data: str, runs: Path, name: str, steps: int, *more: str) -> "subprocess.Popen[bytes]":
    """A run on the head, its workers on the other nodes."""
    settings = {
        "data": data, "runs": runs, "name": name, "optim.steps": steps, "checkpoint_every": 10, "record_every": 10,
        "sampler.batch": 32, "sampler.interval": 10, "sampler.lag": 10, "loader.workers": 1, "loader.size": "32 32",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", *str(value).split())]
    return nodes.inside(1, sys.executable, "trainers/reid.py", *words, *more)


def checkpoint(runs: Path, name: str, step: int) -> Callable[[], bool]:
    """A condition: the run has stored a checkpoint of that step or a later one."""
    return lambda: any(int(path.name[5:]) >= step for path in (runs / name).glob("step-*"))


def result(runs: Path, name: str) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(str(runs), name).read_json("metrics.json")
    return {key: value for key, value in metrics.items() if key != "seconds"}


def test_a_run_over_two_nodes_outlives_a_node_and_its_driver(nodes: Nodes, data: str, tmp_path: Path) -> None:
    """A node is killed and another joins; the driver is killed, the run resumed by name: the result is an undisturbed run's."""
    nodes.start(2, 1)
    nodes.start(3, 1)
    assert train(nodes, data, tmp_path, "whole", 120).wait(240) == 0
    driver = train(nodes, data, tmp_path, "torn", 120)
    until(checkpoint(tmp_path, "torn", 20))
    nodes.kill(3)
    assert driver.poll() is None
    nodes.start(4, 1)
    until(checkpoint(tmp_path, "torn", 60))
    driver_tree = psutil.Process(driver.pid).children(recursive=True)
    for process in [*driver_tree, psutil.Process(driver.pid)]:
        if process.is_running():
            process.kill()
    assert driver.wait() == -signal.SIGKILL  # it had not ended by itself
    assert train(nodes, data, tmp_path, "torn", 120, "--resume").wait(420) == 0  # Ray frees a dead driver's CPUs late
    assert result(tmp_path, "torn") == result(tmp_path, "whole")


def test_a_node_that_is_cut_off_is_replaced(nodes: Nodes, data: str, tmp_path: Path) -> None:
    nodes.start(2, 1)
    nodes.start(3, 1)
    assert train(nodes, data, tmp_path, "whole", 60).wait(240) == 0
    driver = train(nodes, data, tmp_path, "torn", 60)
    until(checkpoint(tmp_path, "torn", 20))
    nodes.cut(3, off=True)
    assert driver.poll() is None
    nodes.start(4, 1)
    assert driver.wait(300) == 0
    assert result(tmp_path, "torn") == result(tmp_path, "whole")


@contextmanager
def drainer(nodes: Nodes, k: int, notice: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The drainer on node k, before a metadata service there that announces what a file holds; its output is ``nodes.log``."""
    nodes.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = "http://127.0.0.1:1338"
    started = [nodes.inside(k, sys.executable, "tests/metadata.py", "1338", str(notice))]
    try:
        started.append(nodes.inside(k, sys.executable, "-m", "cluster.drain"))
        yield started[1]
    finally:
        for process in started:
            process.kill()
            process.wait(30)


def test_a_spot_node_that_has_no_work_leaves_at_its_notice(nodes: Nodes, tmp_path: Path) -> None:
    """Long before AWS ends it. What fails before is tried again, and told."""
    nodes.start(2, 1)
    (tmp_path / "notice").write_text("{}")
    with drainer(nodes, 2, tmp_path / "notice") as watch:
        until(lambda: "no time in {}" in nodes.log.read_text())
        assert nodes.raylet(2)
        gone = announce(tmp_path / "notice", 120)
        assert watch.wait(60) == 0
    assert nodes.log.read_text().splitlines()[-1] == f"draining this node: AWS takes the instance back at {gone.isoformat()}"
    until(lambda: not nodes.raylet(2), 60)
    assert time.time() < gone.timestamp()
    assert nodes.raylet(1)


def test_a_run_leaves_a_spot_node_before_it_is_withdrawn(nodes: Nodes, data: str, tmp_path: Path) -> None:
    """A run, to which no failure is allowed, stores a checkpoint at the notice and goes on from the last one on another node."""
    nodes.start(2, 1)
    nodes.start(3, 1)
    assert train(nodes, data, tmp_path, "whole", 800).wait(400) == 0
    driver = train(nodes, data, tmp_path, "torn", 800, "--cluster.max-failures", "0")
    log = nodes.log
    with drainer(nodes, 3, tmp_path / "notice") as watch:
        until(checkpoint(tmp_path, "torn", 20))
        announce(tmp_path / "notice", 40)
        assert watch.wait(60) == 0
    nodes.start(4, 1)
    until(lambda: driver.poll() is not None or (nodes.trains(2) and nodes.trains(4)))
    assert driver.poll() is None
    assert not nodes.trains(3)
    nodes.kill(3)
    assert driver.wait(400) == 0
    assert "a node is about to be withdrawn: stored a checkpoint of step" in log.read_text()
    assert result(tmp_path, "torn") == result(tmp_path, "whole")


def test_an_elastic_run_goes_on_with_fewer_and_takes_a_new_node_in(nodes: Nodes, data: str, tmp_path: Path) -> None:
    """The global batches stay what they were, whatever the number of workers. Ray looks for new nodes once a minute."""
    nodes.start(2, 1)
    nodes.start(3, 1)
    uniform = (
        "--sampler.kind",
        "uniform",
    )  # a draw by difficulty follows the weights, whose last bits follow the number of workers
    assert train(nodes, data, tmp_path, "whole", STEPS, *uniform).wait(400) == 0
    driver = train(nodes, data, tmp_path, "elastic", STEPS, *uniform, "--cluster.fewest", "1")
    until(checkpoint(tmp_path, "elastic", 20))
    nodes.kill(3)
    alone = max(int(path.name[5:]) for path in (tmp_path / "elastic").glob("step-*"))
    until(checkpoint(tmp_path, "elastic", alone + 40))
    nodes.start(4, 1)
    until(lambda: driver.poll() is not None or (nodes.trains(2) and nodes.trains(4)))
    assert driver.poll() is None, "the run was over before Ray took the new node in"
    assert driver.wait(400) == 0
    history = Run(str(tmp_path), "elastic").read_json("history.json")
    assert [entry["step"] for entry in history["records"]] == list(range(10, STEPS + 1, 10))
    assert result(tmp_path, "elastic")["batches_crc32c"] == result(tmp_path, "whole")["batches_crc32c"]
