"""How sets of videos lay out their files: from folders, lists and manifests to clips with their actions in order.

A layout reads lists, never a picture. Where nothing says which clips are for testing, a clip is held out by the hash of its
file's name: the same ones whatever else is in the set.
"""

import csv
import hashlib
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.layouts import clean
from datasets.source import Source
from datasets.splits import HeldOut

VIDEOS = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"}
Kind = Literal["videos", "arrays", "skeletons"]


@dataclass(frozen=True)
class Clip:
    """A part of a file, from ``start`` to ``end`` in seconds, and what is done in it, in order."""

    split: str
    file: str
    actions: tuple[str, ...]
    start: float = 0.0
    end: float = math.inf
    entry: int = 0
    """Of a file that holds several clips (skeletons): which."""

    def name(self, number: int) -> str:
        """Its name in a set, where it is the ``number``-th."""
        return f"{clean(PurePosixPath(self.file).stem)[:72]}-{number:06d}"


@dataclass(frozen=True)
class ClipListing:
    """A set of clips. ``mirror``: does a mirrored clip show the same action?"""

    kind: Kind
    clips: list[Clip]
    mirror: bool


@dataclass(frozen=True)
class Choice:
    """Which clips are for testing, where a layout offers a choice."""

    held_out: HeldOut
    fold: int = 1
    test: str = ""


def ucf101(source: Source, choice: Choice) -> ClipListing:
    """UCF-101: a folder a class, and ``trainlist01.txt`` .. ``testlist03.txt`` (fold 1, 2 or 3)."""
    places = _Places(source, VIDEOS)
    clips = []
    for split in ("train", "test"):
        for line, where in _lines(source, f"{split}list{choice.fold:02d}.txt"):
            name = line.split()[0]
            clips.append(Clip(split, places.find(name, where), (PurePosixPath(name).parent.name,)))
    return ClipListing("videos", clips, mirror=True)


def hmdb51(source: Source, choice: Choice) -> ClipListing:
    """HMDB-51: a folder a class, and ``<class>_test_split1.txt`` with ``name.avi 1`` (1 trains, 2 tests, 0 neither)."""
    places = _Places(source, VIDEOS)
    ending = f"_test_split{choice.fold}.txt"
    lists = sorted(PurePosixPath(name).name for name in source.sizes if name.endswith(ending))
    if not lists:
        raise InputError(f"no <class>{ending}", source.where, "unpack HMDB-51's split lists beside its class folders")
    clips = []
    for name in lists:
        for line, where in _lines(source, name):
            parsed = re.fullmatch(r"(\S.*\S)\s+([012])", line)
            if parsed is None:
                raise InputError("a line that cannot be read", where, "lines like `name.avi 1` are expected")
            if parsed[2] != "0":
                split = "train" if parsed[2] == "1" else "test"
                clips.append(Clip(split, places.find(parsed[1], where), (name.removesuffix(ending),)))
    return ClipListing("videos", clips, mirror=True)


def video_csv(source: Source, choice: Choice) -> ClipListing:
    """Videos and a csv: file; label, or labels in order with ``;`` between them; when wanted start and end in seconds, split."""
    return ClipListing("videos", list(_by_csv(source, choice, "file", VIDEOS)), mirror=True)


def frames_npz(source: Source, choice: Choice) -> ClipListing:
    """``manifest.csv`` (path; label or labels; any other columns) and npz files with ``frames`` uint8 [T, H, W] or [T, H, W, 3].

    A file may carry ``actions`` as well: text [T], the action of each frame, empty where there is none.
    """
    return ClipListing("arrays", list(_by_csv(source, choice, "path", {".npz"})), mirror=True)


def skeletons_npz(source: Source, choice: Choice) -> ClipListing:
    """Files with ``train``, ``test`` or neither in the name: ``pose`` float [sum of T, J, D], ``length`` [n], ``label`` [n]."""
    clips = []
    for file in (name for name in source.sizes if name.endswith(".npz")):
        arrays = read_arrays(source.read(file), f"{file} in {source.where}", ("pose", "length", "label"))
        if len(arrays["length"]) != len(arrays["label"]) or arrays["length"].sum() != len(arrays["pose"]):
            what = "the lengths do not add up to the poses, or are not as many as the labels"
            raise InputError(what, f"{file} in {source.where}", "pose [sum of T, J, D], length [n] and label [n] are expected")
        told = re.search(r"train|test", PurePosixPath(file).stem)
        for entry, label in enumerate(arrays["label"].tolist()):
            split = told[0] if told else _hashed(f"{file}#{entry}", choice.held_out)
            clips.append(Clip(split, file, (str(label),), entry=entry))
    return ClipListing("skeletons", clips, mirror=False)


Name = Literal["ucf101", "hmdb51", "video_csv", "frames_npz", "skeletons_npz"]
VIDEO_LAYOUTS: dict[Name, Callable[[Source, Choice], ClipListing]] = dict(
    zip(get_args(Name), (ucf101, hmdb51, video_csv, frames_npz, skeletons_npz), strict=True)
)


def read_arrays(data: bytes, where: str, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """These arrays, and any others, of an npz file; nothing in it is unpickled.

    Raises:
        InputError: it is not an npz file, lacks one, or holds objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"not an npz file of plain arrays ({error})", where, "get it again, or write it anew") from error
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"no array {', '.join(missing)}", where, f"it has: {', '.join(arrays) or 'none'}")
    return arrays


class _Places:
    """Finds the files that a list names: a name stands for the one file whose path ends in it."""

    def __init__(self, source: Source, suffixes: set[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for name in source.sizes:
            path = PurePosixPath(name)
            if path.suffix.lower() in suffixes:
                self._by_name.setdefault(path.name, []).append(name)

    def find(self, name: str, where: str) -> str:
        """The path in the source; raises InputError when there is none, or more than one."""
        found = [path for path in self._by_name.get(PurePosixPath(name).name, []) if f"/{path}".endswith(f"/{name}")]
        if len(found) != 1:
            what = f"{len(found)} files are called" if found else "a file is named that is not there:"
            raise InputError(f"{what} '{name}'", where, "is the download whole?")
        return found[0]


def _lines(source: Source, name: str) -> Iterator[tuple[str, str]]:
    """The lines of a list, wherever it stands in the source, that are not empty; and the place of each in words."""
    path = next((path for path in source.sizes if PurePosixPath(path).name == name), None)
    if path is None:
        raise InputError(f"no {name}", source.where, "is the download whole, and the fold right?")
    for number, line in enumerate(source.text(path).splitlines(), 1):
        if line.strip():
            yield line.strip(), f"line {number} of {path} in {source.where}"


def _by_csv(source: Source, choice: Choice, column: str, suffixes: set[str]) -> Iterator[Clip]:
    lists = [name for name in source.sizes if name.endswith(".csv")]
    if len(lists) != 1:
        raise InputError(f"{len(lists)} csv files", source.where, f"one is expected: {column}, and label or labels")
    places, rows = _Places(source, suffixes), csv.DictReader(source.text(lists[0]).splitlines())
    columns = set(rows.fieldnames or ())
    if column not in columns or not columns & {"label", "labels"}:
        remedy = f"{column}, and label or labels are expected"
        raise InputError(f"it has the columns {', '.join(sorted(columns))}", f"{lists[0]} in {source.where}", remedy)
    for number, row in enumerate(rows, 2):
        where = f"line {number} of {lists[0]} in {source.where}"
        start, end = _seconds(row, "start", 0.0, where), _seconds(row, "end", math.inf, where)
        if not start < end:
            raise InputError(f"the clip begins at {start:g} s and ends at {end:g} s", where, "correct start and end")
        file = places.find(row[column] or "", where)
        yield Clip(_split(row, file, choice, where), file, _actions(row, where), start, end)


def _actions(row: Mapping[str, str | None], where: str) -> tuple[str, ...]:
    if row.get("labels") is not None:
        actions = tuple(part.strip() for part in (row["labels"] or "").split(";"))
    else:
        actions = ((row.get("label") or "").strip(),)
    if not all(actions):
        raise InputError("an empty label", where, "give label, or labels with ; between them")
    return actions


def _seconds(row: Mapping[str, str | None], column: str, default: float, where: str) -> float:
    text = (row.get(column) or "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{column} is '{text}'", where, "give seconds from 0 on, or leave it empty")
    return value


def _split(row: Mapping[str, str | None], file: str, choice: Choice, where: str) -> str:
    """By ``choice.test`` (``column=value,value``), else by the column ``split``, else by the hash of the file's name."""
    if choice.test:
        column, equals, values = choice.test.partition("=")
        if not equals or column not in row:
            remedy = f"--test column=value,value, of the columns {', '.join(row)}"
            raise InputError(f"no column to choose test clips by: '{choice.test}'", where, remedy)
        return "test" if row[column] in values.split(",") else "train"
    if "split" in row:
        if row["split"] not in ("train", "test"):
            raise InputError(f"split '{row['split']}'", where, "train or test is expected")
        return str(row["split"])
    return _hashed(file, choice.held_out)


def _hashed(name: str, held_out: HeldOut) -> str:
    digest = hashlib.sha256(PurePosixPath(name).name.encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < held_out.share * 2**64 else "train"
