"""Batches of video clips for training and evaluation.

A *cut*: L frames of a clip. A *view*: a cut at one place of the frame. b clips of this rank, T frames of a whole clip, V views
of a clip, U actions of a sequence, H x W training size. Frames are uint8 [.., H, W, 3], of skeletons float32 [.., J, D].
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info

from datasets.errors import InputError
from datasets.loading.batches import STAND_INS, Batch, LoaderConfig, RankSlice, Stream
from datasets.loading.cache import CacheConfig
from datasets.loading.clip_changes import ClipAugmentConfig, ClipChange, draw_clip_changes
from datasets.loading.store import Store, open_store, shard_etags
from datasets.media.augment import resize
from datasets.media.decode import Image
from datasets.media.flow import mirrored
from datasets.seeding import generator
from datasets.shards.frame_strips import STRIP, Frames, frames_of_strip
from datasets.shards.index import Index, Int64s, read_index, split_of


@dataclass(frozen=True)
class ClipConfig:
    """How frames are taken from clips."""

    frames: int = 16
    """L: number of frames that a model of single actions sees; a shorter clip is repeated."""
    stride: int = 1
    """Use every n-th frame; with sample even it is not used for single actions."""
    sample: Literal["cut", "even"] = "cut"
    """For single actions. cut: consecutive frames; even: frames spread evenly over the whole clip, for clips that show an action
    from its beginning to its end, at any speed."""
    size: tuple[int, int] = (112, 112)
    """Height and width to train at, in pixels."""
    margin: float = 0.15
    """Frames are resized to cover the size plus this margin, then cropped: in training at random, in tests at the centre."""
    flip: bool | None = None
    """Mirror every second training clip at random; None: only if the data set allows it."""
    test_clips: int = 3
    """Cuts of a test clip, evenly spaced in time; their predictions are averaged."""
    test_crops: int = 1
    """Crops of each of these cuts: 1, the centre, or 3, the centre and two corners."""

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.test_clips) < 1 or self.test_crops not in (1, 3) or not 0 <= self.margin <= 1:
            remedy = "give at least 1 for frames, stride and test_clips, 1 or 3 for test_crops, 0 to 1 for margin"
            raise InputError("settings of the clips are out of range", "clip", remedy)
        if min(self.size) < 16:
            raise InputError(f"clip.size is {self.size}", "clip", "give a height and a width of 16 pixels or more")


class View(NamedTuple):
    """A crop of a frame: the fractions of the spare height above and of the spare width to the left of it; and if mirrored."""

    down: float = 0.5
    right: float = 0.5
    flip: bool = False


CROPS = {1: (View(),), 3: (View(0.0, 0.0), View(), View(1.0, 1.0))}


@dataclass(frozen=True, eq=False)
class ClipSet:
    """An opened set of clips: N clips of all splits, numbered as the identities of the index."""

    index: Index
    etags: dict[str, str]
    class_names: tuple[str, ...]  # not "classes": cloudpickle would take it for torch.classes, and fail
    frames: Int64s  # [N]
    actions: tuple[tuple[int, ...], ...]  # [N]
    first: Int64s  # [N] the sample of the clip's first strip

    @property
    def stream(self) -> str:
        """rgb, flow or skeletons."""
        return str(self.index.about["stream"])

    def clips_of(self, split: str) -> Int64s:
        """Return the clips of a split; raises InputError if there is no such split."""
        return split_of(self.index, split).identities.astype(np.int64)

    def name(self, clip: int) -> str:
        """Describe a clip, for messages."""
        return f"{self.index.identities[clip]} ({self.index.clips.column('file')[clip].as_py()}) in {self.index.url}"

    def frame_actions(self) -> list[Int64s]:
        """Return the class of each frame of each clip, -1 for none; an empty array if a clip's are unknown."""
        return [np.array(row, np.int64) for row in self.index.clips.column("frame_actions").to_pylist()]


def open_clips(url: str) -> ClipSet:
    """Open a set packed by `datasets.pack_videos`.

    Raises:
        InputError: there is no set, it holds no clips, or its strips and frames disagree.
    """
    if not url:
        raise InputError("no data", "--data", "give a set of clips, packed by `python -m datasets.pack_videos`")
    index = read_index(url)
    if not index.clips.num_columns:
        raise InputError("the set holds no clips", index.url, "pack it by `python -m datasets.pack_videos`")
    classes = tuple(index.about.get("classes", ()))
    if missing := {"stream", "mirror"} - set(index.about):
        raise InputError(f"the index does not say {', '.join(sorted(missing))}", index.url, "pack the set again")
    frames = index.clips.column("frames").to_numpy().astype(np.int64)
    owners, first, strips = np.unique(index.identity_of(np.arange(len(index))), return_index=True, return_counts=True)
    if len(owners) != len(frames) or np.any(strips != -(-frames // STRIP)):
        raise InputError("clips and strips do not agree", index.url, "pack the set again")
    actions = tuple(tuple(row) for row in index.clips.column("actions").to_pylist())
    return ClipSet(index, shard_etags(index), classes, frames, actions, first.astype(np.int64))


class Reader:
    """Reads frames of clips from a store."""

    def __init__(self, clips: ClipSet, cache: CacheConfig) -> None:
        self.clips = clips
        self.store: Store = open_store(clips.index, clips.etags, cache)

    def request(self, clip: int, frames: Int64s) -> Callable[[], Frames | ValueError]:
        """Request the frames [L] of a clip, by number; calling the result returns them. Only the strips needed are read."""
        strips = np.unique(frames // STRIP)
        asked = self.store.request(self.clips.first[clip] + strips)
        return lambda: self._frames(clip, frames, strips.tolist(), asked())

    def _frames(self, clip: int, frames: Int64s, strips: list[int], found: Sequence[bytes | ValueError]) -> Frames | ValueError:
        decoded = {}
        try:
            for strip, data in zip(strips, found, strict=True):
                if isinstance(data, ValueError):
                    raise data
                count = min(STRIP, int(self.clips.frames[clip]) - strip * STRIP)
                decoded[strip] = frames_of_strip(data, count)
            return np.stack([decoded[frame // STRIP][frame % STRIP] for frame in frames.tolist()])
        except ValueError as error:
            return ValueError(f"{self.clips.name(clip)}: {error}")

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def drawn(seed: int, step: int, batch: int, count: int) -> Int64s:
    """Draw the global batch of a step from ``count`` clips: shuffled epochs, one after the other."""
    places = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    orders = {int(e): generator(seed, "clips", int(e)).permutation(count) for e in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places.tolist()], np.int64)


def cut_of(total: int, config: ClipConfig, place: float, speed: float = 1.0) -> Int64s:
    """Return the frame numbers of a cut, [L]. ``place``: 0 for the earliest start, 1 for the latest. Short clips are repeated.
    ``speed``: above 1 the cut is of a longer part.

    Of frames that are spread evenly, each is of its part of the clip, an L-th: the first of the part at 0, the last at 1; they
    have no speed.
    """
    if config.sample == "even":
        parts = np.arange(config.frames, dtype=np.float64) + min(place, 1 - 1e-9)
        return (parts * total / config.frames).astype(np.int64)
    numbers = (config.stride * speed * np.arange(config.frames)).astype(np.int64)
    span = int(numbers[-1]) + 1
    offset = int(min(place, 1 - 1e-9) * (total - span + 1)) if total > span else 0
    return (offset + numbers) % total


def cuts_of(total: int, config: ClipConfig) -> list[Int64s]:
    """Return the frame numbers of each cut (part in time) that a test clip of ``total`` frames is evaluated on."""
    return [cut_of(total, config, place) for place in np.linspace(0, 1, config.test_clips)]


def cuts_of_views(frames: Frames, config: ClipConfig, stream: str) -> Frames:
    """Convert a whole clip [T, h, w, 3] to the views for a model of single actions: [V, L, H, W, 3], cuts times crops."""
    cuts = cuts_of(len(frames), config)
    return np.stack([seen(frames[cut], config, view, stream) for view in CROPS[config.test_crops] for cut in cuts])


def seen(frames: Frames, config: ClipConfig, view: View, stream: str) -> Frames:
    """Resize and crop frames for the model: [L, h, w, 3] -> [L, H, W, 3]; skeletons stay as they are."""
    if stream == "skeletons":
        return frames
    height, width = config.size
    scale = max(height / frames.shape[1], width / frames.shape[2]) * (1 + config.margin)
    cover = max(round(frames.shape[1] * scale), height), max(round(frames.shape[2] * scale), width)
    top, left = round(view.down * (cover[0] - height)), round(view.right * (cover[1] - width))
    out = np.stack([resize(frame, cover)[top : top + height, left : left + width] for frame in frames])
    if view.flip:
        out = mirrored(out) if stream == "flow" else out[:, :, ::-1]
    return out


def whole_of(total: int, stride: float) -> Int64s:
    """Return the numbers of the frames of a whole clip of ``total`` frames of which every ``stride``-th is used, [T]."""
    return np.arange(0, total, stride).astype(np.int64)


def seen_picture(image: Image, config: ClipConfig) -> Image:
    """Resize and crop a single frame for the model."""
    picture: Image = seen(image[None], config, View(), "rgb")[0]
    return picture


class _Plan(NamedTuple):
    step: int
    positions: Int64s  # [b] among the split's clips
    views: list[View]
    asked: list[Callable[[], Frames | ValueError]]
    places: list[float]
    changes: list[ClipChange]


class ClipStream(Stream):
    """Training batches of steps ``start`` .. ``stop`` - 1 of one rank; their content depends only on (seed, step).

    With ``whole`` False, for single actions: "clips" [b, L, ...] cut at random times, "labels" int64 [b]. Otherwise, for
    sequences: "clips" [b, T, ...] padded with zeros, "lengths" int64 [b] in frames, "targets" int64 [b, U] padded with -1,
    "labels" int64 [b], the first target of each, and if ``frame_targets`` are given "frame_targets" int64 [b, T], -1 for none.
    Always "positions" int64 [b], "step", "bad" (messages about unreadable clips, which were replaced) and "storage" (the store's
    COUNTS so far).
    """

    def __init__(
        self, clips: ClipSet, chosen: Int64s, config: ClipConfig, batch: int, loader: LoaderConfig, cache: CacheConfig,
        part: RankSlice, seed: int, start: int, stop: int, *, whole: bool = False, frame_targets: Sequence[Int64s] = (),
        augment: ClipAugmentConfig | None = None,
    ) -> None:  # fmt: skip
        self.clips, self.chosen, self.config, self.batch, self.loader, self.cache = clips, chosen, config, batch, loader, cache
        self.part, self.seed, self.start, self.stop = part, seed, start, stop
        self.whole, self.frame_targets, self.augment = whole, frame_targets, augment or ClipAugmentConfig()
        self.flip = bool(clips.index.about["mirror"]) if config.flip is None else config.flip

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = Reader(self.clips, self.cache)
        try:
            ahead: deque[_Plan] = deque()
            for step in range(self.start + first, self.stop, every):
                ahead.append(self._plan(step, reader))
                if len(ahead) >= self.loader.ahead:
                    yield self._prepare(ahead.popleft(), reader)
                    reader.store.fill(self._shards)
            while ahead:
                yield self._prepare(ahead.popleft(), reader)
        finally:
            reader.close()

    @cached_property
    def _shards(self) -> list[int]:
        first = self.clips.first[self.chosen]
        last = first + (self.clips.frames[self.chosen] - 1) // STRIP
        return self.clips.index.shards_of(self.clips.index.samples["block"][np.concatenate([first, last])])

    def _plan(self, step: int, reader: Reader) -> _Plan:
        u = generator(self.seed, "views", step).random((4, self.batch))[:, self.part.of(self.batch)]
        positions = drawn(self.seed, step, self.batch, len(self.chosen))[self.part.of(self.batch)]
        views = [View(float(d), float(r), bool(f < 0.5) and self.flip) for d, r, f in u[:3].T]
        places = u[3].tolist()
        changes = draw_clip_changes(self.augment, self.batch, self.seed, step)[self.part.of(self.batch)]
        rows = zip(positions.tolist(), places, changes, strict=True)
        asked = [self._ask(position, place, change.speed, reader) for position, place, change in rows]
        return _Plan(step, positions, views, asked, places, changes)

    def _ask(self, position: int, place: float, speed: float, reader: Reader) -> Callable[[], Frames | ValueError]:
        clip = int(self.chosen[position])
        return reader.request(clip, self._frames(clip, place, speed))

    def _frames(self, clip: int, place: float, speed: float) -> Int64s:
        total = int(self.clips.frames[clip])
        return whole_of(total, self.config.stride * speed) if self.whole else cut_of(total, self.config, place, speed)

    def _prepare(self, plan: _Plan, reader: Reader) -> Batch:
        positions, bad, cuts = plan.positions.copy(), [], []
        for row, (asked, change) in enumerate(zip(plan.asked, plan.changes, strict=True)):
            frames = asked()
            if isinstance(frames, ValueError):
                bad.append(str(frames))
                positions[row], frames = self._stand_in(int(positions[row]), plan.places[row], change.speed, reader)
            shown = seen(frames, self.config, plan.views[row], self.clips.stream)
            cuts.append(change.apply(shown, self.clips.stream))
        clips = self.chosen[positions]
        labels = np.array([self.clips.actions[clip][0] for clip in clips], np.int64)
        common = {"labels": labels, "positions": positions, "step": plan.step, "bad": bad, "storage": dict(reader.store.counts)}
        return common | (self._padded(cuts, clips, plan) if self.whole else {"clips": np.stack(cuts)})

    def _padded(self, cuts: list[Frames], clips: Int64s, plan: _Plan) -> Batch:
        lengths = np.array([len(cut) for cut in cuts], np.int64)
        frames = padded(cuts, 0)
        targets = padded([np.array(self.clips.actions[clip], np.int64) for clip in clips], -1)
        batch = {"clips": frames, "lengths": lengths, "targets": targets}
        if len(self.frame_targets):
            rows = zip(clips.tolist(), plan.places, plan.changes, strict=True)
            each = [self.frame_targets[clip][self._frames(clip, place, change.speed)] for clip, place, change in rows]
            batch["frame_targets"] = padded(each, -1)
        return batch

    def _stand_in(self, position: int, place: float, speed: float, reader: Reader) -> tuple[int, Frames]:
        """Return the replacement of a bad clip: the next one that can be read."""
        count = len(self.chosen)
        for other in [(position + step) % count for step in range(1, min(STAND_INS, count))]:
            frames = self._ask(other, place, speed, reader)()
            if not isinstance(frames, ValueError):
                return other, frames
        where = self.clips.name(int(self.chosen[position]))
        remedy = "check the set with `python -m datasets.inspect`"
        raise InputError("none of the clips after a bad one can be read", where, remedy)


class ClipViews(Stream):
    """Every chosen clip once, in order, divided among ranks and loader workers: "position" int, "clips" and "bad".

    With ``whole`` False, "clips" [V, L, ...] are the clip's views: ``test_clips`` cuts times ``test_crops`` crops; otherwise the
    whole clip [1, T, ...]. For an unreadable clip "clips" is empty and "bad" says why.
    """

    def __init__(
        self, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, part: RankSlice, *, whole: bool = False
    ) -> None:
        self.clips, self.chosen, self.config, self.cache, self.part, self.whole = clips, chosen, config, cache, part, whole

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = Reader(self.clips, self.cache)
        try:
            ahead: deque[Callable[[], Batch]] = deque()
            for position in range(len(self.chosen))[self.part.rank :: self.part.world][first::every]:
                ahead.append(self._ask(position, reader))
                if len(ahead) > 2:
                    yield ahead.popleft()()
            while ahead:
                yield ahead.popleft()()
        finally:
            reader.close()

    def _ask(self, position: int, reader: Reader) -> Callable[[], Batch]:
        clip = int(self.chosen[position])
        total = int(self.clips.frames[clip])
        whole = [whole_of(total, self.config.stride)]
        cuts = whole if self.whole else cuts_of(total, self.config)
        return partial(self._views, position, len(cuts), reader.request(clip, np.concatenate(cuts)))

    def _views(self, position: int, cuts: int, asked: Callable[[], Frames | ValueError]) -> Batch:
        frames = asked()
        if isinstance(frames, ValueError):
            return {"position": position, "clips": np.empty((0,), np.uint8), "bad": [str(frames)]}
        if self.whole:
            return {"position": position, "clips": seen(frames, self.config, View(), self.clips.stream)[None], "bad": []}
        crops = [seen(frames, self.config, view, self.clips.stream) for view in CROPS[self.config.test_crops]]
        views = [view for crop in crops for view in np.split(crop, cuts)]
        return {"position": position, "clips": np.stack(views), "bad": []}


def padded(arrays: Sequence[Frames], fill: int) -> Frames:
    """Stack arrays of different lengths to one array [b, longest, ...], padded with ``fill``."""
    out = np.full((len(arrays), max(len(array) for array in arrays), *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in enumerate(arrays):
        out[row, : len(array)] = array
    return out
