"""``python -m datasets.pack_videos LAYOUT SOURCE DESTINATION``: pack clips of videos, frames or skeletons into shards.

Each clip is an identity. Its strips (`datasets.shards.frame_strips`) lie side by side and in order, so that one ranged read gets
a clip or a part of it. Its actions are in the index (``clips.parquet``). What cannot be used is reported:

- a file that is broken, truncated, empty or too large for memory counts against ``--allow-unreadable``;
- a clip with fewer than ``--min-frames`` frames is left out as too short;
- a file that no list names is left out;
- a video with a variable frame rate is resampled to ``--rate`` like any other, and counted.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pyarrow as pa
from rich.console import Console

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, printable, run_main
from datasets.layouts.archive import Archive, name_of_source, open_archive, refuse_inside
from datasets.layouts.listing import Sample
from datasets.layouts.videos import VIDEO_LAYOUTS, VIDEOS, Choice, Clip, ClipListing, Kind, Name, skeletons_of
from datasets.media.flow import METHOD, flow_of
from datasets.media.video import read_video, shrunk
from datasets.numpy_files import MAX_BYTES, arrays_of, texts_of
from datasets.object_storage import open_objects
from datasets.packing.destination import claim, forget
from datasets.packing.plan import index_of, plan_shards
from datasets.packing.summary import lines_of
from datasets.packing.write import Bytes, progress, refuse_unreadable, write_shards
from datasets.shards.frame_strips import STRIP, SUFFIX, Frames, Stream, strips_of
from datasets.shards.index import Index, write_index
from datasets.skipped_files import NAMED
from datasets.splits import HeldOut, counted

VERSION = 2  # of the bytes that a listing produces; part of a pack's fingerprint


@dataclass(frozen=True)
class VideoOptions:
    """Options that, with the videos, decide how a set is packed."""

    stream: Stream = "rgb"
    """What is stored: RGB frames, or the optical flow between them (a separate set); skeletons for skeletons_npz."""
    rate: float = 25.0
    """Frames per second that videos are resampled to; frames_npz and skeletons_npz must already have it."""
    side: int = 128
    """Largest shorter side of a frame, in pixels; larger frames are shrunk."""
    min_frames: int = STRIP
    """Clips with fewer frames are left out."""
    fold: int = 1
    """For ucf101 and hmdb51: which of their three splits."""
    test: str = ""
    """For video_csv and frames_npz: rows that are for testing, as column=value,value."""
    held_out: float = 0.25
    """Fraction of the clips held out for testing if the data set defines no splits."""
    seed: int = 0
    """Seed of the order of the clips."""
    shard_size: Bytes = 64 << 20
    """Largest shard in bytes, e.g. 64MiB."""
    max_block: Bytes = 1 << 20
    """Largest block in bytes: strips of a clip that are read together."""

    def __post_init__(self) -> None:
        for name in ("side", "min_frames", "shard_size", "max_block"):
            if getattr(self, name) < (16 if name == "side" else 1):
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}", "", "give at least 1, of --side 16")
        if not 0 < self.rate <= 1000 or self.fold not in (1, 2, 3):
            raise InputError(f"--rate is {self.rate:g} and --fold {self.fold}", "", "give above 0 up to 1000, and 1, 2 or 3")


@dataclass(frozen=True)
class PackVideos(VideoOptions):
    """Pack videos into shards from which a training job reads only the frames that it needs."""

    layout: Name = field(kw_only=True, metadata={**POSITIONAL, "help": f"Layout of the data: {', '.join(VIDEO_LAYOUTS)}."})
    source: str = field(kw_only=True, metadata=POSITIONAL)
    """The folder, zip or tar that was downloaded, or its s3:// address."""
    destination: str = field(kw_only=True, metadata=POSITIONAL)
    """A folder or s3://bucket/prefix."""
    allow_unreadable: int = 0
    """How many clips may be broken or empty; they are left out and listed."""
    overwrite: bool = False
    """Replace the shards at the destination."""
    quiet: bool = False
    """No progress bar, no summary."""


@dataclass
class _Cut:
    """The clips so far, cut into strips: the sizes of the strips, and by clip the rows of ``clips.parquet``."""

    samples: list[Sample] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    clips: dict[str, tuple[Clip, int, list[str]]] = field(default_factory=dict)  # the clip, its frames, each frame's action
    broken: dict[str, str] = field(default_factory=dict)
    too_short: list[str] = field(default_factory=list)
    variable: int = 0


def pack_videos(
    layout: Name, source: Path | str, destination: str, options: VideoOptions | None = None, *,
    allow_unreadable: int = 0, overwrite: bool = False, quiet: bool = True,
) -> Index:  # fmt: skip
    """Pack clips, or finish an interrupted pack; a complete one is not packed again. Returns the index.

    The strips are in a temporary folder until all clips are decoded; it needs as much space as the set.

    Raises:
        InputError: the source has another layout, a clip is broken, or the destination holds something else.
    """
    options = options or VideoOptions()
    console = Console(stderr=True, quiet=quiet)
    objects = open_objects(destination)
    refuse_inside(objects, source)
    with open_archive(source) as opened, tempfile.TemporaryDirectory(prefix="hardshard-") as folder:
        choice = Choice(HeldOut(options.held_out, options.seed), options.fold, options.test)
        listing = VIDEO_LAYOUTS[layout](opened, choice)
        if (listing.kind == "skeletons") != (options.stream == "skeletons"):
            raise InputError(f"{layout} holds {listing.kind}, not {options.stream}", opened.where, "choose another --stream")
        fingerprint = _fingerprint(listing, opened, layout, options)
        if (done := claim(objects, fingerprint, overwrite)) is not None:
            console.print(f"already whole: {objects.url}", markup=False, highlight=False, soft_wrap=True)
            return done
        cut = _cut_all(listing, opened, options, Path(folder), allow_unreadable, console)
        strips = Archive(opened.where, cut.sizes, lambda name: (Path(folder) / name).read_bytes())
        shards = plan_shards(cut.samples, cut.sizes, options.shard_size, options.max_block, options.seed, in_order=True)
        written = write_shards(shards, strips, objects, fingerprint, 0, console)
    left, seen = _left_out(listing, opened), len(opened.sizes) + sum(map(len, opened.left_out.values()))
    left_out = {rule: {"files": len(names), "first": [printable(name) for name in names[:NAMED]]} for rule, names in left.items()}
    classes = sorted({action for clip, _, _ in cut.clips.values() for action in clip.actions})
    about = {
        "layout": layout, "source": name_of_source(source), "mirror": listing.mirror, **asdict(options), "classes": classes,
        "flow": METHOD if options.stream == "flow" else "", "unreadable": cut.broken, "too_short": cut.too_short,
        "variable_rate": cut.variable, "splits_by": listing.by, "files": seen, "left_out": left_out,
        "fingerprint": fingerprint,
    }  # fmt: skip
    index, keys = index_of(objects.url, shards, written, about)
    write_index(objects, index, keys, clips=_table(index, cut, classes))
    forget(objects)
    _print_summary(index, cut, left, console)
    return index


def frames_of(clip: Clip, kind: Kind, file: IO[bytes], where: str, options: VideoOptions) -> tuple[Frames, list[str], bool]:
    """Return a clip's frames as they will be stored, each frame's action if known (else empty), and if its rate was variable.

    Raises:
        ValueError, InputError: the clip is broken or empty, or there is not enough memory for it.
    """
    actions: list[str] = []
    variable = False
    with _bounded():
        if kind == "skeletons":
            frames, actions = _poses(file.read(), where, clip.entry)
        elif kind == "arrays":
            arrays = arrays_of(file, where, ("frames",), ("actions",))
            frames = _pictures(arrays["frames"], options.side)
            actions = texts_of(arrays["actions"]) if "actions" in arrays else []
            if actions and len(actions) != len(frames):
                raise ValueError(f"it has {len(frames)} frames and the actions of {len(actions)}")
        else:
            frames, variable = read_video(file, options.rate, options.side, clip.start, clip.end)
        if options.stream == "flow" and len(frames) > 1:
            frames, actions = flow_of(frames), actions[:-1]
    return frames, actions, variable


@contextmanager
def _bounded() -> Iterator[None]:
    """Turn errors of too large frames, from memory or OpenCV, into a ValueError."""
    try:
        yield
    except MemoryError as error:
        raise ValueError("not enough memory for its frames") from error
    except cv2.error as error:
        raise ValueError(f"frames that cannot be resized ({error.err})") from error


def frames_of_file(path: Path, name: str, rate: float, side: int, stream: Stream) -> Frames:
    """Read one video, or npz file of frames, as a set with these options would store it; raises InputError, which calls it
    ``name``."""
    options = VideoOptions(stream=stream, rate=rate, side=side)
    kind: Kind = "arrays" if path.suffix.lower() == ".npz" else "videos"
    try:
        with path.open("rb") as file:
            frames, _, _ = frames_of(Clip("test", path.name, ()), kind, file, name, options)
    except OSError as error:
        raise InputError(f"cannot read the video ({error.strerror})", name, "is the path right?") from error
    except ValueError as error:
        raise InputError(str(error), name, "give a whole video, or an npz file with frames") from error
    return frames


def _pictures(frames: Frames, side: int) -> Frames:
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3) or not frames.size:
        raise ValueError(f"frames {frames.dtype} {list(frames.shape)}, not uint8 [T, H, W] or [T, H, W, 3]")
    small: list[Frames] = []
    for frame in frames:
        small.append(shrunk(frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2), side))
        if len(frames) * small[0].nbytes > MAX_BYTES:
            raise ValueError(f"{len(frames):,} frames take more than {MAX_BYTES:,} bytes; lower --side, or split the file")
    return np.stack(small)


def _poses(data: bytes, where: str, entry: int) -> tuple[Frames, list[str]]:
    arrays = skeletons_of(data, where, ("length",))
    last = int(arrays["length"][: entry + 1].sum())
    own = slice(last - int(arrays["length"][entry]), last)
    with np.errstate(over="ignore"):
        poses: Frames = arrays["pose"][own].astype(np.float32)
    if not np.isfinite(poses).all():
        raise ValueError("poses that are no finite numbers")
    return poses, texts_of(arrays["actions"][own]) if "actions" in arrays else []


def _cut_all(listing: ClipListing, source: Archive, options: VideoOptions, folder: Path, allowed: int, console: Console) -> _Cut:
    """Decode every clip and write its strips to the folder."""
    cut = _Cut()
    numbered = {clip.name(number): clip for number, clip in enumerate(sorted(listing.clips, key=_order))}
    file, data = "", io.BytesIO()  # several clips may be of one file
    with progress(console, len(numbered), "reading", "clips") as advance:
        for name, clip in numbered.items():
            if clip.file != file:
                file, data = "", io.BytesIO()  # release the memory of the last file first
            try:
                if not file:
                    with _bounded():
                        file, data = clip.file, io.BytesIO(source.read(clip.file))
                data.seek(0)
                frames, actions, variable = frames_of(clip, listing.kind, data, source.place(file), options)
                if len(frames) < options.min_frames:
                    cut.too_short.append(f"{name} ({printable(clip.file)}, {len(frames)} frames)")
                else:
                    _keep(cut, name, clip, frames, actions, options.stream, folder)
                cut.variable += variable
            except (ValueError, InputError) as error:
                cut.broken[f"{name} ({printable(clip.file)})"] = str(error.args[0])
                refuse_unreadable(cut.broken, allowed, source, "a clip that cannot be read")
            advance(1)
    if not any(sample.split == "train" for sample in cut.samples):
        raise InputError("no clip to train on is left", source.where, "are the layout, --test and --min-frames right?")
    return cut


def _keep(cut: _Cut, name: str, clip: Clip, frames: Frames, actions: list[str], stream: Stream, folder: Path) -> None:
    for number, strip in enumerate(strips_of(frames, stream)):
        path = f"{name}-{number:06d}{SUFFIX[stream]}"
        (folder / path).write_bytes(strip)
        cut.sizes[path] = len(strip)
        cut.samples.append(Sample(clip.split, name, "", path))
    cut.clips[name] = clip, len(frames), actions


def _order(clip: Clip) -> tuple[str, float, int]:
    return clip.file, clip.start, clip.entry


def _fingerprint(listing: ClipListing, source: Archive, layout: str, options: VideoOptions) -> str:
    """Return a hash of the names, sizes, actions and options that determine the shards."""
    method = METHOD if options.stream == "flow" else ""
    digest = hashlib.sha256(json.dumps([VERSION, layout, method, asdict(options)], sort_keys=True).encode())
    for clip in sorted(listing.clips, key=_order):
        digest.update(json.dumps([*asdict(clip).values(), source.sizes[clip.file]]).encode())
    return digest.hexdigest()[:16]


def _table(index: Index, cut: _Cut, classes: Sequence[str]) -> pa.Table:
    """Return the rows of ``clips.parquet``. An action is the number of its class; a frame without one has -1."""
    number = {name: place for place, name in enumerate(classes)}
    rows = [cut.clips[name] for name in index.identities]
    return pa.table({
        "file": pa.array([printable(clip.file) for clip, _, _ in rows], pa.string()),
        "frames": pa.array([count for _, count, _ in rows], pa.int32()),
        "actions": pa.array([[number[action] for action in clip.actions] for clip, _, _ in rows], pa.list_(pa.int16())),
        "frame_actions": pa.array([[number.get(name, -1) for name in own] for _, _, own in rows], pa.list_(pa.int16())),
    })  # fmt: skip


def _left_out(listing: ClipListing, source: Archive) -> dict[str, list[str]]:
    """Return the files without any clip, by the rule that leaves them out."""
    named = {clip.file for clip in listing.clips}.union(listing.lists, *listing.left_out.values())
    rest = [name for name in source.sizes if name not in named]
    endings = tuple(VIDEOS) if listing.kind == "videos" else (".npz",)
    left = {rule: list(names) for rule, names in [*source.left_out.items(), *listing.left_out.items()]}
    left["named by no list"] = [name for name in rest if name.lower().endswith(endings)]
    left["neither clips nor lists"] = [name for name in rest if not name.lower().endswith(endings)]
    return {rule: names for rule, names in left.items() if names}


def _print_summary(index: Index, cut: _Cut, left: Mapping[str, list[str]], console: Console) -> None:
    lines = [f"left out {name}: {reason}" for name, reason in cut.broken.items()]
    lines += [f"left out as too short: {name}" for name in cut.too_short]
    lines += lines_of(left)
    total = sum(shard.size for shard in index.shards) / 2**20
    clips = [clip for clip, _, _ in cut.clips.values()]
    lines.append(
        f"packed {len(clips):,} clips of {len({clip.file for clip in clips}):,} of {index.about['files']:,} files "
        f"({counted(clip.split for clip in clips)}, by {index.about['splits_by']}; {cut.variable} of a variable rate, "
        f"{len(cut.broken)} broken, {len(cut.too_short)} too short), {len(index.about['classes'])} classes, {total:.1f} MiB, "
        f"at {index.url}"
    )
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The command."""
    args = parse(PackVideos, "python -m datasets.pack_videos")
    options = VideoOptions(**{name: getattr(args, name) for name in VideoOptions.__dataclass_fields__})
    pack_videos(
        args.layout, args.source, args.destination, options,
        allow_unreadable=args.allow_unreadable, overwrite=args.overwrite, quiet=args.quiet,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
