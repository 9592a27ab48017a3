"""Batches for one rank: draw, fetch, decode, change, stack; in worker processes that never call Ray.

Loader worker w of W prepares steps w, w + W, w + 2W ..., whole batches in order, and asks the storage for the next ones
while it decodes. What a batch holds depends on the step alone, not on how many ranks or workers there are.

b images of this rank, B of all ranks.
"""

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.augment import AugmentConfig, Changes, draw_changes, resize
from datasets.cache import CacheConfig
from datasets.decode import Decoder, Image
from datasets.errors import InputError
from datasets.index import Int64s, Split
from datasets.sampling import Sampler, SamplerConfig
from datasets.slots import Placed, Slots
from datasets.store import BucketStore, FolderStore, Pending, Sample, open_store
from datasets.versions import VersionTable

Batch = dict[str, Any]
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
PREFETCH = 2  # batches that a loader process prepares before the first is taken
LENT = 3  # batches of a loader process that are not copied for who holds them: the one at hand, the one before, one in between
HARMLESS = {"change": "harmless"}  # of a setting: a run that goes on may change it (trainers/engine/config.py)
STAND_INS = 100  # samples tried in the place of one that cannot be read


@dataclass(frozen=True)
class LoaderConfig:
    """How a rank's batches are prepared."""

    workers: int = field(default=1, metadata=HARMLESS)
    """Loader processes of each rank; 0 prepares batches in the training process."""
    ahead: int = field(default=4, metadata=HARMLESS)
    """Batches that a worker asks the storage for before it decodes the first of them."""
    size: tuple[int, int] | None = None
    """Height and width trained at, in pixels; None: as the data set says."""
    bad_share: float = field(default=0.01, metadata=HARMLESS)
    """Share of samples that may fail to decode before the run ends; each is named, counted and replaced by the next one."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.ahead < 1:
            raise InputError("loader.workers must be at least 0 and loader.ahead at least 1", "loader")
        if self.size is not None and min(self.size) < 8:
            raise InputError(f"loader.size is {self.size}", "loader", "give a height and a width of 8 pixels or more")
        if not 0 <= self.bad_share <= 1:
            raise InputError(f"loader.bad_share is {self.bad_share}", "loader", "give a share from 0 to 1")


class Share(NamedTuple):
    """This rank's slice of every global batch."""

    rank: int
    world: int

    def of(self, batch: int) -> slice:
        """Its rows of a global batch of B."""
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
    """Gives batches; their images are best written to its ``room``, from where they need not be copied to cross processes."""

    slots: Slots | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder()

    def room(self, *shape: int) -> npt.NDArray[np.uint8]:
        """An uint8 array for the next batch, not initialised."""
        return self.slots.room(shape) if self.slots else np.empty(shape, np.uint8)

    def _image(self, data: Sample, out: Image | None = None) -> Image | ValueError:
        """What a sample decodes to, until the next is decoded: ``out`` itself if it has that size; or why it does not."""
        if isinstance(data, ValueError):
            return data
        try:
            return self._decoder.decode(data, out)
        except ValueError as error:
            return error


class BatchStream(Stream):
    """Batches of the steps ``start`` .. ``stop`` - 1 of one rank, in order.

    A batch: ``images`` uint8 [b, H, W, 3], ``labels`` int64 [b], ``positions`` int64 [b], ``moves`` float32 [b, 4] (see
    `Changes.geometry`), ``step``, ``version`` (0: drawn evenly), ``draw`` (crc32c of the global batch's positions), ``bad``
    (sentences: samples that could not be read and were replaced), ``storage`` (the store's COUNTS so far). ``behind_workers``
    hands its arrays on as tensors, images as [b, 3, H, W].
    """

    def __init__(
        self, split: Split, sampler: SamplerConfig, loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig,
        versions: VersionTable | None, etags: dict[str, str], share: Share, seed: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        sampler.check_world(share.world)
        self.split, self.loader, self.augment, self.cache, self.etags = split, loader, augment, cache, etags
        self.sampler = Sampler(sampler, split, seed)
        self.versions, self.share, self.seed, self.start, self.stop = versions, share, seed, start, stop
        about = split.index.about
        self.size = loader.size or (int(about["size"][0]), int(about["size"][1]))
        self.mirror = bool(about["mirror"])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        store = open_store(self.split.index, self.etags, self.cache)
        try:
            ahead: deque[_Plan] = deque()
            for step in (steps := range(self.start + first, self.stop, every)):
                # A version that is not here yet may come from a step that waits for the batches we hold: hand them over first.
                while ahead and (len(ahead) >= self.loader.ahead or not self._ready(step)):
                    yield self._prepare(ahead.popleft(), store)
                    store.fill(self._shards)  # nor before the first batch is out
                # The first batch must not wait for the megabytes around its samples, which the next ones bring.
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
        """Whether the cache keeps the neighbours of an even draw until they are drawn themselves."""
        return self.cache.gib * 2**30 >= self.sampler.mixed_bytes

    def _ready(self, step: int) -> bool:
        return self.versions is None or self.versions.ready(step)

    def _plan(self, step: int, store: FolderStore | BucketStore, *, streaming: bool) -> _Plan:
        version = self.versions.at(step) if self.versions else None
        batch = self.sampler.config.batch
        drawn = self.sampler.draw(step, version)
        positions = drawn[self.share.of(batch)]
        samples = self.split.samples(positions)
        changes = draw_changes(self.augment, self.mirror, self.size, batch, self.seed, step)
        in_order = version is None and self.sampler.config.kind != "pk" and self._holds_mixed
        asked = store.request(samples, streaming=streaming and in_order)
        draw = google_crc32c.value(np.ascontiguousarray(drawn).tobytes())
        return _Plan(step, version.number if version else 0, draw, positions, samples, changes, asked)

    def _prepare(self, plan: _Plan, store: FolderStore | BucketStore) -> Batch:
        rows = range(*self.share.of(self.sampler.config.batch).indices(self.sampler.config.batch))
        images = self.room(len(rows), *self.size, 3)
        positions, bad, changes = plan.positions.copy(), [], plan.changes
        for place, (row, out, data) in enumerate(zip(rows, images, plan.bytes(), strict=True)):
            image = self._image(data, out if changes.nothing[row] else None)
            if isinstance(image, ValueError):
                bad.append(f"{self.split.index.where(int(plan.samples[place]))}: {image}")
                positions[place], image = self._stand_in(int(plan.positions[place]), store)
            if image is not out:
                changes.apply(row, resize(image, self.size), out)
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

    def _stand_in(self, position: int, store: FolderStore | BucketStore) -> tuple[int, Image]:
        """The sample that replaces a bad one on whatever rank: the next of its identity, or else of the identities after it."""
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


def behind_workers(stream: Stream, workers: int, *, pin: bool = False) -> Generator[Batch, None, None]:
    """A stream behind ``workers`` processes, in order; they are forked, so that they share the versions' memory.

    Its arrays come as tensors, images as [b, 3, H, W].

    ``pin`` copies batches to page-locked memory, for a GPU. What the stream raises as InputError is raised as it is.
    """
    if workers < 0:
        raise InputError(f"{workers} loader processes", "--workers", "give 0 or more")
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": PREFETCH, "multiprocessing_context": multiprocessing.get_context("fork")}
        options["worker_init_fn"] = _die_with_parent
        stream.slots = Slots(workers, PREFETCH + 1, LENT)
    for item in DataLoader(_Told(stream), batch_size=None, collate_fn=_as_it_is, num_workers=workers, **options):
        if isinstance(item, InputError):
            raise item
        yield _tensors(item, stream.slots, pin)


def _tensors(sent: "_Sent", slots: Slots | None, pin: bool) -> Batch:
    """A batch with its arrays as tensors, those in the slots where they lie; images as [b, 3, H, W]."""
    batch = dict(sent.batch)
    if slots:
        placed = {name: value for name, value in batch.items() if isinstance(value, Placed)}
        batch |= zip(placed, slots.get(sent.slot, placed.values()), strict=True)
    for name, value in batch.items():
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(value)
            batch[name] = tensor.pin_memory() if pin else tensor
    return batch | {name: batch[name].permute(0, 3, 1, 2) for name in batch if name.endswith("images")}


def _die_with_parent(_: int) -> None:
    """A loader whose training process was killed would wait for ever to hand a batch over, and keep the dead one's sockets
    open, so that Ray would not notice the death."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_it_is(item: Any) -> Any:
    return item


class _Sent(NamedTuple):
    """What comes from a loader process: a batch, whose large arrays may lie in a slot."""

    slot: int
    batch: Batch


class _Told(IterableDataset[_Sent | InputError]):
    """Hands an InputError over like a batch: DataLoader would raise one whose text is the worker's traceback.

    Large arrays are left in the slots. Torch would send a file descriptor a tensor through a server in the loader process, and a
    run with a killed worker was seen to hang there.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[_Sent | InputError]:
        slots, info, batches = self.stream.slots, get_worker_info(), iter(self.stream)
        try:
            while True:
                slot = slots.begin(info.id) if slots and info else 0
                batch = next(batches, None)
                if batch is None:
                    return
                yield _Sent(slot, {k: slots.put(v) if slots and isinstance(v, np.ndarray) else v for k, v in batch.items()})
        except InputError as error:
            yield error


class BadSamples:
    """Counts samples that failed to decode, and ends the run when they are too many."""

    def __init__(self, share: float, samples: int) -> None:
        self.share, self.samples, self.seen = share, samples, 0
        self.names: dict[str, None] = {}  # each sample once, however often hard draws come back to it

    def note(self, batch: Batch) -> list[str]:
        """Count a batch; returns the failures that were not known yet.

        Raises:
            InputError: more than the set share of the samples drawn so far failed, of at least a hundred.
        """
        self.seen += len(batch["labels"])
        fresh = [name for name in batch["bad"] if name not in self.names]
        self.names.update(dict.fromkeys(fresh))
        seen = min(self.seen, self.samples)
        if len(self.names) > self.share * max(seen, 100):
            shown = list(self.names)[:20]
            more = f" (+{len(self.names) - len(shown)} more)" if len(self.names) > len(shown) else ""
            what = f"{len(self.names)} of {seen} samples could not be read, more than the share of {self.share:g} allowed"
            remedy = "check the set with `python -m datasets.inspect`, or raise --loader.bad-share"
            raise InputError(what, "; ".join(shown) + more, remedy)
        return fresh


class SplitStream(Stream):
    """Every sample of a split once, in order, in chunks shared out over ranks and loader workers: for evaluation.

    A chunk: ``images`` uint8 [n, H, W, 3] and ``positions`` int64 [n] of the samples that decode, ``bad`` for those that don't;
    as tensors from ``behind_workers``, like a batch.
    """

    def __init__(
        self, split: Split, size: tuple[int, int], cache: CacheConfig, etags: dict[str, str], share: Share, chunk: int
    ) -> None:
        self.split, self.size, self.cache, self.etags, self.share, self.chunk = split, size, cache, etags, share, chunk

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        store = open_store(self.split.index, self.etags, self.cache)
        try:
            starts = range(0, len(self.split), self.chunk)[self.share.rank :: self.share.world][first::every]
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
