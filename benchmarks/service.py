"""What the difficulty service costs: the delay from a version's publication to loader workers, and a reader's processor time.

    python -m benchmarks.service [--identities 100000 1000000] [--readers 2] [--windows 20] [--json]

On a real Ray cluster on this machine: the actor, a publisher, and as many readers as a node has ranks, each with the shared
memory that its loader workers would read. Delay: from `Publisher.publish` until the last reader's memory holds the version, by
one clock. Cost: processor seconds of a reader's process for one version, of all its threads together.

Pace: steps a second with the service, divided by those without. A training on the shipped data, of small steps, is cut into
windows of as many steps as lie between two versions. In every second window a version of that size goes through the service, from
this process to this process, and the training waits for it at the step that would first draw by it. Printed is the median over
pairs of windows of the time without over the time with, and its 95% interval by the sign test.
"""

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass

import numpy as np
import ray
import torch

from benchmarks.ray_overhead import training_steps
from cluster.config import ClusterConfig
from cluster.difficulty_service import Follower, Publisher, start_service
from cluster.launch import connect
from datasets.command_line import parse
from datasets.difficulty import Difficulty
from datasets.errors import InputError, run_main
from datasets.loading.batches import LoaderConfig, RankSlice
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import Kind, SamplerConfig
from datasets.seeding import generator
from trainers.engine.optim import OptimConfig
from trainers.reid import Train
from trainers.reports.console import summary_table
from trainers.tasks.reid.comparison import median_interval

SAMPLER = SamplerConfig()  # the times of versions; `Service.kind` says how many neighbours they hold
PATIENCE = 120.0  # seconds within which a version must arrive


@dataclass(frozen=True)
class Service:
    """Measure the difficulty service."""

    identities: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    readers: int = 2
    versions: int = 6
    """Published one after the other; the first is not counted, as connections start with it."""
    interval: int = SAMPLER.interval
    """Steps between two versions."""
    windows: int = 20
    """Pairs of windows of a training, with and without a version; 0: no training."""
    kind: Kind = SAMPLER.kind
    """The draw that the versions are for: for neighbours they hold more."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.interval <= SAMPLER.lag:  # the training would wait for a version in the window without one
            raise InputError(f"versions {self.interval} steps apart", "--interval", f"give more than the lag of {SAMPLER.lag}")


class Reader:
    """A rank: follows the actor into shared memory, and notes when each version arrived."""

    def __init__(self, name: str, identities: int, sampler: SamplerConfig) -> None:
        self.table = DifficultyTable(identities, sampler)
        self.seen: dict[int, float] = {}
        self.follower = Follower(name, 0, self.put, print)

    def put(self, version: Difficulty) -> None:
        """Put a version into the table."""
        self.table.put(version)
        self.seen[version.version] = time.time()

    def wait(self, number: int) -> float:
        """Wait for a version; returns the time at which it arrived."""
        deadline = time.monotonic() + PATIENCE
        while number not in self.seen:
            self.follower.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {number} did not arrive in {PATIENCE:g} s")
            time.sleep(0.001)
        return self.seen[number]

    def spent(self) -> float:
        """Processor seconds of this process so far."""
        return time.process_time()


def made_up(number: int, identities: int, k: int) -> Difficulty:
    """A version like one of a training with that many identities, and k neighbours of each."""
    rng = generator(0, "version", number)
    return Difficulty(number, rng.random(identities, dtype=np.float32), rng.integers(0, identities, (identities, k), np.int32))


def measure(identities: int, options: Service, folder: str) -> dict[str, float]:
    """Medians over the versions, for one size."""
    name, sampler = f"service-{identities}", SamplerConfig(options.kind)
    needed = sampler.neighbours_needed(identities)
    service = start_service(name, folder, sampler.versions_alive)
    publisher = Publisher(name, [], print, PATIENCE)
    start = ray.remote(num_cpus=0)(Reader).remote
    readers = [start(name, identities, sampler) for _ in range(options.readers)]
    calls, delays, costs = [], [], []
    for number in range(1, options.versions + 1):
        version = made_up(number, identities, needed)
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
        "mb": identities * 4 * (1 + needed) / 1e6,
        "publish_ms": 1e3 * statistics.median(calls[1:]),
        "delay_ms": 1e3 * statistics.median(delays[1:]),
        "worst_delay_ms": 1e3 * max(delays[1:]),
        "reader_cpu_ms": 1e3 * statistics.median(costs[1:]),
    }


def pace(identities: int, options: Service, folder: str) -> dict[str, float]:
    """Steps a second of a training with the service's traffic against without."""
    name, interval, lag, sampler = f"pace-{identities}", options.interval, SAMPLER.lag, SamplerConfig(options.kind)
    service = start_service(name, folder, SAMPLER.versions_alive)
    publisher = Publisher(name, [], print, PATIENCE)
    reader = Reader(name, identities, sampler)
    versions = [made_up(number, identities, sampler.neighbours_needed(identities)) for number in (1, 2)]
    steps = 2 * (options.windows + 2) * interval
    config = Train(sampler=SamplerConfig(kind="uniform"), loader=LoaderConfig(size=(32, 32)), optim=OptimConfig(steps=steps))
    marks = []
    for step, _ in training_steps(config, RankSlice(0, 1), None):
        number, within = divmod(step.done, 2 * interval)
        if step.done % interval == 0:
            marks.append(time.perf_counter())
        if within == 0:
            publisher.publish(versions[number % 2]._replace(version=number))
        elif within == lag and number:
            reader.wait(number)
    publisher.close()
    reader.follower.close()
    ray.kill(service)
    took = np.diff(marks)[3:]  # with, without, with, ...; the first version started connections
    pace, low, high = median_interval((took[1::2] / took[::2]).tolist())
    return {"pace": pace, "pace_low": low, "pace_high": high}


def main(options: Service) -> None:
    """Measure, and print."""
    connect(ClusterConfig())
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(count, options, folder) for count in options.identities]
        if options.windows:
            torch.set_num_threads(1)
            results = [found | pace(int(found["identities"]), options, folder) for found in results]
    ray.shutdown()
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results}))
        return
    columns = ["identities", "MB", "publish, ms", "delay, ms", "at worst", "a reader's CPU, ms", "pace"]
    rows = []
    for r in results:
        pace_interval = f"{r['pace']:.3f} ({r['pace_low']:.3f} to {r['pace_high']:.3f})" if "pace" in r else ""
        times = [r[name] for name in ("mb", "publish_ms", "delay_ms", "worst_delay_ms", "reader_cpu_ms")]
        rows.append([f"{r['identities']:,.0f}", *(f"{value:.1f}" for value in times), pace_interval])
    summary_table(f"{options.readers} readers, {options.versions - 1} versions, {options.windows} windows", columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Service, "python -m benchmarks.service")))
