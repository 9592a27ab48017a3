"""Injects faults between storage and loader: every sample must arrive as it was packed, or be named as unreadable.

    python -m benchmarks.soak [--faults 100] [--json]

A proxy before a real S3 server answers 503 SlowDown, resets connections, stalls longer than the time-out, stops in the middle of
a body, truncates bodies and flips bits in them. One stored block is damaged. During the run the credentials expire, and new ones
can be had. Two loader processes draw without a cache: uniform epochs, then pairs. Every image that arrives is compared, pixel by
pixel, with the file that was packed.
"""

import json
import logging
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.loading import Loading, make_images
from datasets.command_line import parse
from datasets.difficulty import Difficulty
from datasets.errors import InputError, run_main
from datasets.loading import store
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.store import shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.media.decode import decode
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import Kind, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, Split, read_index, split_of
from tests.proxy import Faults, ProxyProcess
from tests.s3server import KEY, NEXT_KEY, SECRET, S3Server
from trainers.reports.console import summary_table

SIZE = (64, 32)
RATES = Faults(slow_down=0.01, reset=0.01, stall=0.005, freeze=0.005, truncate=0.01, corrupt=0.01)
KINDS: tuple[Kind, ...] = ("uniform", "pairs")


@dataclass(frozen=True)
class Soak:
    """Read a set while faults are injected."""

    faults: int = 100
    """Faults injected at least, half of them into each kind of draw; the last epoch is read to its end."""
    identities: int = 200
    each: int = 10
    """Images of an identity."""
    batch: int = 100
    workers: int = 2
    """Loader processes."""
    timeout_s: float = 2.0
    """Of a read, instead of 10."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.faults < 2 or self.batch % 4 or self.identities * self.each % self.batch:
            raise InputError("at least 2 faults, a batch that 4 divides and that divides the images", "benchmarks.soak")


def credentials(key: str, folder: Path) -> None:
    """Write the credentials that the (pretended) credential service returns from now on."""
    given = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": SECRET, "Expiration": "2100-01-01T00:00:00Z"}
    (folder / "credentials.json").write_text(json.dumps(given))
    (folder / "config").write_text(f"[default]\ncredential_process = cat {folder}/credentials.json\n")


def damage(index: Index, block: int) -> set[str]:
    """Flip a bit of a stored block; returns the addresses of its samples, by which errors must name them."""
    objects, name = open_objects(index.shards_url), index.shards[index.blocks["shard"][block]].name
    data = bytearray(objects.get(name))
    data[int(index.blocks["offset"][block] + index.blocks["size"][block] // 2)] ^= 1
    objects.put(name, bytes(data))
    first, count = int(index.blocks["first"][block]), int(index.blocks["count"][block])
    return {index.where(sample) for sample in range(first, first + count)}


def truth(split: Split, folder: Path) -> npt.NDArray[np.uint8]:
    """The pixels of every position, from the packed files; a key is an identity and the number of its file."""
    keys = [split.index.keys[sample].split("/") for sample in split.samples(np.arange(len(split)))]
    files = [folder / "images" / "train" / identity / f"{int(number):03d}.jpg" for identity, number in keys]
    return np.stack([decode(file.read_bytes()) for file in files])


class Arrivals:
    """Counts of the samples that arrived, and of those that were right."""

    def __init__(self, split: Split, pixels: npt.NDArray[np.uint8]) -> None:
        self.split, self.pixels = split, pixels
        self.counts = Counter[str]()
        self.named: Counter[str] = Counter()
        self.seen = np.zeros(len(split), np.int64)

    def note(self, batch: dict[str, Any]) -> None:
        """Compare a batch with the packed images."""
        positions = batch["positions"].numpy()
        images = batch["images"].permute(0, 2, 3, 1).numpy()
        same = (images == self.pixels[positions]).all(axis=(1, 2, 3)) & (
            batch["labels"].numpy() == self.split.labels_of(positions)
        )
        self.counts.update(delivered=len(same), identical=int(same.sum()))
        self.named.update(reason.split(": ")[0] for reason in batch["bad"])
        np.add.at(self.seen, positions, 1)


def read_through(
    kind: Kind, split: Split, options: Soak, etags: dict[str, str], arrivals: Arrivals, proxy: ProxyProcess, renew: Any
) -> dict[str, int]:
    """Read whole epochs until half of the faults were injected; the credentials expire after ten batches. Returns the counts."""
    sampler = SamplerConfig(kind=kind, batch=options.batch, instances=2, uniform_share=0.0, interval=1, lag=0, mode="freshest")
    table = DifficultyTable(len(split.counts), sampler)
    cosine = generator(0, "vector").uniform(0.2, 0.9, len(split.counts)).astype(np.float32)
    table.put(Difficulty(1, cosine, np.roll(np.arange(len(cosine), dtype=np.int32), 1)[:, None]))
    loader, augment = LoaderConfig(workers=options.workers, size=SIZE), AugmentConfig(flip=False, shift=0)
    drawn_by = None if kind == "uniform" else table
    stream = BatchStream(split, sampler, loader, augment, CacheConfig(gib=0), drawn_by, etags, RankSlice(0, 1), 0, 0, 10**6)
    epoch = len(split) // options.batch
    before = proxy.set(faults=RATES)
    for batch in load_in_workers(stream, options.workers):
        arrivals.note(batch)
        done = batch["step"] + 1
        if done == 10:
            renew()
        counts = proxy.set()
        injected = {name: count - before.get(name, 0) for name, count in counts.items()}
        if done % epoch == 0 and faults_of(injected) >= options.faults / 2:
            break
    proxy.set(faults=Faults())
    return injected


def faults_of(counts: dict[str, int]) -> int:
    """The number of faults among a proxy's counts, without expired credentials: they are one fault, of many GETs."""
    return sum(count for name, count in counts.items() if name not in ("gets", "bytes", "expired"))


def soak(options: Soak, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Run; returns what happened."""
    server = stack.enter_context(S3Server(folder / "s3"))
    os.environ.update({name: value for name, value in server.environment().items() if "KEY" not in name})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        os.environ.pop(name, None)
    os.environ["AWS_CONFIG_FILE"] = str(folder / "config")
    keys = [KEY, NEXT_KEY]
    credentials(keys[0], folder)
    make_images(Loading(identities=options.identities, each=options.each, size=SIZE), folder / "images" / "train")
    pack("folders", folder / "images", server.make_bucket("soak") + "/set", Options(shard_size=1 << 20))
    index = read_index("s3://soak/set")
    damaged = damage(index, 3)
    split, etags = split_of(index, "train"), shard_etags(index)
    arrivals = Arrivals(split, truth(split, folder))
    proxy = stack.enter_context(ProxyProcess(server.endpoint, match=".tar"))
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    store.TIMEOUTS = {**store.TIMEOUTS, "read_timeout": f"{options.timeout_s:g}s"}

    def renew() -> None:
        keys.reverse()
        credentials(keys[0], folder)
        proxy.set(expired=keys[1])

    logging.getLogger(store.__name__).setLevel(logging.ERROR)  # its warnings of every retry
    began, injected = time.perf_counter(), Counter[str]()
    for kind in KINDS:
        injected.update(read_through(kind, split, options, etags, arrivals, proxy, renew))
        if kind == "uniform":
            unseen = int((arrivals.seen == 0).sum())
    named = set(arrivals.named)
    return {
        "seconds": time.perf_counter() - began,
        "injected": dict(injected),
        "faults": faults_of(injected),
        "delivered": arrivals.counts["delivered"],
        "identical": arrivals.counts["identical"],
        "named": dict(arrivals.named),
        "named_wrongly": sorted(named - damaged),
        "unnamed": sorted(damaged - named),
        "never_delivered": unseen,
        "damaged": len(damaged),
    }


def main(options: Soak) -> None:
    """Run, and print; exit code 1 if a sample was lost or wrong."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = soak(options, Path(folder), stack)
    whole = found["identical"] == found["delivered"] and not found["named_wrongly"] and not found["unnamed"]
    whole = whole and found["never_delivered"] == found["damaged"]
    if options.json:
        print(json.dumps({"options": asdict(options), "results": found, "whole": whole}))
    else:
        rows = [[name.replace("_", " "), f"{count:,}"] for name, count in sorted(found["injected"].items())]
        summary_table("What the proxy did", ["", "times"], rows)
        rows = [
            ["faults", f"{found['faults']:,}"],
            ["samples delivered", f"{found['delivered']:,}"],
            ["of these identical to what was packed", f"{found['identical']:,}"],
            ["samples named as unreadable (times)", f"{len(found['named'])} ({sum(found['named'].values())})"],
            ["samples of the block damaged at rest", f"{found['damaged']}"],
            ["samples never delivered in a uniform epoch", f"{found['never_delivered']}"],
            ["seconds", f"{found['seconds']:.0f}"],
        ]
        summary_table("What arrived", ["", ""], rows)
    if not whole:
        raise SystemExit("a sample was lost, wrong, or wrongly named")


if __name__ == "__main__":
    run_main(lambda: main(parse(Soak, "python -m benchmarks.soak")))
