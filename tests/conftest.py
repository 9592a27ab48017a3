"""What tests of several folders stand on: a real S3 server and the fault proxy before it, and a Ray cluster."""

import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from proxy import FaultProxy
from s3server import S3Server

from cluster.launch import ClusterConfig, connect

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the whole session, which the environment variables lead every client and child process to."""
    with pytest.MonkeyPatch.context() as environment, S3Server(tmp_path_factory.mktemp("s3")) as server:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            environment.delenv(name, raising=False)
        for name, value in server.environment().items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """A fresh URL in a bucket of all tests; faster than ``s3_bucket``, which waits for a new volume."""
    return f"{s3_server.make_bucket('test')}/{secrets.token_hex(4)}"


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """URL of a fresh bucket."""
    return s3_server.make_bucket(f"test-{secrets.token_hex(4)}")


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, without faults as yet, which the environment variables lead every client to."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="session")
def cluster(s3_server: S3Server) -> Iterator[None]:
    """A Ray cluster on this machine for the whole session; its processes find the S3 server and import from the tests."""
    folders = [str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests" / "cluster", ROOT / "tests" / "trainers")]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", "local")  # not one that happens to run on this machine
        environment.setenv("PYTHONPATH", os.pathsep.join(folders))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, of its future defaults
            environment.setattr(os, "cpu_count", lambda: 4)  # tests of four workers, on any machine
            connect(ClusterConfig())
        yield
        ray.shutdown()
