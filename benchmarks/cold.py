"""How long training waits for data: at its start, in each step, and when the set is larger than the node's cache.

    python -m benchmarks.cold [--latency-ms 20] [--json]

A real S3 server on loopback behind a proxy that adds latency; both take from the same cores. A step is a pause of so many
milliseconds, as if a GPU worked: ResNet-18 takes 10 to 20 for 64 crops of 128x64. Batches are drawn as in training, with its
defaults: a new run draws evenly until its first version is in force; a resumed one draws by difficulty at once, here on a node
whose cache is empty. A wait is the time that the training process spends asking for the next batch, as a share of all its time
after the first batch; "local" is the same from a folder: what taking a batch costs when nothing is waited for.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.loading import KINDS, Loading, aside, job_of
from datasets.command_line import parse
from datasets.difficulty import Difficulty
from datasets.errors import run_main
from datasets.loading import cache as cache_module
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.store import shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.sampling import epochs as epochs_module
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import Kind, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, read_index, split_of
from tests.proxy import ProxyProcess
from trainers.reports.console import summary_table


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
    """Sizes of a cache that does not hold the set, as a share of it; resumed runs, with steps of the first length."""
    json: bool = False


class Case(NamedTuple):
    """One training. ``place``: "new", "resumed" or "local", a resumed one from a folder; ``cache``: its share of the set."""

    kind: Kind
    place: str
    cache: float
    step_ms: float


RESUMED = 5000  # the step that a resumed run begins with


def run(index: Index, folder: str, options: Cold, case: Case, proxy: ProxyProcess) -> dict[str, float]:
    """A training of pauses, from an empty cache: in a process of its own."""
    cache_module.CHECK_EVERY = 1 << 20  # the set is small: keep the cache to its size more closely
    if case.cache < 1:  # and mix as small a share of it as of one that a cache of the default size does not hold
        epochs_module.MIXED_BYTES = sum(shard.size for shard in index.shards) // 16
    sampler = SamplerConfig(kind=case.kind, batch=options.batch)
    split, start = split_of(index, "train"), 0 if case.place == "new" else RESUMED
    gib = max(case.cache * 1.1 * sum(shard.size for shard in index.shards) / 2**30, 1e-6)  # flags and blocks of the disk
    cosine = generator(0, "vector").uniform(0.2, 0.9, len(split.counts)).astype(np.float32)
    table = DifficultyTable(len(cosine), sampler)
    for done in range(0, start + 1, sampler.interval):
        table.put(Difficulty(done // sampler.interval, cosine, np.roll(np.arange(len(cosine), dtype=np.int32), 1)[:, None]))
    stream = BatchStream(
        split, sampler, LoaderConfig(workers=options.workers), AugmentConfig(), CacheConfig(folder, gib), table,
        shard_etags(index), RankSlice(0, 1), 0, start, 10**9,
    )  # fmt: skip
    before, began = proxy.set(), time.perf_counter()
    batches = load_in_workers(stream, options.workers)
    next(batches)
    first, at_first, waited = time.perf_counter(), proxy.set(), 0.0
    for done in range(start + 1, start + options.steps + 1):
        time.sleep(case.step_ms / 1000)
        if done % sampler.interval == 0:
            table.put(Difficulty(done // sampler.interval, cosine, np.roll(np.arange(len(cosine), dtype=np.int32), 1)[:, None]))
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
    after, spent = proxy.set(), time.perf_counter() - first
    del batch
    return {
        "first_s": first - began,
        "first_mb": (at_first.get("bytes", 0) - before.get("bytes", 0)) / 1e6,
        "wait_share": waited / spent,
        "gets_a_batch": (after.get("gets", 0) - at_first.get("gets", 0)) / options.steps,
        "mb_a_batch": (after.get("bytes", 0) - at_first.get("bytes", 0)) / options.steps / 1e6,
    }


def measure(options: Cold, folder: Path, stack: ExitStack) -> tuple[list[dict[str, Any]], float, float]:
    """All runs; MB of the set and of its largest shard."""
    loading = Loading(options.identities, options.each, s3=True, latency_ms=options.latency_ms)
    job, proxy = job_of(loading, folder, stack)
    assert proxy is not None
    proxy.set(match=".tar")
    local, sizes = read_index(f"{folder}/local"), [shard.size for shard in job.index.shards]
    cases = [Case(kind, place, 1.0, ms) for ms in options.steps_ms for kind in KINDS for place in ("local", "new", "resumed")]
    cases += [Case(kind, "resumed", share, options.steps_ms[0]) for kind in KINDS for share in options.caches]
    found = []
    for case in cases:
        result = aside(run, local if case.place == "local" else job.index, job.fresh(), options, case, proxy)
        found.append({**case._asdict(), **result})
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
    columns = ["draw", "run", "cache / set", "step, ms", "first batch, s", "MB by then", "wait, %", "GETs a batch", "MB a batch"]
    rows = [
        [r["kind"], r["place"], f"{r['cache']:g}", f"{r['step_ms']:g}", f"{r['first_s']:.2f}", f"{r['first_mb']:.1f}",
         f"{100 * r['wait_share']:.1f}", f"{r['gets_a_batch']:.1f}", f"{r['mb_a_batch']:.2f}"]
        for r in found
    ]  # fmt: skip
    summary_table(title, columns, rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Cold, "python -m benchmarks.cold")))
