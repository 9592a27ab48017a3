"""The cluster, the storage and the run into which `benchmarks.faults` injects faults, and how each fault is injected."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.cluster_utils import Cluster

from cluster.checkpoint_folder import step_of
from cluster.connection import QUIET
from cluster.progress import running
from cluster.ray_compat import processes, use_auth_token
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack
from tests.proxy import FaultProxy
from tests.s3server import S3Server

ROOT = Path(__file__).parent.parent
BUCKET = "faults"
STUCK_S = 15
TITLES = {"worker": "RayTrainWorker", "freeze": "RayTrainWorker", "actor": "DifficultyService", "controller": "TrainController"}
ENDS = {"driver": -signal.SIGKILL, "terminate": 143, "disk": 2}  # the command's exit codes
DISK_MIB = 64
AHEAD = "import time; time.time = lambda now=time.time: now() + 86400"  # as sitecustomize.py, which Python runs at its start


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        return not mount(Path(folder)) and not subprocess.run(["umount", folder], check=False).returncode  # noqa: S603, S607


def mount(folder: Path) -> int:
    """Mount a small disk; returns the exit code."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(folder)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode  # noqa: S603


class Training:
    """The run's command, as a user would start it; started again with --resume when a fault has ended it."""

    def __init__(self, name: str, steps: int, address: str) -> None:
        self.name = name
        settings = {
            "data": f"s3://{BUCKET}/data", "checkpoint_every": 20, "record_every": 5, "optim.steps": steps,
            "sampler.kind": "proportional", "sampler.batch": 32, "sampler.interval": 20, "sampler.lag": 20,
            "cluster.max_failures": 10_000, "cluster.stuck_s": STUCK_S, "loader.workers": 1, "cache.gib": 0,
        }  # fmt: skip
        self._settings = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        self._environment = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
        self._log = (Path(tempfile.gettempdir()) / f"hardshard-faults-{name}.log").open("wb")
        self._expected = self._reported = 0
        self.process = self.start(*self._settings)

    def start(self, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a command for this run."""
        command = [sys.executable, "trainers/reid.py", "--runs", f"s3://{BUCKET}/runs", "--name", self.name, *options]
        environment = {**self._environment, **environment}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)  # noqa: S603

    def ends(self, code: int) -> None:
        """Wait for the end of the command, which must have this exit code, and continue the run."""
        found = self.process.wait(120)
        if found != code:
            raise RuntimeError(f"the command ended with {found} instead of {code}: {self._log.name}")
        self.process = self.start("--resume")

    def refused(self, **environment: str) -> None:
        """Start a second command for the run, without Ray, which must end with exit code 2."""
        code = self.start("--resume", "--cluster.local", **environment).wait(300)
        if code != 2:
            raise RuntimeError(f"a second command ended with {code}: {self._log.name}")

    def step(self) -> int:
        """The last step that the run has reported, of all its commands."""
        steps = [state.get("record", {}).get("step", 0) for state in running() if state["run"] == self.name]
        self._reported = max(self._reported, *steps, 0)
        return self._reported

    def goes_on(self, patience: float) -> bool:
        """Wait until the run reports a later step; False: it has ended well meanwhile.

        Raises:
            RuntimeError: it has ended with an error, or reported no step within ``patience`` seconds.
        """
        before, began = self.step(), time.monotonic()
        while self.step() <= before:
            if self.process.poll() is not None:
                self.end()
                return False
            if time.monotonic() - began > patience:
                raise RuntimeError(f"no step after {before} in {patience:.0f} s: {self._log.name}")
            time.sleep(0.1)
        return True

    def end(self) -> None:
        """Wait for the end; raises RuntimeError if the command has failed."""
        if code := self.process.wait():
            raise RuntimeError(f"the run '{self.name}' ended with {code}: {self._log.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


class FaultyCluster:
    """An S3 server behind a proxy, a head node, and a second node that may be killed; temporary files are on a small disk."""

    def __init__(self, folder: Path) -> None:
        self._disk, self._ahead = folder / "disk", folder / "ahead"
        for made in (self._disk, self._ahead):
            made.mkdir()
        (self._ahead / "sitecustomize.py").write_text(AHEAD)
        self._mounted = not mount(self._disk)
        self._server = S3Server(folder)
        self._server.start()
        self._proxy = FaultProxy(self._server.endpoint).__enter__()
        # Nodes inherit this. Ray Train waits at most 15 s for workers of a node that died.
        os.environ.update(self._server.environment(), PYTHONPATH=str(ROOT), RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15")
        os.environ.update(AWS_ENDPOINT_URL=self._proxy.endpoint, RAY_TMPDIR=tempfile.gettempdir(), TMPDIR=str(self._disk))
        self._server.make_bucket(BUCKET)
        pack("omniglot", ARCHIVE, f"s3://{BUCKET}/data", OPTIONS)
        use_auth_token()  # as the run will: a cluster without token authentication would not answer it
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._node: Any = self._cluster.add_node(num_cpus=1)
        self.address = str(self._cluster.address)
        ray.init(self.address, **QUIET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ray.shutdown()
        self._cluster.shutdown()
        self._proxy.__exit__()
        self._server.stop()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._disk)], check=True)  # noqa: S603, S607

    def inject(self, kind: str, run: Training, rng: random.Random) -> None:
        """Inject a fault; what it has ended is started again."""
        if kind in TITLES:
            self._signal(kind, signal.SIGSTOP if kind == "freeze" else signal.SIGKILL, rng)
        elif kind == "node":
            self._cluster.remove_node(self._node, allow_graceful=False)
            self._node = self._cluster.add_node(num_cpus=1)
        elif kind == "storage":
            self._server.kill()
            time.sleep(rng.uniform(0.5, 3))
            self._server.start()
        elif kind == "refused":
            self._proxy.read_only = True
            time.sleep(rng.uniform(1, 6))
            self._proxy.read_only = False
        elif kind == "cut":
            self._cut(run.name)
            self._signal("worker", signal.SIGKILL, rng)
        elif kind in ("second", "clock"):
            run.refused(**({"PYTHONPATH": f"{self._ahead}:{ROOT}"} if kind == "clock" else {}))
        elif kind == "disk":
            full = self._disk / "full"
            _fill(full)
            run.process.wait(120)
            full.unlink()
            run.ends(ENDS[kind])
        else:
            run.process.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
            run.ends(ENDS[kind])

    def _signal(self, kind: str, number: int, rng: random.Random) -> None:
        """Send a signal to one of the cluster's processes of that kind, when there is one."""
        while not (found := sorted(processes(TITLES[kind]))):
            time.sleep(0.1)
        os.kill(rng.choice(found), number)

    def _cut(self, run: str) -> None:
        """Cut the state in the run's newest checkpoint to half of its length."""
        client, prefix = self._server.client, f"runs/{run}/"
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
        newest = max((key for key in keys if key.endswith("/state.pt")), key=lambda key: step_of(key.split("/")[2]))
        state = client.get_object(Bucket=BUCKET, Key=newest)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=newest, Body=state[: len(state) // 2])


def _fill(path: Path) -> None:
    """Fill the rest of a disk with a file."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
