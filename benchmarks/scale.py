"""How the index and the draws bear a data set that is too large for this machine: an index of that many samples, without shards.

    python -m benchmarks.scale [--samples 10000000] [--each 10] [--json]

A fresh process opens the index and draws. Resident bytes are what the kernel counts for that process, above what it held after it
had opened a small index; the peak is the kernel's, too. Names of identities are of 9 characters. Neighbours are random ones.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datasets.command_line import parse
from datasets.difficulty import Difficulty
from datasets.errors import run_main
from datasets.object_storage import open_objects
from datasets.sampling.sampler import Kind, Sampler, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, Shard, Split, read_index, split_of, write_index
from trainers.reports.console import summary_table

KINDS: tuple[Kind, ...] = ("uniform", "pk", "hardest", "proportional", "pairs", "neighbours")
TURNS = 10  # in which the kinds draw one after the other, so that the machine's state is the same for all
SPAN = 4608  # bytes of a sample in its shard
SMALL = 1000


@dataclass(frozen=True)
class Scale:
    """Open a large index and draw from it."""

    samples: int = 10_000_000
    each: int = 10
    """Samples of an identity, in one block."""
    batch: int = 256
    draws: int = 300
    """Of each kind."""
    json: bool = False


class Nothing:
    """As many empty keys as an index has samples: they are not read here."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __arrow_array__(self, type: Any = None) -> pa.Array:  # noqa: A002  # Arrow's protocol
        return pa.repeat(pa.scalar("", pa.string()), self.count)


def make_index(folder: Path, samples: int, each: int) -> None:
    """Write an index of random blocks: identities in random order, about 64,000 samples a shard."""
    blocks = samples // each
    per_shard = 65536 // each
    number = np.arange(blocks)
    within = number % per_shard
    table: dict[str, npt.NDArray[Any]] = {
        "shard": (number // per_shard).astype(np.int32),
        "identity": generator(0, "identities").permutation(blocks).astype(np.int32),
        "split": np.zeros(blocks, np.int8),
        "offset": within * (each * SPAN),
        "size": np.full(blocks, each * SPAN, np.int32),
        "first": number * each,
        "count": np.full(blocks, each, np.int32),
        "crc32c": generator(0, "crc").integers(0, 2**32, blocks),
    }
    block_of = np.repeat(number.astype(np.int32), each)
    columns = {
        "block": block_of,
        "offset": np.repeat(table["offset"], each) + np.tile(np.arange(each) * SPAN + 512, blocks),
        "size": generator(0, "sizes").integers(2000, 4000, blocks * each, dtype=np.int32),
        "camera": generator(0, "cameras").integers(0, 8, blocks * each, dtype=np.int16),
    }
    shards = tuple(Shard(f"train-{i:06d}.tar", per_shard * each * SPAN, "train") for i in range(-(-blocks // per_shard)))
    names: Any = [f"{i:09d}" for i in range(blocks)]
    about = {"size": [128, 64], "mirror": True}
    keys: Any = Nothing(blocks * each)
    index = Index(str(folder), shards, ("train",), tuple("abcdefgh"), names, columns, table, about)
    write_index(open_objects(str(folder)), index, keys)


def status(name: str) -> int:
    """A line of the kernel's status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it takes, and what it gives."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def draw_times(split: Split, options: Scale) -> dict[str, dict[str, float]]:
    """By kind, milliseconds of a draw, in the middle and at worst, of the first one and of the first by a new version; and how
    many draws a second there are for one of pk (processor time)."""
    configs = {kind: SamplerConfig(kind=kind, batch=options.batch) for kind in KINDS}
    count, start = len(split.identities), 1000  # a step at which all kinds draw by a version
    cosine = generator(0, "vector").random(count, dtype=np.float32)
    width = max(config.neighbours_needed(count) for config in configs.values())
    version = Difficulty(1, cosine, generator(0, "neighbours").integers(0, count, (count, width), np.int32))
    again = version._replace(version=2)
    samplers = {kind: Sampler(config, split, 0) for kind, config in configs.items()}
    first = {kind: timed(partial(sampler.draw, start, version))[0] for kind, sampler in samplers.items()}
    renewed = {kind: timed(partial(sampler.draw, start + 1, again))[0] for kind, sampler in samplers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in samplers}
    spent: dict[str, list[float]] = {kind: [] for kind in samplers}
    for turn in np.array_split(np.arange(start + 2, start + 2 + options.draws), min(TURNS, options.draws)):
        for kind, sampler in samplers.items():
            began = time.process_time()
            times[kind] += [timed(partial(sampler.draw, step, again))[0] for step in turn.tolist()]
            spent[kind].append(time.process_time() - began)
    return {
        kind: {
            "first_ms": 1e3 * first[kind],
            "new_version_ms": 1e3 * renewed[kind],
            "median_ms": 1e3 * statistics.median(times[kind]),
            "worst_ms": 1e3 * max(times[kind]),
            "of_pk": statistics.median(pk / own for pk, own in zip(spent["pk"], spent[kind], strict=True)),
        }
        for kind in KINDS
    }


def measure(small: str, large: str, options: Scale, pipe: Connection) -> None:
    """In a process of its own: open, weigh, draw."""
    split_of(read_index(small), "train")
    before = status("VmRSS")
    opened, index = timed(lambda: read_index(large))
    split_s, split = timed(lambda: split_of(index, "train"))
    _ = split.counts, split.smallest
    found = {
        "open_s": opened,
        "split_s": split_s,
        "bytes_a_sample": (status("VmRSS") - before) / len(index),
        "peak_bytes_a_sample": (status("VmHWM") - before) / len(index),
    }
    pipe.send({**found, "draws": draw_times(split, options)})


def main(options: Scale) -> None:
    """Make, measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        make_index(small, SMALL, options.each)
        make_index(large, options.samples, options.each)
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=measure, args=(str(small), str(large), options, there))
        process.start()
        there.close()
        found = here.recv()
        process.join()
    if options.json:
        print(json.dumps({"options": asdict(options), "results": found}))
        return
    title = f"{options.samples:,} samples, {options.samples // options.each:,} identities"
    summary_table(
        title, ["open, s", "split, s", "bytes a sample", "at the peak"],
        [[f"{found['open_s']:.2f}", f"{found['split_s']:.2f}", f"{found['bytes_a_sample']:.1f}",
          f"{found['peak_bytes_a_sample']:.1f}"]],
    )  # fmt: skip
    columns = {
        "first_ms": "first",
        "new_version_ms": "by a new version",
        "median_ms": "median",
        "worst_ms": "worst",
        "of_pk": "draws/s, x pk",
    }
    rows = [[kind, *(f"{times[name]:.2f}" for name in columns)] for kind, times in found["draws"].items()]
    summary_table(f"draws of {options.batch}, ms", ["kind", *columns.values()], rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Scale, "python -m benchmarks.scale")))
