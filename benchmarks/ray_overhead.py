"""Steps a second of the same training loop under Ray Train and under torchrun.

    python -m benchmarks.ray_overhead [--workers 2] [--rounds 3] [--json]

On the shipped data, taking turns; Ray's workers also tell their figures as trainers/reid.py has them do. Ray's own processes take
a tenth of a core: where workers leave cores idle, from those; on two cores, two workers with their loaders leave none.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from cluster.config import ClusterConfig
from cluster.launch import connect, launch
from cluster.worker import this_worker
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.loading.batches import BatchStream, RankSlice
from datasets.loading.stats import LoaderStats
from datasets.loading.workers import load_in_workers
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.distributed import allreduce_s
from trainers.engine.loop import Meter, steps
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


def train(share: RankSlice, count: int, worker: Any) -> float:
    """Steps a second of one rank, the process group being there; ``worker``: Ray's, which is told every tenth step, or None."""
    torch.manual_seed(0)
    data = open_data(CONFIG)
    task = ReidTask(CONFIG.model, CONFIG.head, len(data.train.counts)).to(memory_format=torch.channels_last)
    optim = OptimConfig(steps=WARM + count)
    model = distribute(task, dist.group.WORLD, sync_batch_norm=False)
    stream = BatchStream(
        data.train, CONFIG.sampler, CONFIG.loader, CONFIG.augment, CONFIG.cache, None, data.etags, share, 0, 0, optim.steps
    )
    meter, tally, began = Meter(dist.group.WORLD), LoaderStats(CONFIG.loader.workers), 0.0
    batches = load_in_workers(stream, CONFIG.loader.workers)
    for step in steps(model, build_optimiser(optim, task), optim, batches, torch.device("cpu"), 0, share.rank):
        meter.add(step)
        tally.count(step.batch)
        if step.done % EVERY == 0:
            record = {
                "step": step.done,
                "steps": optim.steps,
                "allreduce_s": allreduce_s(model),
                **meter.read(CONFIG.sampler.batch),
            }
            if worker is not None:
                worker.record(record, tally.counts)
        if step.done == WARM:
            began = time.perf_counter()
    return count / (time.perf_counter() - began)


def under_ray(settings: dict[str, Any]) -> float:
    """One worker's part under Ray Train."""
    torch.set_num_threads(1)
    worker = this_worker(settings)
    return train(RankSlice(worker.rank, worker.world), settings["steps"], worker)


def by_ray(workers: int, count: int) -> float:
    """Steps a second under Ray Train, on a cluster of its own."""
    os.environ["RAY_ADDRESS"] = "local"
    config = ClusterConfig(workers=workers, gpu=False)
    connect(config)
    with tempfile.TemporaryDirectory() as runs:
        speed: float = launch(under_ray, {"steps": count}, config, name="overhead", runs=runs, show=lambda records, notices: None)
    ray.shutdown()  # its idle processes would take from torchrun's turn
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
    """One worker's part under torchrun; rank 0 prints its speed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    speed = train(RankSlice(dist.get_rank(), dist.get_world_size()), count, None)
    if dist.get_rank() == 0:
        print(speed, flush=True)
    dist.destroy_process_group()


def main(options: Overhead) -> None:
    """Let both take turns, and print."""
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
