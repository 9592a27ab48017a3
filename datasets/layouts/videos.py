"""Layouts of videos: from folders, lists and manifests to clips with their actions in order.

A layout reads lists, never frames. Where nothing defines the test clips, a hash of each file's name decides: a clip's split
does not depend on other files.
"""

import io
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy.typing as npt

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.listed_files import ListedFiles
from datasets.layouts.listing import clean
from datasets.numpy_files import arrays_of, texts_of
from datasets.splits import HeldOut, checked_split, split_by_hash, split_of_file, splits_by_names
from datasets.text_files import csv_rows

VIDEOS = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"}
SKELETONS = "pose float [sum of T, J, D], length int [n] and label [n] are expected"
Kind = Literal["videos", "arrays", "skeletons"]


@dataclass(frozen=True)
class Clip:
    """A part of a file, from ``start`` to ``end`` in seconds, with its actions in order."""

    split: str
    file: str
    actions: tuple[str, ...]
    start: float = 0.0
    end: float = math.inf
    entry: int = 0
    """Number of the clip in a file that holds several (skeletons)."""

    def name(self, number: int) -> str:
        """Return the clip's name in a set; ``number``: its place in the set."""
        return f"{clean(PurePosixPath(self.file).stem)[:72]}-{number:06d}"


@dataclass(frozen=True)
class ClipListing:
    """The clips of a set. ``mirror``: whether a mirrored clip shows the same action."""

    kind: Kind
    clips: list[Clip]
    mirror: bool
    by: str
    """Where the splits come from, in words."""
    lists: tuple[str, ...] = ()
    """The lists and manifests that were read."""
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    """Files that the set's own lists leave out, by rule in words."""


@dataclass(frozen=True)
class Choice:
    """Options that choose the test clips, where a layout has a choice."""

    held_out: HeldOut
    fold: int = 1
    test: str = ""


def ucf101(archive: Archive, choice: Choice) -> ClipListing:
    """Read UCF-101: one folder per class, and ``trainlist01.txt`` .. ``testlist03.txt`` (fold 1, 2 or 3).

    A line is a path; in the training lists the number of the class follows.
    """
    places = _videos(archive)
    clips, lists = [], []
    for split in ("train", "test"):
        path = _list(archive, f"{split}list{choice.fold:02d}.txt")
        lists.append(path)
        for line, where in _lines(archive, path):
            name = re.sub(r"\s+\d+$", "", line).replace("\\", "/")
            clips.append((Clip(split, places.find(name, where), (PurePosixPath(name).parent.name,)), where))
    return ClipListing("videos", _once(clips), mirror=True, by=f"the lists of fold {choice.fold}", lists=tuple(lists))


def hmdb51(archive: Archive, choice: Choice) -> ClipListing:
    """Read HMDB-51: one folder per class, and ``<class>_test_split1.txt`` with ``name.avi 1`` (1 train, 2 test, 0 neither)."""
    places = _videos(archive)
    ending = f"_test_split{choice.fold}.txt"
    names = sorted({PurePosixPath(name).name for name in archive.sizes if name.endswith(ending)})
    if not names:
        raise InputError(f"no <class>{ending}", archive.where, "unpack HMDB-51's split lists beside its class folders")
    folders = {str(PurePosixPath(name).parent) for name in archive.sizes if _is_video(name)}
    clips, lists, neither = [], [_list(archive, name) for name in names], []
    for name, path in zip(names, lists, strict=True):
        action = name.removesuffix(ending)
        own = [folder for folder in folders if PurePosixPath(folder).name == action]
        for line, where in _lines(archive, path):
            parsed = re.fullmatch(r"(\S.*?)\s+([012])", line)
            if parsed is None:
                raise InputError("a line that cannot be read", where, "lines like `name.avi 1` are expected")
            file = places.find(parsed[1], where, own[0] if len(own) == 1 else "")
            if parsed[2] == "0":
                neither.append(file)
            else:
                clips.append((Clip("train" if parsed[2] == "1" else "test", file, (action,)), where))
    left = {f"in neither split of fold {choice.fold}": neither} if neither else {}
    by = f"the lists of fold {choice.fold}"
    return ClipListing("videos", _once(clips), mirror=True, by=by, lists=tuple(lists), left_out=left)


def video_csv(archive: Archive, choice: Choice) -> ClipListing:
    """Read videos and one csv, or one per split (``train.csv``, ``test.csv``).

    Columns: file; label, or labels in order, separated by ``;``; optionally start and end in seconds, and split.
    """
    return _by_csv(archive, choice, "file", "videos", VIDEOS)


def frames_npz(archive: Archive, choice: Choice) -> ClipListing:
    """Read npz files with ``frames`` uint8 [T, H, W] or [T, H, W, 3], and a csv as for `video_csv`, with path instead of file.

    A file may also have ``actions``: text [T], the action of each frame, empty for none.
    """
    return _by_csv(archive, choice, "path", "arrays", {".npz"})


def skeletons_npz(archive: Archive, choice: Choice) -> ClipListing:
    """Read npz files of skeletons: ``pose`` float [sum of T, J, D], ``length`` int [n], ``label`` [n], or labels in order,
    separated by ``;``. A file may also have ``actions``: text [sum of T], the action of each frame, empty for none.

    The split comes from the name of the file or its folder, else from a hash.
    """
    files = [name for name in archive.sizes if name.lower().endswith(".npz")]
    if not files:
        raise InputError("no npz file", archive.where, "files with pose, length and label are expected")
    said, clips = _said(files), []
    for file in files:
        where = archive.place(file)
        arrays = skeletons_of(archive.read(file), where, ("length", "label"))
        try:
            labels = texts_of(arrays["label"])
        except ValueError as error:
            raise InputError(f"label is {error}", where, SKELETONS) from error
        if len(labels) != len(arrays["length"]):
            raise InputError(f"{len(labels)} labels to {len(arrays['length'])} lengths", where, SKELETONS)
        for entry, label in enumerate(labels):
            split = said[file] or split_by_hash(f"{file}#{entry}", choice.held_out)
            clips.append(Clip(split, file, _actions({"labels": label}, f"entry {entry} of {where}"), entry=entry))
    by = ["the names of files"] if any(said.values()) else []
    if not all(said.values()):
        by.append(f"a hash of each clip's name, a fraction of {choice.held_out.fraction:g} for test")
    return ClipListing("skeletons", clips, mirror=False, by=", else ".join(by))


Name = Literal["ucf101", "hmdb51", "video_csv", "frames_npz", "skeletons_npz"]
VIDEO_LAYOUTS: dict[Name, Callable[[Archive, Choice], ClipListing]] = dict(
    zip(get_args(Name), (ucf101, hmdb51, video_csv, frames_npz, skeletons_npz), strict=True)
)


def skeletons_of(data: bytes, where: str, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Read ``pose``, the arrays ``names``, length among them, and ``actions`` if there are any, of a file of skeletons; raises
    InputError if they disagree."""
    arrays = arrays_of(io.BytesIO(data), where, ("pose", *names), ("actions",))
    pose, length = arrays["pose"], arrays["length"]
    if pose.ndim != 3 or pose.dtype.kind not in "fiu" or length.ndim != 1 or length.dtype.kind not in "iu":
        what = f"pose {pose.dtype} {list(pose.shape)} and length {length.dtype} {list(length.shape)}"
        raise InputError(what, where, SKELETONS)
    lengths = length.tolist()
    if min(lengths, default=0) < 0 or sum(lengths) != len(pose):
        what = f"{len(pose)} poses, and lengths (the least is {min(lengths, default=0)}) that do not add up to them"
        raise InputError(what, where, SKELETONS)
    if "actions" in arrays and arrays["actions"].shape != pose.shape[:1]:
        what = f"{len(pose)} poses and the actions of {list(arrays['actions'].shape)}"
        raise InputError(what, where, "give actions text [sum of T], or leave them out")
    return arrays


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEOS


def _videos(archive: Archive) -> ListedFiles:
    return ListedFiles(filter(_is_video, archive.sizes), "video")


def _once(clips: list[tuple[Clip, str]]) -> list[Clip]:
    """Return each clip once; raises InputError where it is listed again with another split or other actions."""
    kept: dict[tuple[str, float, float], Clip] = {}
    for clip, where in clips:
        before = kept.setdefault((clip.file, clip.start, clip.end), clip)
        if before != clip:
            first, second = (f"{one.split} {';'.join(one.actions)}" for one in (before, clip))
            raise InputError(f"{clip.file} is named as {second}, and before as {first}", where, "name a clip once")
    return list(kept.values())


def _said(names: Collection[str]) -> dict[str, str]:
    """Return the split that each path names, below the folder that contains all of them; "" for none."""
    around = os.path.commonpath([PurePosixPath(name).parent for name in names]) if names else ""
    return {name: split_of_file(str(PurePosixPath(name).relative_to(around))) for name in names}


def _list(archive: Archive, name: str) -> str:
    """Return the path of a list anywhere in the archive; raises InputError where there is none, or there are two that differ."""
    paths = [path for path in archive.sizes if PurePosixPath(path).name == name]
    if not paths:
        raise InputError(f"no {name}", archive.where, "is the download whole, and the fold right?")
    for path in paths[1:]:
        if archive.read(path) != archive.read(paths[0]):
            raise InputError(f"two lists {name} that differ: {paths[0]} and {path}", archive.where, "take one of them out")
    return paths[0]


def _lines(archive: Archive, path: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a list that are not empty, each with where it is, in words."""
    for number, line in enumerate(archive.text(path).splitlines(), 1):
        if line.strip():
            yield line.strip(), f"line {number} of {archive.place(path)}"


@dataclass(frozen=True)
class _Row:
    """A row of a csv: its cells, where it is (in words), the file that it names, and the split that the csv's name means."""

    cells: Mapping[str, str]
    where: str
    file: str
    split: str


def _by_csv(archive: Archive, choice: Choice, column: str, kind: Kind, suffixes: Collection[str]) -> ClipListing:
    lists = [name for name in archive.sizes if name.lower().endswith(".csv")]
    said = _said(lists) if len(lists) > 1 else dict.fromkeys(lists, "")
    places = ListedFiles((name for name in archive.sizes if PurePosixPath(name).suffix.lower() in suffixes), "file")
    rows: list[_Row] = []
    for path, split in said.items():
        where = archive.place(path)
        for place, cells in csv_rows(archive.text(path), where, (column,)):
            if "label" not in cells and "labels" not in cells:
                raise InputError("no column label or labels", where, f"it has: {', '.join(cells)}")
            if not split and len(lists) > 1 and "split" not in cells:
                what = f"{len(lists)} csv files, and this one says no split"
                raise InputError(what, where, "give one csv, or one a split: train.csv, val.csv, test.csv")
            beside = str(PurePosixPath(path).parent)
            file = places.find(cells[column], place, "" if beside == "." else beside, split)
            rows.append(_Row(cells, place, file, split))
    if not rows:
        what = "a csv without rows" if lists else "no csv file"
        raise InputError(what, archive.where, f"one with {column}, and label or labels is expected")
    of, by = _splits(rows, choice, archive.where)
    clips = []
    for row, split in zip(rows, of, strict=True):
        start, end = _seconds(row.cells, "start", 0.0, row.where), _seconds(row.cells, "end", math.inf, row.where)
        if not start < end:
            raise InputError(f"the clip begins at {start:g} s and ends at {end:g} s", row.where, "correct start and end")
        clips.append((Clip(split, row.file, _actions(row.cells, row.where), start, end), row.where))
    return ClipListing(kind, _once(clips), mirror=True, by=by, lists=tuple(lists))


def _actions(row: Mapping[str, str], where: str) -> tuple[str, ...]:
    actions = tuple(part.strip() for part in row["labels"].split(";")) if "labels" in row else (row["label"].strip(),)
    if not all(actions):
        raise InputError("an empty label", where, "give label, or labels with ; between them")
    return actions


def _seconds(row: Mapping[str, str], column: str, default: float, where: str) -> float:
    text = row.get(column, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{column} is '{text}'", where, "give seconds from 0 on, or leave it empty")
    return value


def _splits(rows: list[_Row], choice: Choice, where: str) -> tuple[list[str], str]:
    """Return the split of each row, and where the splits come from, in words.

    They come from ``choice.test`` (``column=value,value``), else the column ``split``, else the names of several csv files, else
    the names of the clips' files.
    """
    if choice.test:
        column, equals, values = choice.test.partition("=")
        if without := next((row for row in rows if not equals or column not in row.cells), None):
            remedy = f"--test column=value,value, of the columns {', '.join(without.cells)}"
            raise InputError(f"no column to choose test clips by: '{choice.test}'", without.where, remedy)
        return ["test" if row.cells[column] in values.split(",") else "train" for row in rows], f"--test {choice.test}"
    with_column = ["split" in row.cells for row in rows]
    if any(with_column):
        of = [checked_split(row.cells["split"], row.where) if "split" in row.cells else row.split for row in rows]
        return of, "the column split" if all(with_column) else "the column split, else the names of the csv files"
    if rows[0].split:
        return [row.split for row in rows], "the names of the csv files"
    found = splits_by_names(dict.fromkeys(row.file for row in rows), choice.held_out, where)
    return [found.of[row.file] for row in rows], found.by
