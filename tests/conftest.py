"""What tests of several folders stand on: a real S3 server and the fault proxy before it."""

import secrets
from collections.abc import Iterator

import pytest
from proxy import FaultProxy
from s3server import S3Server


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
def s3_bucket(s3_server: S3Server) -> str:
    """URL of a fresh bucket."""
    return s3_server.make_bucket(f"test-{secrets.token_hex(4)}")


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, without faults as yet, which the environment variables lead every client to."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
