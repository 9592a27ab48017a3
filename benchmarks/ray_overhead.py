"""Steps a second of the same training loop under Ray Train and under torchrun.

    python -m benchmarks.ray_overhead [--workers 2] [--rounds 3] [--json]

On the shipped data, both in turn; Ray's workers also report their figures, as those of trainers/reid.py do. Ray's own processes
take a tenth of a core. That costs no steps where workers leave cores idle; two workers with their loaders fill two cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import nn

from cluster.config import ClusterConfig
from cluster.launch import claimed, connect, launch
from cluster.ray_worker import RayWorker
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.loading.batches import BatchStream, RankSlice
from datasets.loading.stats import LoaderStats
from datasets.loading.workers import load_in_workers
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.distributed import allreduce_s, distribute
from trainers.engine.loop import Meter, Step, steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.reid import Train
from trainers.reports.console import summary_table
from trainers.tasks.reid.data import open_data
from trainers.tasks.reid.model import ReidTask

WARM, EVERY = 50, 10  # steps before the clock runs; steps between records
CONFIG = Train(sampler=SamplerConfig(kind="uniform"))


@dataclass(frozen=True)
class Overhead:
    """Compare the two launchers."""

    workers: int = 2
    rounds: int = 3
    steps: int = 400
    """Steps that are timed."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or self.rounds < 1 or self.steps < EVERY:
            raise InputError(f"workers and rounds must be at least 1, steps at least {EVERY}")


def training_steps(config: Train, part: RankSlice, group: dist.ProcessGroup | None) -> Iterator[tuple[Step, nn.Module]]:
    """Train one rank on the CPU; yields each step and the (distributed) model. Draws with equal chances: no difficulty vector."""
    torch.manual_seed(0)
    data = open_data(config.data, config.loader.size)
    task = ReidTask(config.model, config.head, len(data.train.counts)).to(memory_format=torch.channels_last)
    model = distribute(task, group, sync_batch_norm=False)
    stream = BatchStream(
        data.train, config.sampler, config.loader, config.augment, config.cache, None, data.etags, part, 0, 0, config.optim.steps
    )
    batches = load_in_workers(stream, config.loader.workers)
    for step in steps(model, build_optimiser(config.optim, task), config.optim, batches, torch.device("cpu"), 0, part.rank):
        yield step, model


def train(part: RankSlice, count: int, worker: RayWorker | None) -> float:
    """Steps a second of one rank; its process group exists already. Reports every tenth step to ``worker``, if there is one."""
    config = replace(CONFIG, optim=OptimConfig(steps=WARM + count))
    meter, stats, began = Meter(dist.group.WORLD), LoaderStats(config.loader.workers), 0.0
    for step, model in training_steps(config, part, dist.group.WORLD):
        meter.add(step)
        stats.count(step.batch)
        if step.done % EVERY == 0:
            means = meter.read(config.sampler.batch)
            record = {"step": step.done, "steps": config.optim.steps, "allreduce_s": allreduce_s(model), **means}
            if worker is not None:
                worker.record(record, stats.counts)
        if step.done == WARM:
            began = time.perf_counter()
    return count / (time.perf_counter() - began)


def under_ray(worker: RayWorker, settings: dict[str, Any]) -> float:
    """Steps a second of one worker under Ray Train."""
    torch.set_num_threads(1)
    return train(RankSlice(worker.rank, worker.world), settings["steps"], worker)


def by_ray(workers: int, count: int) -> float:
    """Steps a second under Ray Train, on a cluster of its own."""
    os.environ["RAY_ADDRESS"] = "local"
    config = ClusterConfig(workers=workers, gpu=False)
    connect(config)
    with tempfile.TemporaryDirectory() as runs, claimed(config, "overhead", runs) as folder:
        speed: float = launch(under_ray, {"steps": count}, config, folder, lambda records, notices: None)
    ray.shutdown()  # its idle processes would slow torchrun's turn down
    return speed


def by_torchrun(workers: int, count: int) -> float:
    """Steps a second under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.ray_overhead", "--worker", "--steps", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    ended = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return float(ended.stdout.split()[-1])


def torchrun_worker(count: int) -> None:
    """Train as one worker of torchrun; rank 0 prints its steps a second."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    speed = train(RankSlice(dist.get_rank(), dist.get_world_size()), count, None)
    if dist.get_rank() == 0:
        print(speed, flush=True)
    dist.destroy_process_group()


def main(options: Overhead) -> None:
    """Measure both in turn, and print."""
    speeds = [
        (by_torchrun(options.workers, options.steps), by_ray(options.workers, options.steps)) for _ in range(options.rounds)
    ]
    ratio = statistics.median(ray / torchrun for torchrun, ray in speeds)
    if options.json:
        print(json.dumps({"torchrun": [a for a, _ in speeds], "ray": [b for _, b in speeds], "ratio": ratio}))
        return
    rows = [[k + 1, f"{a:.1f}", f"{b:.1f}", f"{b / a:.3f}"] for k, (a, b) in enumerate(speeds)]
    title = f"Steps a second, {options.workers} workers, {options.steps} steps: Ray Train at {ratio:.3f} of torchrun (median)"
    summary_table(title, ["round", "torchrun", "Ray Train", "ratio"], rows)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        torchrun_worker(int(sys.argv[-1]))
    else:
        run_main(lambda: main(parse(Overhead, "python -m benchmarks.ray_overhead")))
