"""Batches of one rank: draw, fetch, decode, augment, stack; in loader workers that never call Ray.

Loader worker w of W prepares the batches of steps w, w + W, w + 2W ..., and requests the next ones from the storage while it
decodes. The content of a batch depends only on the step, not on the number of ranks or workers.

b images of this rank, B of all ranks.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset, get_worker_info

from datasets.errors import InputError
from datasets.loading.cache import CacheConfig
from datasets.loading.shared_memory import Slots
from datasets.loading.store import Pending, Sample, Store, open_store
from datasets.media.augment import POOL, AugmentConfig, Changes, draw_changes, resize
from datasets.media.decode import Decoder, Image
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import OF_ALL, Sampler, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Int64s, Split

Batch = dict[str, Any]
HARMLESS = {"change": "harmless"}  # of a setting: a resumed run may change it (trainers/engine/config.py)
STAND_INS = 100  # samples that are tried as a replacement of an unreadable one


@dataclass(frozen=True)
class LoaderConfig:
    """How each rank prepares its batches."""

    workers: int = field(default=1, metadata=HARMLESS)
    """Loader processes of each rank; with 0, the training process prepares its batches itself."""
    ahead: int = field(default=4, metadata=HARMLESS)
    """Batches that a loader process requests from the storage before it decodes the first of them."""
    size: tuple[int, int] | None = None
    """Height and width to train at, in pixels; None: the data set's."""
    bad_share: float = field(default=0.01, metadata=HARMLESS)
    """Fraction of samples that may fail to decode before the run ends; each is reported, counted and replaced by another one."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.ahead < 1:
            raise InputError("loader.workers must be at least 0 and loader.ahead at least 1", "loader")
        if self.size is not None and min(self.size) < 8:
            raise InputError(f"loader.size is {self.size}", "loader", "give a height and a width of 8 pixels or more")
        if not 0 <= self.bad_share <= 1:
            raise InputError(f"loader.bad_share is {self.bad_share}", "loader", "give a fraction from 0 to 1")


class RankSlice(NamedTuple):
    """This rank's slice of every global batch."""

    rank: int
    world: int

    def of(self, batch: int) -> slice:
        """Return this rank's rows of a global batch of B."""
        each = batch // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


class _Plan(NamedTuple):
    step: int
    version: int
    draw: int  # crc32c of the global batch's positions [B]
    positions: Int64s  # [b]
    samples: Int64s  # [b]
    changes: Changes  # [B]
    bytes: Pending


class Stream(IterableDataset[Batch]):
    """Base of all streams of batches. Arrays from ``room`` lie in shared memory, so they are not copied between processes."""

    slots: Slots | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder()

    def room(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Return an uninitialised uint8 array for the next batch."""
        return self.slots.room(shape) if self.slots else np.empty(shape, np.uint8)

    def _image(self, data: Sample, out: Image | None = None) -> Image | ValueError:
        """Decode a sample, to ``out`` if the size fits, else valid until the next call; returns the error if it fails."""
        if isinstance(data, ValueError):
            return data
        try:
            return self._decoder.decode(data, out)
        except ValueError as error:
            return error


class BatchStream(Stream):
    """Batches of the steps ``start`` .. ``stop`` - 1 of one rank, in order.

    A batch is a dict: ``images`` uint8 [b, H, W, 3], ``labels`` int64 [b], ``positions`` int64 [b] in the split, ``moves``
    float32 [b, 4] (see `Changes.geometry`), ``step``, ``version`` of the difficulty vector (0: none), ``draw`` (crc32c of the
    global batch's positions), ``bad`` (messages about unreadable samples, which were replaced), ``storage`` (the store's COUNTS
    so far). `load_in_workers` converts the arrays to tensors, images to [b, 3, H, W].
    """

    def __init__(
        self, split: Split, sampler: SamplerConfig, loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig,
        versions: DifficultyTable | None, etags: dict[str, str], part: RankSlice, seed: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        sampler.check_world(part.world)
        self.split, self.loader, self.augment, self.cache, self.etags = split, loader, augment, cache, etags
        self.sampler = Sampler(sampler, split, seed)
        self.versions, self.part, self.seed, self.start, self.stop = versions, part, seed, start, stop
        about = split.index.about
        self.size = loader.size or (int(about["size"][0]), int(about["size"][1]))
        self.mirror = bool(about["mirror"])
        self._pool: list[Image] = []

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        store = open_store(self.split.index, self.etags, self.cache)
        try:
            ahead: deque[_Plan] = deque()
            for step in (steps := range(self.start + first, self.stop, every)):
                # If the next version is missing, the step that computes it may be waiting for the batches here: yield them first.
                while ahead and (len(ahead) >= self.loader.ahead or not self._ready(step)):
                    yield self._prepare(ahead.popleft(), store)
                    store.fill(self._shards)  # only after the first batch, so that it does not wait
                # The first batch must not wait for the megabytes around its samples; the next ones fetch them.
                ahead.append(self._plan(step, store, streaming=step > steps[0]))
            while ahead:
                yield self._prepare(ahead.popleft(), store)
        finally:
            store.close()

    @cached_property
    def _shards(self) -> list[int]:
        return self.split.index.shards_of(self.split.blocks)

    @cached_property
    def _holds_mixed(self) -> bool:
        """Whether the cache is large enough to keep the neighbours of uniformly drawn samples until they are drawn."""
        return self.cache.gib * 2**30 >= self.sampler.mixed_bytes

    def _ready(self, step: int) -> bool:
        return self.versions is None or self.versions.ready(step)

    def _plan(self, step: int, store: Store, *, streaming: bool) -> _Plan:
        difficulty = self.versions.at(step) if self.versions else None
        batch = self.sampler.config.batch
        drawn = self.sampler.draw(step, difficulty)
        positions = drawn[self.part.of(batch)]
        samples = self.split.samples(positions)
        changes = draw_changes(self.augment, self.mirror, self.size, batch, self.seed, step)
        in_order = difficulty is None and self.sampler.config.kind not in OF_ALL and self._holds_mixed
        asked = store.request(samples, streaming=streaming and in_order)
        draw = google_crc32c.value(np.ascontiguousarray(drawn).tobytes())
        return _Plan(step, difficulty.version if difficulty else 0, draw, positions, samples, changes, asked)

    def _prepare(self, plan: _Plan, store: Store) -> Batch:
        rows = range(*self.part.of(self.sampler.config.batch).indices(self.sampler.config.batch))
        images = self.room(len(rows), *self.size, 3)
        positions, bad, changes = plan.positions.copy(), [], plan.changes
        pool = self._patched_from(store) if self.augment.patch else ()
        for place, (row, out, data) in enumerate(zip(rows, images, plan.bytes(), strict=True)):
            image = self._image(data, out if changes.nothing[row] else None)
            if isinstance(image, ValueError):
                bad.append(f"{self.split.index.where(int(plan.samples[place]))}: {image}")
                positions[place], image = self._stand_in(int(plan.positions[place]), store)
            if image is not out:
                changes.apply(row, resize(image, self.size), out, pool)
        return {
            "images": images,
            "labels": self.split.labels_of(positions),
            "positions": positions,
            "moves": plan.changes.geometry(rows, self.size),
            "step": plan.step,
            "version": plan.version,
            "draw": plan.draw,
            "bad": bad,
            "storage": dict(store.counts),
        }

    def _patched_from(self, store: Store) -> list[Image]:
        """The images that patches are cut from, read at the first batch: a rank reads only its slice of a batch, and images of
        that slice would make the patches depend on the number of ranks."""
        if not self._pool:
            positions = generator(self.seed, "patches").integers(len(self.split), size=POOL)
            found = store.request(self.split.samples(positions))()
            for position, data in zip(positions.tolist(), found, strict=True):
                image = self._image(data)
                image = self._stand_in(position, store)[1] if isinstance(image, ValueError) else image
                self._pool.append(resize(image, self.size).copy())
        return self._pool

    def _stand_in(self, position: int, store: Store) -> tuple[int, Image]:
        """Return the replacement of a bad sample: the next of its identity, else of the next identities; the same on any rank."""
        (label,) = self.split.labels_of(np.array([position]))
        first, end = int(self.split.identity_starts[label]), int(self.split.identity_starts[label + 1])
        others = [*range(position + 1, end), *range(first, position)]
        others += [place % len(self.split) for place in range(end, end + STAND_INS)]
        for other in others[:STAND_INS]:
            (data,) = store.request(self.split.samples(np.array([other], np.int64)))()
            image = self._image(data)
            if not isinstance(image, ValueError):
                return other, image
        what = f"none of the {STAND_INS} samples after a bad one can be read"
        where = self.split.index.where(int(self.split.samples(np.array([position], np.int64))[0]))
        raise InputError(what, where, "check the set with `python -m datasets.inspect`")


class SplitStream(Stream):
    """Every sample of a split once, in order, in chunks divided among ranks and loader workers; for evaluation.

    A chunk is a dict: ``images`` uint8 [n, H, W, 3] and ``positions`` int64 [n] of the samples that decode, ``bad``: messages
    about the others. `load_in_workers` converts it like a batch.
    """

    def __init__(
        self, split: Split, size: tuple[int, int], cache: CacheConfig, etags: dict[str, str], part: RankSlice, chunk: int
    ) -> None:
        self.split, self.size, self.cache, self.etags, self.part, self.chunk = split, size, cache, etags, part, chunk

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        store = open_store(self.split.index, self.etags, self.cache)
        try:
            starts = range(0, len(self.split), self.chunk)[self.part.rank :: self.part.world][first::every]
            ahead: deque[tuple[Int64s, Pending]] = deque()
            for start in starts:
                positions = np.arange(start, min(start + self.chunk, len(self.split)), dtype=np.int64)
                ahead.append((positions, store.request(self.split.samples(positions), streaming=True)))
                if len(ahead) > 1:
                    yield self._decoded(*ahead.popleft())
            while ahead:
                yield self._decoded(*ahead.popleft())
        finally:
            store.close()

    def _decoded(self, positions: Int64s, asked: Pending) -> Batch:
        images, places, bad = self.room(len(positions), *self.size, 3), list[int](), []
        for place, data in enumerate(asked()):
            out = images[len(places)]
            image = self._image(data, out)
            if isinstance(image, ValueError):
                bad.append(f"{self.split.index.where(int(self.split.samples(positions[place : place + 1])[0]))}: {image}")
                continue
            if image is not out:
                out[...] = resize(image, self.size)
            places.append(place)
        return {"images": images[: len(places)], "positions": positions[places], "bad": bad}
