"""What the difficulty service costs: from a version's publication until loader workers can draw by it, and what a reader pays.

    python -m benchmarks.service [--identities 100000 1000000] [--readers 2] [--json]

A real Ray cluster on this machine, the actor, a publisher, and as many readers as a node has ranks, each with the shared memory
that its loader workers would see. Delay: from `Publisher.publish` until the last reader's memory holds the version, by one
clock. Cost: processor seconds of a reader's process for one version, all its threads together.
"""

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass

import numpy as np
import ray
import tyro

from cluster.difficulty import Follower, Publisher, start_service
from cluster.launch import ClusterConfig, connect
from datasets.errors import run_main
from datasets.sampling import SamplerConfig, Version, generator
from datasets.versions import VersionTable
from trainers.engine.console import summary_table

SAMPLER = SamplerConfig()
PATIENCE = 120.0  # seconds until a version must have come


@dataclass(frozen=True)
class Service:
    """Measure the difficulty service."""

    identities: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    readers: int = 2
    versions: int = 6
    """Published one after the other; the first is left out, as it starts connections."""
    json: bool = False


class Reader:
    """A rank's end: follows into memory, and notes when each version was there."""

    def __init__(self, name: str, identities: int) -> None:
        self.table = VersionTable(identities, SAMPLER)
        self.seen: dict[int, float] = {}
        self.follower = Follower(name, 0, self.put, Version, print)

    def put(self, version: Version) -> None:
        """Take a version in."""
        self.table.put(version)
        self.seen[version.number] = time.time()

    def wait(self, number: int) -> float:
        """When a version was there; waits for it."""
        deadline = time.monotonic() + PATIENCE
        while number not in self.seen:
            self.follower.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {number} did not come in {PATIENCE:g} s")
            time.sleep(0.001)
        return self.seen[number]

    def spent(self) -> float:
        """Processor seconds of this process so far."""
        return time.process_time()


def measure(identities: int, options: Service, folder: str) -> dict[str, float]:
    """Medians over the versions, for one size."""
    name, keep = f"service-{identities}", SAMPLER.versions_alive
    service = start_service(name, folder, keep)
    publisher = Publisher(name, keep, [], print, PATIENCE)
    start = ray.remote(num_cpus=0)(Reader).remote
    readers = [start(name, identities) for _ in range(options.readers)]
    calls, delays, costs = [], [], []
    for number in range(1, options.versions + 1):
        rng = generator(0, "version", number)
        version = Version(number, rng.random(identities, dtype=np.float32), rng.integers(0, identities, identities))
        before = ray.get([reader.spent.remote() for reader in readers])
        began, published = time.perf_counter(), time.time()
        publisher.publish(version)
        calls.append(time.perf_counter() - began)
        delays.append(max(ray.get([reader.wait.remote(number) for reader in readers])) - published)
        after = ray.get([reader.spent.remote() for reader in readers])
        costs.append(statistics.fmean(b - a for a, b in zip(before, after, strict=True)))
        publisher.check()
    publisher.close()
    for actor in (*readers, service):
        ray.kill(actor)
    return {
        "identities": identities,
        "mb": identities * 12 / 1e6,
        "publish_ms": 1e3 * statistics.median(calls[1:]),
        "delay_ms": 1e3 * statistics.median(delays[1:]),
        "worst_delay_ms": 1e3 * max(delays[1:]),
        "reader_cpu_ms": 1e3 * statistics.median(costs[1:]),
    }


def main(options: Service) -> None:
    """Measure, and print."""
    connect(ClusterConfig())
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(count, options, folder) for count in options.identities]
    ray.shutdown()
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results}))
        return
    columns = ["identities", "MB", "publish, ms", "until drawn by, ms", "at worst", "a reader's CPU, ms"]
    rows = [[f"{r['identities']:,.0f}", *(f"{value:.1f}" for name, value in r.items() if name != "identities")] for r in results]
    summary_table(f"{options.readers} readers, {options.versions - 1} versions", columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Service)))
