"""How long training waits for data: at its start, in each step, and when the set is larger than the node's cache.

    python -m benchmarks.cold [--latency-ms 20] [--json]

A real S3 server on loopback behind a proxy that adds latency; both take from the same cores. A step is a pause of so many
milliseconds, as if a GPU worked: ResNet-18 takes 10 to 20 for 64 crops of 128x64. A wait is the time that the training process
spends asking for the next batch, as a share of all its time after the first batch.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.loading import KINDS, Loading, aside, hardshard, job_of
from benchmarks.peers import Job
from datasets import cache as cache_module
from datasets.augment import AugmentConfig
from datasets.errors import run_main
from datasets.sampling import Kind
from tests.proxy import ProxyProcess
from trainers.engine.console import summary_table


@dataclass(frozen=True)
class Cold:
    """Measure waits."""

    identities: int = 2000
    each: int = 20
    """Images of an identity."""
    batch: int = 64
    workers: int = 2
    """Loader processes."""
    latency_ms: float = 20.0
    """Of each GET."""
    steps: int = 200
    steps_ms: tuple[float, ...] = (20, 10)
    """Length of a step, without waits."""
    caches: tuple[float, ...] = (0.5, 0.25)
    """Sizes of a cache that does not hold the set, as a share of it; with steps of the first length."""
    json: bool = False


def run(job: Job, options: Loading, kind: Kind, gib: float, step_ms: float, steps: int, proxy: ProxyProcess) -> dict[str, float]:
    """A training of pauses, from an empty cache: in a process of its own."""
    cache_module.CHECK_EVERY = 16  # the set is small: keep the cache to its size more closely
    before, began = proxy.set(), time.perf_counter()
    batches = iter(hardshard(job, options, kind, AugmentConfig(), gib)())
    next(batches)
    first, at_first, waited = time.perf_counter(), proxy.set(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        time.sleep(step_ms / 1000)
    after, spent = proxy.set(), time.perf_counter() - first
    del batch
    return {
        "first_s": first - began,
        "first_mb": (at_first["bytes"] - before.get("bytes", 0)) / 1e6,
        "wait_share": waited / spent,
        "gets_a_batch": (after["gets"] - at_first["gets"]) / steps,
        "mb_a_batch": (after["bytes"] - at_first["bytes"]) / steps / 1e6,
    }


def measure(options: Cold, folder: Path, stack: ExitStack) -> tuple[list[dict[str, Any]], float, float]:
    """All runs; MB of the set and of its largest shard."""
    loading = Loading(
        identities=options.identities, each=options.each, batch=options.batch, workers=options.workers, s3=True,
        latency_ms=options.latency_ms,
    )  # fmt: skip
    job, proxy = job_of(loading, folder, stack)
    assert proxy is not None
    proxy.set(match=".tar")
    sizes = [shard.size for shard in job.index.shards]
    runs = [(kind, 1.0, step_ms) for kind in KINDS for step_ms in options.steps_ms]
    runs += [(kind, share, options.steps_ms[0]) for kind in KINDS for share in options.caches]
    found = []
    for kind, share, step_ms in runs:
        gib = max(share * 1.1 * sum(sizes) / 2**30, 1e-6)  # flags and partly used blocks of the disk
        result = aside(run, job, loading, kind, gib, step_ms, options.steps, proxy)
        found.append({"kind": kind, "cache": share, "step_ms": step_ms, **result})
    return found, sum(sizes) / 1e6, max(sizes) / 1e6


def main(options: Cold) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found, size, shard = measure(options, Path(folder), stack)
    if options.json:
        print(json.dumps({"options": asdict(options), "set_mb": size, "shard_mb": shard, "results": found}))
        return
    title = f"A set of {size:.0f} MB in shards of {shard:.1f} MB, {options.latency_ms:g} ms a GET; "
    title += f"{options.workers} loader processes, batches of {options.batch}, {options.steps} steps from an empty cache"
    columns = ["draw", "cache / set", "step, ms", "first batch, s", "MB by then", "wait, % of time", "GETs a batch", "MB a batch"]
    rows = [
        [r["kind"], f"{r['cache']:g}", f"{r['step_ms']:g}", f"{r['first_s']:.2f}", f"{r['first_mb']:.1f}",
         f"{100 * r['wait_share']:.1f}", f"{r['gets_a_batch']:.1f}", f"{r['mb_a_batch']:.2f}"]
        for r in found
    ]  # fmt: skip
    summary_table(title, columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Cold)))
