"""Fixtures of several folders' tests: a real S3 server, the fault proxy before it, and Ray clusters."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# All clusters of the tests require a token, and all their clients have it, whatever token the user's home folder holds.
# Set before Ray is imported, which reads the mode then, and before torch is, whose threads would slow other test processes.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16), OMP_NUM_THREADS="1")

import cephserver
import psutil
import pytest
import ray
from cephserver import CephServer
from hypothesis import HealthCheck, settings
from proxy import FaultProxy
from s3server import S3Server, free_ports

from cluster.config import ClusterConfig
from cluster.launch import connect
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack

ROOT = Path(__file__).parent.parent

settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
settings.load_profile("ours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests on Ray last in each test process: Ray's threads stay there, and the loaders' tests fork."""
    items.sort(key=lambda item: bool({"cluster", "head", "nodes"} & set(getattr(item, "fixturenames", ()))))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which S3 server the tests run against."""
    parser.addoption("--s3", choices=["seaweedfs", "ceph"], default="seaweedfs", help="the S3 server of the tests")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """A server for the whole session; every client and child process finds it by the environment variables."""
    ceph = request.config.getoption("--s3") == "ceph"
    if ceph and cephserver.missing():
        pytest.skip(f"not installed: {', '.join(cephserver.missing())} (Debian: ceph-mon ceph-osd radosgw ceph-common)")
    made = (CephServer if ceph else S3Server)(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as environment, made as server:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            environment.delenv(name, raising=False)
        for name, value in server.environment().items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """A new URL in the bucket that tests share; faster than ``s3_bucket``, which waits for a new volume."""
    return f"{s3_server.make_bucket('test')}/{secrets.token_hex(4)}"


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """URL of a new bucket."""
    return s3_server.make_bucket(f"test-{secrets.token_hex(4)}")


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, at first without faults; every client finds it by the environment variables."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="session")
def shards(s3_server: S3Server) -> str:
    """The shipped data, packed into a bucket."""
    url = s3_server.make_bucket("shards") + "/omniglot"
    pack("omniglot", ARCHIVE, url, OPTIONS)
    return url


@pytest.fixture(scope="session")
def cluster(s3_server: S3Server) -> Iterator[None]:
    """A Ray cluster on this machine for the whole session; its processes find the S3 server and import from the tests."""
    folders = [str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests" / "cluster", ROOT / "tests" / "trainers")]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", "local")  # not one that happens to run on this machine
        environment.setenv("PYTHONPATH", os.pathsep.join(folders))
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, of its future defaults
            environment.setattr(os, "cpu_count", lambda: 4)  # tests of four workers, on any machine
            connect(ClusterConfig())
        yield
        ray.shutdown()


class Head(NamedTuple):
    """A cluster's head: the dashboard's URL, the address that nodes and drivers join, and the temporary folder with its logs."""

    jobs: str
    address: str
    folder: Path

    @property
    def discovery(self) -> Path:
        """The file by which Prometheus finds all nodes' metrics."""
        return self.folder / "prom_metrics_service_discovery.json"


@pytest.fixture(scope="session")
def head(s3_server: S3Server) -> Iterator[Head]:
    """A cluster of `ray start --head`, with dashboard and metrics, besides that of ``cluster``.

    It imports from the repository's root, as the cluster of ray_cluster.yaml does.
    """
    for attempt in range(3):  # another process may have taken one of the free ports meanwhile
        gcs, dashboard, agent = free_ports(3)
        url = f"http://127.0.0.1:{dashboard}"
        with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: paths of sockets have a limit
            options = [
                f"--port={gcs}",
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}",
                f"--temp-dir={folder}",
            ]
            ray_head = start_head(options, Path(folder) / "head.log")
            try:
                deadline = time.monotonic() + 120
                while not answers(f"{url}/api/version") or not answers(f"http://127.0.0.1:{agent}/api/local_raylet_healthz"):
                    if ray_head.poll() is not None or time.monotonic() > deadline:
                        break
                    time.sleep(0.2)
                else:
                    yield Head(url, f"127.0.0.1:{gcs}", Path(folder))
                    return
                assert attempt < 2, f"the cluster did not start:\n{(Path(folder) / 'head.log').read_text()}"
            finally:
                end_tree(ray_head)


def start_head(options: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start `ray start --head`, which writes ``log``."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=4", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "1000"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)


def answers(url: str) -> bool:
    """Whether Ray's dashboard answers there, and accepts the token."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})  # noqa: S310
    try:
        return bool(urllib.request.urlopen(request, timeout=5).status == 200)  # noqa: S310
    except OSError:
        return False


def end_tree(process: "subprocess.Popen[bytes]") -> None:
    """End a process, if it still runs, and all its descendants."""
    if process.poll() is not None:
        return
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs(tree, timeout=15)
    for left in tree:
        if left.is_running():
            left.kill()
    process.wait(30)
