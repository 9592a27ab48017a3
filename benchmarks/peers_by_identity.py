"""Other loaders that can draw by identity, set to draw as ours do: identities in proportion to `cosines`, K samples of each.

LitData reads samples by key (``get_by_key``), or files by number with any sampler of torch's (``StreamingRawDataset``). SPDL
draws by weights (``DistributedRandomSampler``) and leaves reading to its user: here ranged GETs of our shards by obstore. None
resumes such a draw, and weights stay as they were when it began. Settings were tried, and the fastest kept.
"""

import asyncio
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch.utils.data import Dataset

from benchmarks.peers import Job, Peer, cosines, loader, stack
from datasets.shards.index import Int64s, split_of

DRAWS = 10**6  # samples of an order, more than a measurement reads
THREADS = 32  # of each loader process of LitData by key, from S3
IN_FLIGHT = 2  # batches that each process of SPDL fetches at a time; 1 is slower, single samples in flight cost twice the CPU
UNITS = 8  # batches that fit in the shared memory of each process of SPDL


class Draw:
    """Samples of drawn identities, K of each, all its samples equally likely; ``places`` says where they lie."""

    def __init__(self, job: Job) -> None:
        self.split, self.each = split_of(job.index, "train"), job.each
        self.urls = [job.index.shard_url(number) for number in range(len(job.index.shards))]

    def chances(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The probability of each identity."""
        cosine = cosines(len(self.split.counts)).astype(np.float64)
        found: np.ndarray[Any, np.dtype[np.float64]] = cosine / cosine.sum()
        return found

    def samples(self, rng: np.random.Generator, identities: Int64s) -> Int64s:
        """K samples of each identity; an identity must have as many."""
        first, count = self.split.identity_starts[identities, None], self.split.counts[identities, None]
        chances = rng.random((len(identities), int(count.max())))
        chances[np.arange(chances.shape[1]) >= count] = 2
        return self.split.samples((first + np.argpartition(chances, self.each - 1)[:, : self.each]).ravel())

    def order(self) -> list[int]:
        """An order of samples."""
        rng, chances = np.random.default_rng(0), self.chances()
        order: list[int] = self.samples(rng, rng.choice(len(chances), DRAWS // self.each, p=chances)).tolist()
        return order

    def places(self, rng: np.random.Generator, identities: Sequence[int]) -> list[tuple[int, int, int]]:
        """Shard, offset and size of K samples of each identity."""
        samples, index = self.samples(rng, np.asarray(identities)), self.split.index
        table = index.samples
        shards = index.blocks["shard"][table["block"][samples]]
        return list(zip(shards.tolist(), table["offset"][samples].tolist(), table["size"][samples].tolist(), strict=True))


# ---- LitData by key


def write_keyed(job: Job, folder: Path) -> None:
    """Its chunks with an index of keys. Samples are pairs: of dictionaries, 0.2.76 cannot read single ones from S3."""
    from litdata import build_keys_index
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=8 << 20)
    for number, image in enumerate(job.images):
        writer[number] = (str(number), image)
    writer.done()
    writer.merge()
    build_keys_index(str(folder), lambda sample: sample[0], verbose=False)


class Keyed(Dataset[Any]):
    """Reads a batch by keys, in threads from S3: each takes the key's place and the sample by GETs of their own."""

    def __init__(self, job: Job) -> None:
        self.place, self.remote = f"{job.place}/by_id", job.place.startswith("s3://")
        self.folder = job.folder
        self.read: Any = None

    def __getitems__(self, keys: list[str]) -> list[tuple[str, bytes]]:
        if self.read is None:  # in the loader process
            from litdata import StreamingDataset

            data = StreamingDataset(
                self.place, **(litdata_options(str(self.folder / f"cache{os.getpid()}")) if self.remote else {})
            )
            data.get_by_key(keys[0])  # threads find it opened
            get = ThreadPoolExecutor(THREADS).map if self.remote else map
            self.read = functools.partial(get, data.get_by_key)
        return list(self.read(keys))


def litdata_options(cache: str) -> dict[str, Any]:
    """Its options for S3."""
    plain_http()
    Path(cache).mkdir(exist_ok=True)
    return {"cache_dir": cache, "storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}


def plain_http(_worker: int = 0) -> None:
    """LitData has no setting for a server without TLS."""
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def start_keyed(job: Job) -> Iterable[Any]:
    """By key."""
    keys = [str(number) for number in Draw(job).order()]
    return loader(job, Keyed(job), of_pairs, sampler=keys)


def of_pairs(samples: list[tuple[str, bytes]]) -> Any:
    """A keyed sample holds its key."""
    return stack(image for _, image in samples)


# ---- LitData, one file a sample


def write_files(job: Job, folder: Path) -> None:
    """A file an image."""
    folder.mkdir()
    for number, image in enumerate(job.images):
        (folder / f"{number:08d}.jpg").write_bytes(image)


def start_files(job: Job, *, cache: bool) -> Iterable[Any]:
    """By number; ``cache``: after each file was read once, and is on the local disk."""
    from litdata import StreamingRawDataset

    data = StreamingRawDataset(f"{job.place}/files/", cache_files=cache, **litdata_options(job.fresh()))
    place = {Path(file.path).name: number for number, file in enumerate(data.files)}
    order = [place[f"{number:08d}.jpg"] for number in Draw(job).order()]
    # spawned, as its guide says: what it runs in this process does not survive a fork
    options: dict[str, Any] = {"multiprocessing_context": "spawn", "worker_init_fn": plain_http} if job.workers else {}
    if cache:
        for _ in loader(job, data, stack, **options):
            pass
    return loader(job, data, stack, sampler=order, **options)


# ---- SPDL, by weights


class Reading(Draw):
    """The stages of SPDL's pipeline, in the process that runs it."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job)
        self.rng = np.random.default_rng(rank)
        self.opened: dict[int, Any] = {}

    async def fetch(self, identities: Sequence[int]) -> list[bytes]:
        """By ranged GETs, all of a batch at a time."""
        return await asyncio.gather(*(self.get(*place) for place in self.places(self.rng, identities)))

    async def get(self, shard: int, offset: int, size: int) -> bytes:
        """One sample from S3."""
        import obstore

        store = self.opened.get(0) or self.opened.setdefault(0, bucket(self.urls[0]))
        name = urlsplit(self.urls[shard]).path.lstrip("/")
        return bytes(await obstore.get_range_async(store, name, start=offset, length=size))

    def read(self, identities: Sequence[int]) -> list[bytes]:
        """From a folder."""
        found = []
        for shard, offset, size in self.places(self.rng, identities):
            if shard not in self.opened:
                self.opened[shard] = os.open(self.urls[shard], os.O_RDONLY)
            found.append(os.pread(self.opened[shard], size, offset))
        return found


def bucket(url: str) -> Any:
    """obstore's, of the benchmark's server."""
    from obstore.store import S3Store

    return S3Store(
        urlsplit(url).netloc,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def start_spdl(job: Job) -> Iterator[Any]:
    """By its sampler, in processes of their own that take turns; batches come through its shared memory, without a copy."""
    from spdl.pipeline import PipelineBuilder, SharedMemorySegmentPool, run_pipeline_in_subprocess
    from spdl.source import DistributedRandomSampler

    remote, processes = job.place.startswith("s3://"), max(job.workers, 1)
    room = stack(job.images[:1]).nbytes * job.batch + 4096
    batches = []
    for rank in range(processes):
        reading = Reading(job, rank)
        weights = reading.chances().tolist()
        order = DistributedRandomSampler(len(weights), rank=rank, world_size=processes, weights=weights, num_draws=DRAWS)
        builder = PipelineBuilder().add_source(order).aggregate(job.batch // job.each)
        builder = builder.pipe(reading.fetch, concurrency=IN_FLIGHT) if remote else builder.pipe(reading.read)
        pipeline = builder.pipe(stack).add_sink(2).get_config()
        arena = SharedMemorySegmentPool(room, UNITS)
        batches.append(iter(run_pipeline_in_subprocess(pipeline, num_threads=3, arena=arena)))
    while True:
        for process in batches:
            yield next(process)


BY_IDENTITY = [
    Peer("LitData by key, no cache", "litdata", start_keyed, write_keyed, "by_id"),
    Peer("LitData by key, local", "litdata", start_keyed, write_keyed, "by_id"),
    Peer("LitData files, no cache", "litdata", functools.partial(start_files, cache=False), write_files, "files"),
    Peer("LitData files, cached", "litdata", functools.partial(start_files, cache=True)),
    Peer("SPDL by weights, no cache", "spdl", start_spdl),
    Peer("SPDL by weights, local", "spdl", start_spdl),
]
