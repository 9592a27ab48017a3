"""The drainer of spot instances reads AWS's notice from a real service over HTTP; test_nodes.py drains real nodes of Ray."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from metadata import MetadataServer, announce
from s3server import free_ports

from cluster.drain import withdrawal


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a metadata service without a notice, which a proxy in the environment does not reach."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with MetadataServer(0, tmp_path / "notice") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_notice_is_read_and_its_absence_is_none(service: str, tmp_path: Path) -> None:
    assert withdrawal(service) is None
    gone = announce(tmp_path / "notice", 120)
    assert withdrawal(service) == gone


def test_a_notice_without_a_time_is_an_error_that_shows_it(service: str, tmp_path: Path) -> None:
    (tmp_path / "notice").write_text('{"action": "terminate"}')
    with pytest.raises(ValueError, match=r'no time in \{"action": "terminate"\}'):
        withdrawal(service)


def test_a_service_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(requests.ConnectionError):
        withdrawal(f"http://127.0.0.1:{free_ports(1)[0]}")
