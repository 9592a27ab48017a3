"""The embedded S3 server keeps its data through crashes, stays on loopback and does not meet its own kind."""

import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import boto3
import pytest
import s3server
from s3server import S3Server


def test_what_was_stored_outlives_a_crash_and_other_ports(s3_server: S3Server, tmp_path: Path) -> None:
    with S3Server(tmp_path / "s3") as server:  # beside the session's: two at once
        bucket = server.make_bucket("kept").removeprefix("s3://")
        server.make_bucket("kept")
        server.client.put_object(Bucket=bucket, Key="a", Body=b"1")
        server.kill()
        server.start()
        assert server.client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
        server.client.put_object(Bucket=bucket, Key="b", Body=b"2")
    with S3Server(tmp_path / "s3") as other:
        assert other.endpoint != server.endpoint
        assert other.client.get_object(Bucket=bucket, Key="b")["Body"].read() == b"2"


def test_it_listens_on_loopback_alone_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        assert server.process is not None
        entries = [entry for entry in Path(f"/proc/{server.process.pid}/fd").iterdir() if entry.is_symlink()]
        sockets = {str(entry.readlink()).removeprefix("socket:[").rstrip("]") for entry in entries}
        rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()]
        listeners = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}
    assert listeners == {"0100007F"}
    ports = {*server.ports.values(), *server.grpc_ports.values()}
    assert not [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]  # noqa: S108


def test_the_command_serves_until_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, s3server.__file__, "--dir", str(tmp_path), "--port", "0"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background may have it ignored
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stdout is not None
        assert "s3://hardshard" in process.stdout.readline()
        lines = [process.stdout.readline().split() for _ in range(4)]
        environment = dict(line[1].split("=", 1) for line in lines)
        session = boto3.Session(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        s3 = session.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_REGION"])
        s3.put_object(Bucket="hardshard", Key="a", Body=b"1")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_server_that_cannot_start_says_why(s3_server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        S3Server(tmp_path, s3_server.ports["s3"]).start()
    server = S3Server(tmp_path)
    with socket.create_server(("127.0.0.1", server.ports["master"])), pytest.raises(RuntimeError, match=r"flag master\.port"):
        server.start()
    assert server.process is None
