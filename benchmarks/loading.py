"""Loader throughput: Hardshard's draws against webdataset in order, on the same local shards, side by side in one run.

    python -m benchmarks.loading [--json]

Every contender reads, decodes (simplejpeg) and stacks uint8 batches of the same images in the same number of loader
processes; augmentation is off. They take turns, so that a machine whose speed drifts drifts for all of them, and ratios are
taken within a turn. The limit is the decoding of the same images, already in memory, in as many processes.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.augment import AugmentConfig
from datasets.cache import CacheConfig
from datasets.decode import decode
from datasets.errors import run_main
from datasets.index import Index, split_of
from datasets.loader import BatchStream, LoaderConfig, Share, behind_workers
from datasets.pack import Options, pack
from datasets.sampling import Kind, SamplerConfig, Version, generator
from datasets.store import open_store
from datasets.versions import VersionTable
from trainers.engine.console import summary_table

Batches = Callable[[], Iterable[Any]]
LIMIT, PEER = "decode limit", "webdataset in order"


@dataclass(frozen=True)
class Loading:
    """Measure loaders side by side."""

    identities: int = 1000
    each: int = 20
    """Images of an identity."""
    size: tuple[int, int] = (128, 64)
    workers: int = 2
    """Loader processes."""
    batch: int = 256
    seconds: float = 4.0
    """Of each measurement, after a warm-up of as many batches as are prefetched."""
    turns: int = 5
    json: bool = False


def make_set(options: Loading, folder: Path) -> Index:
    """Smooth random JPEGs of about 4 KB, in as many files; packed."""
    height, width = options.size
    for identity in range(options.identities):
        rng = generator(0, "image", identity)
        home = folder / "images" / "train" / f"{identity:05d}"
        home.mkdir(parents=True)
        for number in range(options.each):
            coarse = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(home / f"{number:03d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return pack("folders", folder / "images", str(folder / "shards"), Options(shard_size=8 * 2**20))


def hardshard(index: Index, options: Loading, kind: Kind) -> Batches:
    """Our loader, drawing by ``kind``; by a vector that is there from the start."""
    split = split_of(index, "train")
    sampler = SamplerConfig(kind=kind, batch=options.batch, uniform_share=0.0, interval=1, lag=0, mode="freshest")
    table = VersionTable(len(split.counts), sampler)
    cosine = generator(0, "vector").uniform(0.2, 0.9, len(split.counts)).astype(np.float32)
    table.put(Version(1, cosine, np.roll(np.arange(len(cosine)), 1)))
    loader, augment = LoaderConfig(workers=options.workers, size=options.size), AugmentConfig(flip=False, shift=0)
    stream = BatchStream(split, sampler, loader, augment, CacheConfig(), table, {}, Share(0, 1), 0, 1, 10**9)
    return lambda: behind_workers(stream, options.workers)


def webdataset_in_order(index: Index, options: Loading) -> Batches:
    """webdataset's stream of whole shards, one after the other, without a shuffle."""
    urls = [f"{index.url}/{shard.name}" for shard in index.shards if shard.split == "train"]

    def stack(samples: list[dict[str, Any]]) -> tuple[Any, list[str]]:
        return np.stack([decode(sample["jpg"]) for sample in samples]), [sample["__key__"] for sample in samples]

    def start() -> Iterable[Any]:
        shards = webdataset.SimpleShardList(urls * 10_000)
        stages = [
            shards,
            webdataset.split_by_worker,
            webdataset.tarfile_to_samples(),
            webdataset.batched(options.batch, list),
            webdataset.map(stack),
        ]
        return DataLoader(
            webdataset.DataPipeline(*stages),
            batch_size=None,
            num_workers=options.workers,
            prefetch_factor=2 if options.workers else None,
        )

    return start


class Decoding(IterableDataset[Any]):
    """Nothing but decoding, of images that are in memory."""

    def __init__(self, images: list[bytes], batch: int) -> None:
        self.images, self.batch = images, batch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        place = worker.id * 7919 if worker else 0
        while True:
            chosen = [self.images[(place + i) % len(self.images)] for i in range(self.batch)]
            place += self.batch
            yield np.stack([decode(data) for data in chosen])


def decode_limit(index: Index, options: Loading) -> Batches:
    """What the cores can decode."""
    store = open_store(index, {}, CacheConfig())
    images = [bytes(data) for data in store.request(np.arange(len(index)))() if not isinstance(data, ValueError)]
    return lambda: DataLoader(
        Decoding(images, options.batch),
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=2 if options.workers else None,
    )


def rate(start: Batches, options: Loading) -> float:
    """Samples per second, once the workers are up and what they prefetched is gone."""
    batches = iter(start())
    for _ in islice(batches, 4 * max(options.workers, 1)):
        pass
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        next(batches)
        count += options.batch
    return count / (time.perf_counter() - began)


def main(options: Loading) -> None:
    """Measure, and print."""
    multiprocessing.set_start_method("fork", force=True)
    with tempfile.TemporaryDirectory() as folder:
        index = make_set(options, Path(folder))
        contenders: dict[str, Batches] = {
            LIMIT: decode_limit(index, options),
            PEER: webdataset_in_order(index, options),
            **{f"hardshard {kind}": hardshard(index, options, kind) for kind in ("uniform", "proportional", "pairs")},
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.turns):
            for name, start in contenders.items():
                rates[name].append(rate(start, options))

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[to], strict=True))

    results = {
        name: {"samples_per_s": statistics.median(values), "to_webdataset": ratio(name, PEER), "to_limit": ratio(name, LIMIT)}
        for name, values in rates.items()
    }
    if options.json:
        print(json.dumps({"options": asdict(options), "results": results, "turns": rates}))
        return
    rows = [
        [name, f"{r['samples_per_s']:,.0f}", f"{r['to_webdataset']:.2f}", f"{r['to_limit']:.2f}"] for name, r in results.items()
    ]
    title = f"{len(index):,} images of {options.size[0]}x{options.size[1]}, {options.workers} workers, {options.turns} turns"
    summary_table(title, ["", "samples/s", "x webdataset", "x limit"], rows)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Loading)))
