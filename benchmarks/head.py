"""What a rank needs for a classifier of many identities: each rank with all rows against rows shared out over the ranks.

    python -m benchmarks.head [--identities 200000] [--features 128] [--ranks 1 2 4] [--json]

Real ranks over gloo on this machine, a thread each; features are random, so that only the head, its optimiser (AdamW) and what
goes between ranks are measured. Memory is the peak of a rank's process above what it held before the head was made, the largest
of the ranks. A step is a forward and backward pass and the optimiser's step; the median over steps of the slowest rank.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.difficulty import MIB, status
from datasets.command_line import parse
from datasets.errors import run_main
from trainers.reports.console import summary_table
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.heads import build_head
from trainers.tasks.reid.sharded_head import ShardedHead


@dataclass(frozen=True)
class Head:
    """Measure the head."""

    identities: int = 200_000
    features: int = 128
    ranks: tuple[int, ...] = (1, 2, 4)
    batch: int = 64
    """Samples of a global batch."""
    steps: int = 5
    json: bool = False


def one_rank(rank: int, world: int, folder: str, options: Head, parallel: bool) -> None:
    """A rank's process; leaves its figures in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=300), world, rank)
    train(rank, world, replace(options, identities=4 * world, steps=1), parallel)  # what the libraries need anyway
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    times = train(rank, world, options, parallel)
    figures = {"mib": (status("VmHWM") - before) / 1024, "seconds": statistics.median(times[1:])}
    Path(folder, f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def train(rank: int, world: int, options: Head, parallel: bool) -> list[float]:
    """Make a head and train it; the seconds of each step."""
    config = HeadConfig(parallel=parallel)
    model: nn.Module = (
        ShardedHead(config, options.identities, options.features, dist.group.WORLD) if parallel
        else build_head(config, options.identities, options.features)
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters())
    if not parallel and world > 1:
        model = DistributedDataParallel(model)
    generator, times = torch.Generator().manual_seed(rank), []
    for _ in range(options.steps):
        features = torch.randn(options.batch // world, options.features, generator=generator, requires_grad=True)
        labels = torch.randint(options.identities, (len(features),), generator=generator)
        dist.barrier()
        began = time.perf_counter()
        loss, _ = model(features, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter() - began)
    return times


def measure(world: int, options: Head, parallel: bool) -> dict[str, Any]:
    """The largest figures of all ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=one_rank, args=(rank, world, folder, options, parallel)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return {"ranks": world, "parallel": parallel, **{name: max(one[name] for one in found) for name in found[0]}}


def main(options: Head) -> None:
    """Measure, and print."""
    results = [measure(world, options, parallel) for world in options.ranks for parallel in (False, True)]
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results}))
        return
    rows = [
        [r["ranks"], "shared out" if r["parallel"] else "all on each", f"{r['mib']:.0f}", f"{r['seconds']:.3f}"] for r in results
    ]
    title = f"{options.identities:,} x {options.features}: W is {options.identities * options.features * 4 / MIB:.0f} MiB"
    summary_table(title, ["ranks", "rows", "MiB a rank", "s a step"], rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Head, "python -m benchmarks.head")))
