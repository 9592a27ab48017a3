"""What the exact difficulty vector costs: our half of the products with their maxima against one plain W W^T by the BLAS.

    python -m benchmarks.difficulty [--sizes 10000 30000] [--features 512] [--json]
    python -m benchmarks.difficulty --neighbours 8 --twins 0.1     # also the eight nearest of each, on clustered rows

Both work on the same W with the same number of threads and take turns; ratios are taken within a turn. Time is the
processor's, so that what else runs on the machine counts less. The plain product is made strip by strip into the same memory,
which was touched before, and nothing is done with it: the fastest that W W^T can be had here. The peak of memory is the kernel's
count of this process, above what it held before the call (W itself is held before).
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets.command_line import parse
from datasets.errors import run_main
from trainers.difficulty.vector import difficulty, neighbours
from trainers.reports.console import summary_table

STRIP = 4096  # rows of the plain product at a time
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Measure the difficulty vector."""

    sizes: tuple[int, ...] = (1_000, 10_000, 30_000)
    """Numbers of identities."""
    features: int = 512
    turns: int = 3
    threads: int = 1
    """Threads of both."""
    neighbours: int = 0
    """Time the so many nearest neighbours of each identity too; 0: not."""
    twins: float = 0.0
    """Share of the rows that are near-duplicates of other rows (cosine 0.96)."""
    json: bool = False


def plain(rows: Tensor, space: Tensor) -> None:
    """W W^T, all of it."""
    for start in range(0, len(rows), STRIP):
        strip = rows[start : start + STRIP]
        torch.mm(strip, rows.T, out=space[: len(strip)])


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds that it takes, of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def peak(work: Callable[[], object]) -> float:
    """MiB that it needs at most, above what is held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


def status(name: str) -> int:
    """A line of the kernel's status of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def rows_for(count: int, options: Cost) -> Tensor:
    """Random rows; a share of them are other rows with noise."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(count, options.features, generator=random)
    twins = torch.randperm(count, generator=random)[: int(options.twins * count)]
    others = torch.randint(0, count, (len(twins),), generator=random)
    rows[twins] = rows[others] + 0.3 * torch.randn(len(twins), options.features, generator=random)
    return rows


def measure(count: int, options: Cost) -> dict[str, float]:
    """One size, all turns."""
    space = torch.zeros(min(STRIP, count), count)
    rows, k = rows_for(count, options), options.neighbours
    works: list[Callable[[], object]] = [lambda: difficulty(rows), lambda: plain(rows, space)]
    works += [lambda: neighbours(rows, k)] if k else []
    memory = [peak(work) for work in (works[0], works[-1])]
    turns = [[seconds(work) for work in works] for _ in range(options.turns)]
    ours, theirs, *more = (statistics.median(column) for column in zip(*turns, strict=True))
    result = {
        "identities": count,
        "seconds": ours,
        "plain_seconds": theirs,
        "ratio": statistics.median(turn[0] / turn[1] for turn in turns),
        "w_mib": rows.numel() * 4 / MIB,
        "peak_mib": memory[0],
    }
    if k:
        ratio = statistics.median(turn[2] / turn[0] for turn in turns)
        result |= {"neighbours_seconds": more[0], "neighbours_ratio": ratio, "neighbours_peak_mib": memory[1]}
    return result


def main(options: Cost) -> None:
    """Measure, and print."""
    torch.set_num_threads(options.threads)
    difficulty(torch.randn(1000, options.features))  # the libraries' own memory and start
    results = [measure(count, options) for count in options.sizes]
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results}))
        return
    columns = ["identities", "difficulty, CPU s", "plain W W^T, CPU s", "ratio", "W, MiB", "peak above W, MiB"]
    if options.neighbours:
        columns += [f"top-{options.neighbours}, CPU s", "to top-1", "its peak above W, MiB"]
    rows = [
        [f"{r['identities']:,.0f}", f"{r['seconds']:.3f}", f"{r['plain_seconds']:.3f}", f"{r['ratio']:.3f}",
         f"{r['w_mib']:.0f}", f"{r['peak_mib']:.0f}", *(f"{value:.3f}" for name, value in r.items() if "neighbours" in name)]
        for r in results
    ]  # fmt: skip
    summary_table(f"{options.features} features, {options.threads} threads, {options.turns} turns", columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Cost, "python -m benchmarks.difficulty")))
