"""Batches streamed from tar shards that nobody indexed, through webdataset's pipeline.

The shards stand in one endless sequence: epoch after epoch, each in an order of its own. Reader r of R (a loader process of a
rank) takes every R-th shard of it. So every shard is read once an epoch, whatever the number of shards and readers, and every
rank has a batch for every step. A reader shuffles the samples of a *group* of its shards, then those of the next.

What a reader reads depends on the seed, its number, the number of readers, and its place: the groups that it has finished, and
the samples that it took of the next. Every batch states the place, and checkpoints hold it, so that a resumed run goes on exactly
there. With another number of readers it goes on at the shard after as many as were read.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import get_worker_info
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from datasets.errors import InputError, UnreachableError
from datasets.loading.batches import STAND_INS, Batch, LoaderConfig, RankSlice, Stream
from datasets.loading.store import COUNTS, PATIENCE, pause
from datasets.media.augment import AugmentConfig, draw_changes, resize
from datasets.media.decode import IMAGES, Image
from datasets.object_storage import Bucket, Folder, open_objects
from datasets.seeding import generator
from datasets.shards.identity_rules import Labels
from datasets.shards.tar import INDEX, RECORD
from datasets.shards.tar_reader import TarReader, files_of

SIZE, MIRROR = (224, 224), True  # of images of a set that does not say, as in `datasets.shards.scan`
GROUP = 4  # a group ends with the shard that makes it this many times the shuffled samples
Place = tuple[int, int]  # of a reader: shards in the groups that it has finished, samples that it took of the next group


@dataclass(frozen=True)
class StreamConfig:
    """How tar files that --data names one by one are streamed without an index."""

    identities: int = 0
    """Number of identities. Each sample's label is its identity's number, from 0 on."""
    field: str = ""
    """The field of each sample's .json that holds the number; empty: its .cls holds it."""
    shuffle: int = 1000
    """Samples among which a loader process draws the next one; it keeps their files in memory."""

    def __post_init__(self) -> None:
        if self.identities < 0 or self.shuffle < 1:
            raise InputError("stream.identities must be at least 0 and stream.shuffle at least 1", "stream")


@dataclass(frozen=True)
class ShardList:
    """Tar files that are streamed: the URL of each, and its size in bytes."""

    url: str
    """The addresses that name them."""
    shards: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def checksum(self) -> int:
        """crc32c of names and sizes: it changes if shards are added, or replaced by others of another size."""
        found: int = google_crc32c.value("\n".join(f"{url} {size}" for url, size in self.shards).encode())
        return found


def list_shards(patterns: Sequence[str]) -> ShardList:
    """Find the tar files that addresses with brace patterns name. No shard is read.

    Raises:
        InputError: a pattern is damaged, a file is missing, no whole tar by its size, or named twice.
    """
    urls: list[str] = []
    for pattern in patterns:
        try:
            urls += expand_urls(pattern)
        except (ValueError, AssertionError) as error:  # AssertionError: ${NAME}, which is not in the environment
            raise InputError(f"not a pattern of shards ({error})", pattern, "write it as set-{000..146}.tar") from error
    if len(set(urls)) < len(urls):
        raise InputError("a shard is named twice", next(url for url in urls if urls.count(url) > 1), "name each once")
    sizes: dict[str, dict[str, int]] = {}
    for home in dict.fromkeys(url.rpartition("/")[0] for url in urls):
        sizes[home] = _sizes(home, [url.rpartition("/")[2] for url in urls if url.rpartition("/")[0] == home])
    found = [(url, sizes[url.rpartition("/")[0]].get(url.rpartition("/")[2])) for url in urls]
    shards = tuple((url, size) for url, size in found if size is not None)
    if missing := [url for url, size in found if size is None]:
        raise InputError(f"{len(missing)} of {len(urls)} shards are not there", missing[0], "correct the pattern")
    if cut := [url for url, size in shards if size % RECORD or not size]:
        raise InputError("a shard is cut off: tars have a multiple of 512 bytes", cut[0], "copy it again")
    return ShardList(" ".join(patterns), shards)


def _sizes(home: str, names: Sequence[str]) -> dict[str, int]:
    objects = open_objects(home or ".")
    if isinstance(objects, Bucket):
        first, last = min(names), max(names)  # their common beginning is that of all
        same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        return objects.sizes(first[:same])
    return {name: (objects.path / name).stat().st_size for name in names if (objects.path / name).is_file()}


@dataclass(frozen=True)
class Places:
    """How far each reader of a run has read its shards; empty for data with an index."""

    part: RankSlice
    loaders: int
    """Loader processes of a rank, at least 1."""
    first: int = 0
    """The shard of the endless sequence with which the readers began."""
    readers: dict[int, Place] = field(default_factory=dict)
    """The place of each reader that is not at its beginning, by its number."""

    @staticmethod
    def of(stored: Mapping[str, Any] | None, part: RankSlice, workers: int) -> "Places":
        """The places in a checkpoint (`state`), for readers of this or another number; None: the beginning."""
        loaders = max(workers, 1)
        if not stored:
            return Places(part, loaders)
        places = dict(enumerate(map(tuple, stored["readers"])))
        if (stored["world"], stored["loaders"]) == (part.world, loaders):
            return Places(part, loaders, stored["first"], places)
        return Places(part, loaders, stored["first"] + sum(shards for shards, _ in places.values()))

    def reader(self, step: int) -> int:
        """The number of the reader that prepares this rank's batch of a step."""
        return self.part.rank * self.loaders + step % self.loaders

    def note(self, batch: Batch) -> None:
        """Keep the place that a batch states, if it does."""
        if "read" in batch:
            self.readers[self.reader(batch["step"])] = batch["read"]

    def state(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any] | None:
        """Plain data for a checkpoint; None if nothing was noted. ``gather``: returns the rows of all ranks, in their order."""
        if not self.readers:
            return None
        own = torch.tensor([self.readers.get(self.reader(loader), (0, 0)) for loader in range(self.loaders)])
        places = {"world": self.part.world, "loaders": self.loaders, "first": self.first}
        return {**places, "readers": gather(own).tolist()}


class _Sample(NamedTuple):
    position: int  # shard and number in the shard
    label: int
    image: bytes
    where: str


Samples = Generator[tuple[Place, _Sample], None, None]  # each with its reader's place after it


class ShardStream(Stream):
    """Batches of the steps ``start`` .. ``stop`` - 1 of one rank, in order, from shards without an index.

    A batch is a dict as that of `datasets.loading.batches.BatchStream`, without a difficulty vector. ``labels``: the samples'
    identities; ``positions``: shard x 2^32 + number in the shard; ``draw``: crc32c of this rank's positions; ``read``: the place
    of the reader after the batch. A sample that cannot be decoded is replaced by the next one.
    """

    def __init__(
        self, shards: ShardList, config: StreamConfig, batch: int, loader: LoaderConfig, augment: AugmentConfig,
        places: Places, seed: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        self.shards, self.config, self.batch, self.augment = shards, config, batch, augment
        self.places, self.seed, self.start, self.stop = places, seed, start, stop
        self.size = loader.size or SIZE
        self.counts = dict.fromkeys(COUNTS, 0)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        steps = range(self.start + first, self.stop, every)
        if not steps:
            return
        with closing(self._samples(self.places.reader(steps[0]))) as samples:
            for step in steps:
                yield self._prepare(step, samples)

    def _prepare(self, step: int, samples: Samples) -> Batch:
        rows = range(*self.places.part.of(self.batch).indices(self.batch))
        images = self.room(len(rows), *self.size, 3)
        changes = draw_changes(self.augment, MIRROR, self.size, self.batch, self.seed, step)
        taken, bad, place = list[_Sample](), list[str](), (0, 0)
        for row, out in zip(rows, images, strict=True):
            place, sample, image = self._readable(samples, out if changes.nothing[row] else None, bad)
            taken.append(sample)
            if image is not out:
                changes.apply(row, resize(image, self.size), out)
        positions = np.array([sample.position for sample in taken], np.int64)
        return {
            "images": images,
            "labels": np.array([sample.label for sample in taken], np.int64),
            "positions": positions,
            "moves": changes.geometry(rows, self.size),
            "step": step,
            "version": 0,
            "draw": google_crc32c.value(positions.tobytes()),
            "bad": bad,
            "storage": dict(self.counts),
            "read": place,
        }

    def _readable(self, samples: Samples, out: Image | None, bad: list[str]) -> tuple[Place, _Sample, Image]:
        """The next sample that can be decoded, to ``out`` if the size fits; adds messages about those before it to ``bad``."""
        for _ in range(STAND_INS):
            place, sample = next(samples)
            image = self._image(sample.image, out)
            if not isinstance(image, ValueError):
                return place, sample, image
            bad.append(f"{sample.where}: {image}")
        raise InputError(f"{STAND_INS} samples one after the other cannot be read", bad[-1], "check the shards")

    def _samples(self, reader: int) -> Samples:
        """The endless samples of a reader of this rank from its place on, each with the place after it."""
        (rank, world), loaders = self.places.part, self.places.loaders
        begun, skip = self.places.readers.get(reader, (0, 0))
        numbers = webdataset.DataPipeline(  # not split_by_node: it takes the rank from the environment, whoever set it there
            partial(count, self.places.first + begun * world * loaders),
            webdataset.slice(rank, None, world),
            webdataset.slice(reader % loaders, None, loaders),
        )
        shards = ((place, self._order(place // len(self.shards))[place % len(self.shards)]) for place in numbers)
        with closing(_Source(self.shards, self.counts)) as source:
            while True:
                group = _Group(self, shards, source)
                for taken, sample in enumerate(group.samples(), 1):
                    if taken > skip:
                        yield (begun, taken), sample
                begun, skip = begun + group.begun, 0

    def _make_order(self, epoch: int) -> list[int]:
        order: list[int] = generator(self.seed, "shards", epoch).permutation(len(self.shards)).tolist()
        return order


class _Group:
    """The samples of a reader's next shards, shuffled: a resumed reader reads the group again up to its place."""

    def __init__(self, stream: ShardStream, shards: Iterator[tuple[int, int]], source: "_Source") -> None:
        self.stream, self.shards, self.source = stream, shards, source
        self.begun = self.read = self.number = 0  # shards begun, samples read, keys found in the last shard

    def samples(self) -> Iterator[_Sample]:
        """All samples; raises InputError if there is none."""
        place, shard = next(self.shards)
        mixed, seed = self.stream.config.shuffle, int(generator(self.stream.seed, "shuffle", place).integers(2**62))
        yield from webdataset.DataPipeline(
            partial(self._shards, shard),
            self._files,
            partial(group_by_keys, handler=_refused),
            self._labelled,
            webdataset.shuffle(mixed, initial=mixed, seed=seed),
        )
        if not self.read:
            remedy = f"samples are images ({', '.join(sorted(IMAGES))}) with labels beside them"
            raise InputError(f"no sample in {self.begun} shards", self.stream.shards.url, remedy)

    def _shards(self, shard: int) -> Iterator[int]:
        enough, most = GROUP * self.stream.config.shuffle, len(self.stream.shards)
        while True:
            self.begun, self.number = self.begun + 1, 0
            yield shard
            if self.read >= enough or self.begun >= most:  # continues here after all samples of the shard
                return
            _, shard = next(self.shards)

    def _files(self, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The members of the shards, read by our reader: webdataset's takes a shard that is cut between members for whole."""
        label = "json" if self.stream.config.field else "cls"
        for shard in shards:
            for name, data in files_of(self.source.open(shard), lambda ending: ending == label or f".{ending}" in IMAGES):
                yield {"fname": name, "data": data, "__url__": shard}
            yield {}  # the next shard's members belong to other samples

    def _labelled(self, samples: Iterable[dict[str, Any]]) -> Iterator[_Sample]:
        for sample in samples:
            key, shard = sample["__key__"], sample["__url__"]
            members = {ending: data for ending, data in sample.items() if not ending.startswith("__")}
            self.number += 1
            image = next((data for ending, data in members.items() if f".{ending}" in IMAGES), None)
            if image is not None:
                self.read += 1
                url = self.stream.shards.shards[shard][0]
                label = _identity(key, url, members, self.stream.config)
                yield _Sample((shard << 32) + self.number, label, image, f"{key} in {url}")


def _identity(key: str, url: str, members: Mapping[str, bytes], config: StreamConfig) -> int:
    labels = Labels(key, url, f"{key} in {url}", {ending: len(data) for ending, data in members.items()}, members.__getitem__)
    try:
        text = labels.field(config.field) if config.field else labels.cls()
    except InputError as error:
        what, where, _ = error.args
        raise InputError(what, where, f"label it, or give --stream.field; or {INDEX}") from error
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < config.identities):
        what = f"the identity is '{text[:40]}', and --stream.identities {config.identities} allows the numbers below it"
        raise InputError(what, f"{key} in {url}", f"give their number; or, if identities have names, {INDEX}")
    return int(text)


def _refused(error: Exception) -> bool:
    raise InputError(f"two members of one name ({error.args[0]})", "", "rename one of them, or take it out") from error


class _Source:
    """The shards in a folder or bucket, as one loader process reads them: it gets the next bytes while it uses the last."""

    def __init__(self, shards: ShardList, counts: dict[str, int]) -> None:
        self.shards, self.counts, self.over = shards, counts, threading.Event()
        self.pool = ThreadPoolExecutor(1, "shard")
        self._homes: dict[str, Folder | Bucket] = {}

    def open(self, shard: int) -> TarReader:
        """A reader of the shard from its beginning."""
        url, size = self.shards.shards[shard]
        home, _, name = url.rpartition("/")
        if home not in self._homes:
            self._homes[home] = open_objects(home or ".")
        return _AheadReader(self, self._homes[home], name, size)

    def close(self) -> None:
        """End the thread; a pending retry is cancelled."""
        self.over.set()
        self.pool.shutdown(cancel_futures=True)


class _AheadReader(TarReader):
    def __init__(self, source: _Source, objects: Folder | Bucket, name: str, size: int) -> None:
        super().__init__(objects, name, size, self._count)
        self._source, self._ahead = source, dict[int, Future[bytes]]()

    def fetch(self, start: int) -> bytes:
        pool = self._source.pool
        data = (self._ahead.pop(start, None) or pool.submit(self._get, start)).result()
        if (following := start + len(data)) < self.size:
            self._ahead[following] = pool.submit(self._get, following)
        return data

    def _get(self, start: int) -> bytes:
        latest, tried = time.monotonic() + PATIENCE, 0
        while True:
            try:
                return super().fetch(start)
            except UnreachableError:
                tried += 1
                if time.monotonic() > latest or self._source.over.wait(pause(tried)):
                    raise
                self._source.counts["retries"] += 1

    def _count(self, length: int) -> None:
        self._source.counts["bytes"] += length
        self._source.counts["gets"] += isinstance(self.objects, Bucket)
