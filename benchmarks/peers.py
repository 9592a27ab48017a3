"""Other loaders, set to do what ours does: read JPEGs, decode them by `datasets.media.decode`, stack them, in as many processes.

Each writes the same images in its own form, if it has one, and gives batches from a folder or from S3. One that is not
installed is left out by name. wids is no package of its own: it came with webdataset before 1.0.
"""

import functools
import itertools
import multiprocessing.util
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from datasets.media.decode import decode
from datasets.seeding import generator
from datasets.shards.index import Index

COPIES = 6  # of the images in a peer's own form: its epochs are that long, so that a measurement ends within one


@dataclass(frozen=True)
class Job:
    """What is to be read, and how. ``place``: folder or s3:// URL under which every form of the images lies."""

    index: Index
    images: list[bytes]
    place: str
    folder: Path  # for caches
    workers: int
    batch: int
    each: int = 1  # samples of each drawn identity, for loaders that draw by identity

    @property
    def shards(self) -> list[str]:
        """Addresses of our tar files for those who read plain files; of S3 as they are read without credentials."""
        names = [self.index.shard_url(number) for number in range(len(self.index.shards))]
        return [presigned(name) if name.startswith("s3://") else name for name in names]

    def fresh(self) -> str:
        """An empty cache."""
        return tempfile.mkdtemp(dir=self.folder)


class Peer(NamedTuple):
    """``start`` gives batches; ``write`` makes its form of the images in a folder, ``form`` below `Job.place`."""

    name: str
    module: str
    start: Callable[[Job], Iterable[Any]]
    write: Callable[[Job, Path], None] | None = None
    form: str = ""


def cosines(identities: int) -> npt.NDArray[np.float32]:
    """The difficulty of each identity, [N]: those who draw by identity draw in proportion to it."""
    return generator(0, "vector").uniform(0.2, 0.9, identities).astype(np.float32)


def presigned(url: str) -> str:
    """An address by which anybody may read an object for a day."""
    parts = urlsplit(url)
    parameters = {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}
    address: str = boto3.client("s3").generate_presigned_url("get_object", parameters, ExpiresIn=86400)
    return address


def stack(images: Iterable[bytes]) -> np.ndarray[Any, Any]:
    """Images as a batch."""
    return np.stack([decode(image) for image in images])


def loader(job: Job, dataset: Any, collate: Callable[[Any], Any] | None, **options: Any) -> Iterable[Any]:
    """torch's DataLoader, prefetching as ours; ``collate`` None: the dataset gives batches."""
    if job.workers:
        options |= {"prefetch_factor": 2}
    if collate:
        options |= {"batch_size": job.batch, "collate_fn": collate}
    return DataLoader(dataset, num_workers=job.workers, **({"batch_size": None} | options))


# ---- webdataset: whole tar files in order


def start_webdataset(job: Job) -> Iterable[Any]:
    """Tar files one after the other, without a shuffle; from S3 through curl."""
    import webdataset

    urls = [f"pipe:curl -sf '{url}'" if url.startswith("http") else url for url in job.shards]

    def batch(samples: list[dict[str, Any]]) -> tuple[Any, list[str]]:
        return stack(sample["jpg"] for sample in samples), [sample["__key__"] for sample in samples]

    stages = [
        webdataset.SimpleShardList(urls * 10_000),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.batched(job.batch, list),
        webdataset.map(batch),
    ]
    return loader(job, webdataset.DataPipeline(*stages), None)


# ---- wids: random access to tar files that it downloads whole


def start_wids(job: Job) -> Iterable[Any]:
    """At random among all samples."""
    import wids

    shards = [{"url": url, "nsamples": count} for url, count in zip(job.shards, shard_counts(job.index), strict=True)]
    options: dict[str, Any] = {"cache_dir": job.fresh(), "keep": True} if job.place.startswith("s3://") else {"keep": True}
    dataset = wids.ShardListDataset(shards, lru_size=200, transformations=[], **options)
    order = np.random.default_rng(0).integers(0, len(dataset), 10**7)
    return loader(job, dataset, of_wids, sampler=order.tolist())


def of_wids(samples: list[dict[str, Any]]) -> Any:
    """wids gives members as files."""
    return stack(sample[".jpg"].read() for sample in samples)


def shard_counts(index: Index) -> list[int]:
    """Samples of each shard."""
    shard_of = index.blocks["shard"][index.samples["block"]]
    counts: list[int] = np.bincount(shard_of, minlength=len(index.shards)).tolist()
    return counts


# ---- MosaicML Streaming


def write_streaming(job: Job, folder: Path) -> None:
    """Its MDS files."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=8 << 20) as writer:
        for image in itertools.chain.from_iterable(itertools.repeat(job.images, COPIES)):
            writer.write({"jpg": image})


def start_streaming(job: Job) -> Iterable[Any]:
    """In order."""
    from streaming import StreamingDataset

    os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
    place = f"{job.place}/streaming"
    places = {"remote": place, "local": job.fresh()} if place.startswith("s3://") else {"local": place}
    return loader(job, StreamingDataset(**places, shuffle=False, batch_size=job.batch), of_dicts)


def of_dicts(samples: list[dict[str, Any]]) -> Any:
    """Streaming gives columns by name."""
    return stack(sample["jpg"] for sample in samples)


# ---- LitData


def write_litdata(job: Job, folder: Path) -> None:
    """Its chunks."""
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=8 << 20)
    for number, image in enumerate(itertools.chain.from_iterable(itertools.repeat(job.images, COPIES))):
        writer[number] = image
    writer.done()
    writer.merge()


def start_litdata(job: Job) -> Iterable[Any]:
    """In order."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    place = f"{job.place}/litdata"
    options: dict[str, Any] = {}
    if place.startswith("s3://"):
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no setting for a server without TLS
        options = {"cache_dir": job.fresh(), "storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    dataset = StreamingDataset(place, shuffle=False, **options)
    batches: Iterable[Any] = StreamingDataLoader(
        dataset, batch_size=job.batch, collate_fn=stack, num_workers=job.workers, prefetch_factor=2 if job.workers else None
    )
    return batches


# ---- Ray Data


def start_ray(job: Job) -> Iterator[Any]:
    """In order, by as many decoding tasks."""
    import ray

    ray.init("local", num_cpus=max(job.workers, 1), include_dashboard=False, log_to_driver=False, logging_level="error")
    multiprocessing.util.Finalize(None, ray.shutdown, exitpriority=1)  # with this process: batches are still under way before
    ray.data.DataContext.get_current().enable_progress_bars = False
    options: dict[str, Any] = {}
    if job.place.startswith("s3://"):
        from pyarrow.fs import S3FileSystem

        address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
        options["filesystem"] = S3FileSystem(endpoint_override=address.netloc, scheme=address.scheme)
    names = [job.index.shard_url(number).removeprefix("s3://") for number in range(len(job.index.shards))]
    data = ray.data.read_webdataset(names * 100, decoder=None, **options)
    decoded = data.map_batches(of_table, batch_size=job.batch, batch_format="pyarrow")
    return iter(decoded.iter_batches(batch_size=job.batch, prefetch_batches=2))


def of_table(table: Any) -> dict[str, Any]:
    """Ray Data gives batches as Arrow tables (as NumPy arrays, texts of bytes lose zeros at their end)."""
    return {"images": stack(table.column("jpg").to_pylist())}


PEERS = [
    Peer("webdataset in order", "webdataset", start_webdataset),
    Peer("wids at random", "wids", start_wids),
    Peer("MosaicML Streaming in order", "streaming", start_streaming, write_streaming, "streaming"),
    Peer("LitData in order", "litdata", start_litdata, write_litdata, "litdata"),
    Peer("Ray Data in order", "ray.data", start_ray),
]


def bound(peer: Peer, job: Job) -> Callable[[], Iterable[Any]]:
    """Its start."""
    return functools.partial(peer.start, job)
