"""What another number of workers changes in a run of the same global batch, by whether they share the statistics of batch norm.

    python -m benchmarks.workers [--workers 1 2 4] [--steps 60] [--batch 64] [--json]

Real ranks over gloo on this machine, a thread each, on the data that the repository ships, drawn evenly: the same batches to all.
Against the first number of workers: how far the first gradient is off, and how many identities have another nearest one at the
end. A step is timed without loading; its median over the steps, and the processor's time of one rank.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.loading.batches import BatchStream, RankSlice
from datasets.loading.workers import load_in_workers
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.checkpoint import read_state, write_state
from trainers.engine.distributed import distribute
from trainers.engine.loop import steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.reid import Train
from trainers.reports.console import summary_table
from trainers.tasks.reid.data import open_data
from trainers.tasks.reid.model import ReidTask


@dataclass(frozen=True)
class Workers:
    """Compare numbers of workers."""

    workers: tuple[int, ...] = (1, 2, 4)
    """The first is what the others are compared with."""
    steps: int = 60
    batch: int = 64
    """Samples of a global batch."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.workers or any(count < 1 or self.batch % count for count in self.workers):
            raise InputError("each number of workers must divide the batch", "--workers", "change --batch or --workers")


def one_rank(rank: int, world: int, folder: str, options: Workers, sync: bool) -> None:
    """A rank's process; rank 0 leaves in the folder what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=300), world, rank)
    found = train(RankSlice(rank, world), options, sync)
    if rank == 0:
        write_state(Path(folder, "found.pt"), found)
    dist.destroy_process_group()


def train(share: RankSlice, options: Workers, sync: bool) -> dict[str, Any]:
    """Train; the first gradient, each identity's nearest one at the end, the loss, and the seconds of each step."""
    config = Train(sampler=SamplerConfig(kind="uniform", batch=options.batch), optim=OptimConfig(steps=options.steps))
    data, group = open_data(config.data, None), dist.group.WORLD if share.world > 1 else None
    torch.manual_seed(0)
    task = ReidTask(config.model, config.head, len(data.train.counts), group).to(memory_format=torch.channels_last)
    model, optimiser = distribute(task, group, sync_batch_norm=sync), build_optimiser(config.optim, task)
    stream = BatchStream(
        data.train, config.sampler, config.loader, config.augment, config.cache, None, data.etags, share, 0, 0, options.steps
    )
    gradient, walls, processors, began = Tensor(), list[float](), list[float](), time.process_time()
    for step in steps(model, optimiser, config.optim, load_in_workers(stream, 0), torch.device("cpu"), 0, share.rank):
        if step.done == 1:
            gradient = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])
            began = time.process_time()
            continue
        walls.append(step.took - step.waited)
        processors.append(time.process_time() - began)
        began = time.process_time()
    times = {"wall_ms": 1e3 * statistics.median(walls), "processor_ms": 1e3 * statistics.median(processors)}
    return {"gradient": gradient, "nearest": task.neighbours(1, group).numbers, "loss": float(step.results["loss"]), **times}


def found_by(world: int, options: Workers, sync: bool) -> dict[str, Any]:
    """What so many ranks found."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=one_rank, args=(rank, world, folder, options, sync)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return read_state(Path(folder, "found.pt"))


def compare(options: Workers) -> list[dict[str, Any]]:
    """Figures of each number of workers, with batch norm over all of them and without."""
    first, results = found_by(options.workers[0], options, sync=True), []
    for world in options.workers:
        for sync in (True, False) if world > 1 else (True,):
            found = found_by(world, options, sync)
            off = float((found["gradient"] - first["gradient"]).norm() / first["gradient"].norm())
            others = float((found["nearest"] != first["nearest"]).float().mean())
            kept = {name: found[name] for name in ("loss", "wall_ms", "processor_ms")}
            results.append({"workers": world, "sync": sync, "gradient": off, "others": others, **kept})
    return results


def main(options: Workers) -> None:
    """Measure, and print."""
    results = compare(options)
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results}))
        return
    rows = [
        [r["workers"], "all" if r["sync"] else "own", f"{r['gradient']:.1e}", f"{r['others']:.1%}", f"{r['wall_ms']:.1f}",
         f"{r['processor_ms']:.1f}"]
        for r in results
    ]  # fmt: skip
    columns = ["workers", "batch norm over", "first gradient off by", "other nearest", "ms a step", "processor ms"]
    summary_table(f"{options.steps} steps of {options.batch}, against {options.workers[0]} workers", columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Workers, "python -m benchmarks.workers")))
