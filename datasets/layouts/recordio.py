"""The layout ``rec``: faces as insightface publishes them, ``train.rec`` with ``train.idx``: MXNet's RecordIO, read in place.

A record is the magic number, a word (3 bits: which part; 29 bits: length), the data, and zeros up to a multiple of 4 bytes. Data
with the magic number in it is cut there into a first (1), middle (2) and last (3) part without the number; 0 is a whole record.
The data of an image is a header (flag, label, id, id2), ``flag`` more labels, which then count instead of the first one, and the
image's file. insightface adds records without an image: for each identity the range of its records, and record 0: the range of
these. Formats: dmlc-core's recordio.h, mxnet's recordio.py, insightface's face2rec.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.held_out import draw_queries, evaluated, hold_out
from datasets.layouts.listing import Listing, Sample, ending_of, only_file
from datasets.splits import HeldOut, split_of_file

MAGIC = (0xCED7230A).to_bytes(4, "little")
PART = struct.Struct("<4sI")  # magic number; which part, and its length
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
FLAG, LABEL = struct.Struct("<I"), struct.Struct("<f")
LOOK = 64  # bytes that hold the header, a few labels, and the first bytes of the image
FIRST, LAST = (0, 1), (0, 3)  # numbers of parts
EXACT = 1 << 24  # whole numbers up to it are exact as float32
WHOLE = "is the download whole?"


def rec(archive: Archive, held_out: HeldOut) -> Listing:
    """Read a .rec of images whose (first) label is their identity, and the .idx of the same name, if it is there.

    The split is the word in the file's name, as in ``train.rec``; without one, identities are held out as in `folders`. Records
    that the .idx does not name are left out. Cameras are unknown: each split counts as one.
    """
    name = only_file(archive, ".rec")
    place = archive.place(name)
    records = RecordFile(archive.open(name), archive.sizes[name], place)
    starts, sizes = array("q"), {}
    ranges, first_of_ranges = 0, None
    for record in records.scan():
        starts.append(record.start)
        if not record.size:
            ranges += 1
            first_of_ranges = int(record.label) if record.id == 0 else first_of_ranges
            continue
        sizes[f"{_identity(record, place)}/{len(starts) - 1:09d}{record.ending}"] = record.size
    if not sizes:
        raise InputError("no images", place, WHOLE)
    if first_of_ranges is not None and first_of_ranges < EXACT and first_of_ranges != len(sizes) + 1:
        raise InputError(f"{len(sizes):,} images where its record 0 counts {first_of_ranges - 1:,}", place, WHOLE)
    unnamed = _unnamed(archive, name, starts, sizes)

    def read(image: str) -> bytes:
        return records.image_at(starts[int(PurePosixPath(image).stem)])

    sizes, split = dict(sorted(sizes.items())), split_of_file(name)
    identities: dict[str, str] = {}  # so that an identity's images share its name in memory
    named = ((identities.setdefault(label := image.partition("/")[0], label), image) for image in sizes if image not in unnamed)
    samples = [Sample(split, identity, split, image) for identity, image in named]
    return Listing(
        samples if split == "train" else _drawn(samples, split, held_out), (112, 112), mirror=True,
        splits_by="the file's name" if split else f"a fraction of {held_out.fraction:g} of the identities, drawn by the seed",
        left_out=unnamed, notes=(f"{ranges:,} records of {name} hold no image: ranges of identities",) if ranges else (),
        archive=replace(archive, sizes=sizes, _read=read),
    )  # fmt: skip


def _drawn(samples: list[Sample], split: str, held_out: HeldOut) -> list[Sample]:
    """Draw queries and gallery of a .rec for evaluation, or of a fraction of the identities."""
    drawn = evaluated(samples, lambda test: draw_queries(test, held_out.seed)) if split else hold_out(samples, held_out)
    return [replace(sample, camera=sample.split) for sample in drawn]


class Record(NamedTuple):
    """A record; ``start``: where it begins in the file; ``size``: bytes of its image's file, 0 for none."""

    start: int
    label: float
    id: int
    size: int
    ending: str


class RecordFile:
    """Reads the records of a .rec of ``size`` bytes; ``where``: for messages."""

    def __init__(self, stream: IO[bytes], size: int, where: str) -> None:
        self._stream, self._size, self._where = stream, size, where

    def scan(self) -> Iterator[Record]:
        """Yield all records in order; of an image only the first bytes are read.

        Raises:
            InputError: the file is no RecordIO, is cut off, or a record is too short for its header.
        """
        start = 0
        while start < self._size:
            parts = list(self._parts(start))
            yield self._record(start, parts)
            at, length = parts[-1]
            start = at + length + -length % 4

    def image_at(self, start: int) -> bytes:
        """Return the image of the record that begins at a byte."""
        parts = list(self._parts(start))
        data = self._head(parts, self._size)
        return data[_body(data) :]

    def _record(self, start: int, parts: list[tuple[int, int]]) -> Record:
        size, head = sum(length for _, length in parts) + len(MAGIC) * (len(parts) - 1), self._head(parts, LOOK)
        if size < HEADER.size or _body(head) > size:
            what = f"a record of {size} bytes at byte {start}, too short for its header"
            raise InputError(what, self._where, "is it a .rec of images?")
        flag, label, number, _ = HEADER.unpack_from(head)
        if flag:
            (label,) = LABEL.unpack_from(head, HEADER.size)
        if _body(head) + 12 > len(head) < size:
            head = self._head(parts, _body(head) + 12)
        return Record(start, label, number, size - _body(head), ending_of(head[_body(head) :]))

    def _parts(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield where each part's data of a record begins, and its length."""
        expected = FIRST
        while True:
            magic, word = PART.unpack(self._bytes(start, PART.size))
            kind, length = word >> 29, word & ((1 << 29) - 1)
            if magic != MAGIC or kind > 3 or (kind in FIRST) != (expected is FIRST):
                raise InputError(f"no record at byte {start}", self._where, "is it a RecordIO file, and whole?")
            begin = start + PART.size
            start = begin + length + -length % 4
            if start > self._size:
                self._cut_off()
            yield begin, length
            if kind in LAST:
                return
            expected = LAST

    def _head(self, parts: list[tuple[int, int]], most: int) -> bytes:
        """Return the first ``most`` bytes of a record's data, or all if it has fewer."""
        data = b""
        for number, (begin, length) in enumerate(parts):
            data += MAGIC if number else b""
            data += self._bytes(begin, min(length, max(most - len(data), 0)))
        return data[:most]

    def _bytes(self, start: int, count: int) -> bytes:
        self._stream.seek(start)
        data = self._stream.read(count)
        if len(data) < count:
            self._cut_off()
        return data

    def _cut_off(self) -> None:
        raise InputError(f"cut off after {self._size:,} bytes", self._where, "get it again")


def _body(data: bytes) -> int:
    """Return where the image begins in a record's data."""
    (flag,) = FLAG.unpack_from(data)
    return HEADER.size + LABEL.size * int(flag)


def _identity(record: Record, place: str) -> str:
    if not (0 <= record.label < 1e9 and record.label == int(record.label)):
        what = f"the label {record.label:g} at byte {record.start} is no number of an identity"
        raise InputError(what, place, "0, 1, 2, ... are expected")
    return f"{int(record.label):07d}"


def _unnamed(archive: Archive, name: str, starts: "array[int]", images: dict[str, int]) -> dict[str, str]:
    """Return the images that the .idx does not name, with that rule.

    Raises:
        InputError: the .idx cannot be read, or names a byte where no record begins.
    """
    listed = str(PurePosixPath(name).with_suffix(".idx"))
    if listed not in archive.sizes:
        return {}
    offsets = array("q")
    for number, line in enumerate(archive.open(listed), 1):
        key, tab, offset = line.partition(b"\t")
        if not (tab and key.strip().isdigit() and offset.strip().isdigit() and len(offset) < 20):
            expected = "lines of a record's number, a tab and its byte are expected"
            raise InputError("a line that cannot be read", f"line {number} of {archive.place(listed)}", expected)
        offsets.append(int(offset))
    named, begun = np.asarray(offsets), np.asarray(starts)
    if len(strange := np.setdiff1d(named, begun)):
        what = f"{len(strange):,} of its records are not in {name}, the first at byte {strange[0]}"
        raise InputError(what, archive.place(listed), "are both files of the same set, and whole?")
    missing = set(np.flatnonzero(~np.isin(begun, named)).tolist())
    rule = f"not named by {listed}"
    return {image: rule for image in images if int(PurePosixPath(image).stem) in missing} if missing else {}
