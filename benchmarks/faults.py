"""Kill processes and servers under a real run, and check that its result is that of an undisturbed run.

    python -m benchmarks.faults [--faults 30] [--seed 0] [--json]

A run of trainers/reid.py on a cluster of two nodes, with data and checkpoints in a real S3 server: once undisturbed, and once
with a training process, the difficulty actor, a node or the S3 server killed (kill -9) at seeded random times. The node and the
server are started again. The run has recovered when it reports a later step than half a second after the fault. In the end the
metrics, the weights and the batches of both runs must be equal.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray.cluster_utils import Cluster

from cluster.connection import QUIET
from cluster.progress import running
from cluster.ray_compat import use_auth_token
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack
from tests.s3server import S3Server
from trainers.engine.run import METRICS, Run
from trainers.reports.console import summary_table

ROOT = Path(__file__).parent.parent
Kind = Literal["worker", "actor", "storage", "node"]
WEIGHTS: dict[Kind, int] = {"worker": 10, "actor": 9, "storage": 8, "node": 3}
TITLES = {"worker": "RayTrainWorker", "actor": "DifficultyService"}  # of the processes
PATIENCE = 180.0  # seconds for a recovery
SETTLE = 0.5  # seconds after a fault, in which reports from before it arrive


@dataclass(frozen=True)
class Options:
    """Run with faults and without."""

    faults: int = 30
    """Number of faults; fewer are injected if the run ends before."""
    steps: int = 3000
    seed: int = 0
    """Draws the faults and their times."""
    limit_s: float = 3600.0
    """Seconds after which no more faults are injected."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.faults < 1 or self.steps < 1 or self.limit_s <= 0:
            raise InputError("faults, steps and limit_s must be at least 1")


@dataclass(frozen=True)
class Fault:
    """One fault. ``step``: the last reported half a second after it; ``seconds``: until a later step was reported."""

    kind: Kind
    step: int
    seconds: float


class FaultyCluster:
    """An S3 server, a head node, and a second node that may be killed."""

    def __init__(self, folder: Path) -> None:
        self.server = S3Server(folder)
        self.server.start()
        # Nodes inherit this. Ray Train waits at most 15 s for workers of a node that died.
        os.environ.update(self.server.environment(), PYTHONPATH=str(ROOT), RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15")
        self.server.make_bucket("faults")
        pack("omniglot", ARCHIVE, "s3://faults/data", OPTIONS)
        use_auth_token()  # as the run will: a cluster without token authentication would not answer it
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.node: Any = self.cluster.add_node(num_cpus=1)
        ray.init(self.cluster.address, **QUIET)

    def close(self) -> None:
        """End cluster and server."""
        ray.shutdown()
        self.cluster.shutdown()
        self.server.stop()

    def processes(self, title: str) -> list[psutil.Process]:
        """The cluster's own worker processes of that title; not those of another Ray on this machine."""
        found = []
        for node in self.cluster.list_all_nodes():
            for raylet in node.all_processes.get("raylet", []):
                children = psutil.Process(raylet.process.pid).children(recursive=True)
                found += [child for child in children if title in " ".join(_command(child))]
        return sorted(found, key=lambda process: process.pid)

    def inject(self, kind: Kind, rng: random.Random) -> bool:
        """Inject a fault; False when nothing of that kind runs at the moment."""
        if kind == "storage":
            self.server.kill()
            time.sleep(rng.uniform(0.5, 3))
            self.server.start()
        elif kind == "node":
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = self.cluster.add_node(num_cpus=1)
        else:
            victims = self.processes(TITLES[kind])
            if not victims:
                return False
            rng.choice(victims).send_signal(signal.SIGKILL)
        return True


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@contextmanager
def training(options: Options, name: str, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the run as a user would; ended on leaving the context."""
    settings = {
        "data": "s3://faults/data", "runs": "s3://faults/runs", "name": name, "checkpoint_every": 20, "record_every": 5,
        "optim.steps": options.steps, "sampler.kind": "proportional", "sampler.batch": 32, "sampler.interval": 20,
        "sampler.lag": 20, "cluster.max_failures": 10_000, "loader.workers": 1, "cache.gib": 0,
    }  # fmt: skip
    arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
    log = (Path(tempfile.gettempdir()) / f"hardshard-faults-{name}.log").open("wb")
    command = [sys.executable, "trainers/reid.py", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


def step_of(name: str) -> int:
    """The last step that the run has reported."""
    return max((state.get("record", {}).get("step", 0) for state in running() if state["run"] == name), default=0)


def disturb(options: Options, nodes: FaultyCluster, name: str, process: "subprocess.Popen[bytes]") -> list[Fault]:
    """Inject ``options.faults`` faults, fewer if the run ends before; returns them."""
    rng, faults, began = random.Random(options.seed), list[Fault](), time.monotonic()  # noqa: S311
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=options.faults)
    for kind in kinds:
        before = step_of(name)
        until = time.monotonic() + rng.uniform(0.5, 4)
        while process.poll() is None and (time.monotonic() < until or step_of(name) <= before):
            time.sleep(0.1)
        if process.poll() is not None or time.monotonic() - began > options.limit_s:
            break
        hit = time.monotonic()
        if not nodes.inject(kind, rng):
            continue
        time.sleep(SETTLE)
        before = step_of(name)
        while process.poll() is None and step_of(name) <= before:
            if time.monotonic() - hit > PATIENCE:
                raise RuntimeError(f"not recovered from the death of a {kind} at step {before} in {PATIENCE:.0f} s")
            time.sleep(0.1)
        faults.append(Fault(kind, before, time.monotonic() - hit))
        print(f"{len(faults):3} {kind:8} at step {before:5}: {faults[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return faults


def outcome(name: str) -> dict[str, Any]:
    """The run's final metrics, without the time that it took."""
    metrics: dict[str, Any] = Run("s3://faults/runs", name).read_json(METRICS)
    return {key: value for key, value in metrics.items() if key != "seconds"}


def main(options: Options) -> None:
    """Run both, compare, print."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = FaultyCluster(Path(folder))
        try:
            with training(options, "disturbed", nodes.cluster.address) as process:
                faults = disturb(options, nodes, "disturbed", process)
                if process.wait():
                    raise RuntimeError(f"the disturbed run ended with {process.returncode}")
            with training(options, "undisturbed", nodes.cluster.address) as process:
                if process.wait():
                    raise RuntimeError(f"the undisturbed run ended with {process.returncode}")
            results = outcome("disturbed"), outcome("undisturbed")
        finally:
            nodes.close()
    equal = {key: results[0][key] == results[1][key] for key in results[1]}
    if options.json:
        print(json.dumps({"faults": [vars(fault) for fault in faults], "equal": equal, "results": results}))
    else:
        print_tables(faults, equal)
    if not all(equal.values()):
        raise RuntimeError(f"the disturbed run ended with other {', '.join(key for key, same in equal.items() if not same)}")


def print_tables(faults: list[Fault], equal: dict[str, bool]) -> None:
    """Print recovery times by kind of fault, and whether the results are equal."""
    rows = []
    for kind in WEIGHTS:
        seconds = sorted(fault.seconds for fault in faults if fault.kind == kind)
        if seconds:
            rows.append([kind, len(seconds), f"{statistics.median(seconds):.1f}", f"{seconds[-1]:.1f}"])
    summary_table(f"{len(faults)} faults in one run", ["killed", "times", "recovery, median s", "longest s"], rows)
    summary_table(
        "Equal to the undisturbed run", ["what", "equal"], [[key, "yes" if same else "NO"] for key, same in equal.items()]
    )


if __name__ == "__main__":
    run_main(lambda: main(parse(Options, "python -m benchmarks.faults")))
