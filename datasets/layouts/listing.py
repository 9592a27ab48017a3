"""The result of a layout: a listing of samples with their splits and labels; and helpers that layouts share."""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypeVar
from zlib import crc32

import numpy as np

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.media.decode import IMAGES
from datasets.media.image_header import PNG
from datasets.shards.boxes import Box
from datasets.shards.index import DISTRACTOR, JUNK

COMPANIONS = {".txt", ".md", ".csv", ".json", ".xml", ".mat", ".html", ".pdf"}  # texts that come with data sets
NO_LABELS: Mapping[str, float] = MappingProxyType({})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)  # sets have millions of them
class Sample:
    """One image. ``name``: its path in the archive; ``labels``: those of the columns in `datasets.shards.labels` that are known.

    ``boxes``: None if nobody annotated the image. ``position``: its number in the published order of its split; None where the
    order means nothing.
    """

    split: str
    identity: str
    camera: str
    name: str
    labels: Mapping[str, float] = field(default_factory=lambda: NO_LABELS)
    boxes: tuple[Box, ...] | None = None
    position: int | None = None

    def renamed(self, names: Mapping[str, str]) -> "Sample":
        """Return the sample with the classes of its boxes renamed."""
        boxes = None if self.boxes is None else tuple(box._replace(name=names.get(box.name, box.name)) for box in self.boxes)
        return replace(self, boxes=boxes)


@dataclass(frozen=True)
class Listing:
    """The samples of a data set. ``size``: [h, w] to train at; ``mirror``: whether a mirrored image shows the same identity.

    Only for boxes: names of the ``classes``; ``dropped``: boxes that were left out, in words. For the summary: ``splits_by``:
    where the splits come from; ``left_out``: for images that are no samples, the rule; ``others``: the rule for all others.
    ``archive``: what the samples are read from, if they lie inside a file of the source.
    """

    samples: list[Sample]
    size: tuple[int, int]
    mirror: bool
    splits_by: str
    classes: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    others: str = "named by no list"
    notes: tuple[str, ...] = ()
    archive: Archive | None = None


def clean(name: str) -> str:
    """Return a name that is valid in a tar and a WebDataset key: ASCII letters, digits, ``_`` and ``-``.

    Other ASCII becomes ``-``, other characters their code point in hexadecimal. The special names ``0`` and ``-1`` get a prefix
    ``id-``.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", lambda match: "-" if match[0].isascii() else f"u{ord(match[0]):04x}", name.strip())
    return f"id-{safe}" if safe in (JUNK, DISTRACTOR, "") else safe


def shuffled(items: Sequence[T], seed: int, purpose: str) -> list[T]:
    """Return the items in a random order that depends only on seed and purpose."""
    return [items[i] for i in np.random.default_rng((seed, crc32(purpose.encode()))).permutation(len(items))]


def ending_of(data: bytes) -> str:
    """Return the ending for an image file by its first 12 bytes; ``.jpg`` for an unknown one, which then cannot be decoded."""
    if data.startswith(PNG):
        return ".png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ".webp"
    return ".bmp" if data.startswith(b"BM") else ".jpg"


def only_file(archive: Archive, ending: str) -> str:
    """Return the one file with this ending; raises InputError where there is none, or several."""
    found = [name for name in archive.sizes if PurePosixPath(name).suffix.lower() == ending]
    if not found:
        raise InputError(f"no {ending} file", archive.where, f"is the layout right? It begins with {next(iter(archive.sizes))}")
    if len(found) > 1:
        what = f"{len(found)} {ending} files: {', '.join(found[:9])}"
        raise InputError(what, archive.where, "give one of them, or a folder that holds only one")
    return found[0]


def images_in(archive: Archive, names: list[str]) -> Iterable[str]:
    """Yield the names of images; raises InputError for a file that is neither an image nor a known companion."""
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in IMAGES:
            yield name
        elif suffix not in COMPANIONS and PurePosixPath(name).stem not in ("LICENSE", "README"):
            expected = f"{', '.join(sorted(IMAGES))} are taken"
            raise InputError("not an image by its name", archive.place(name), f"{expected}: convert it or take it out")


def root_above(archive: Archive, marker: str, expected: str) -> str:
    """Return the path, with a slash at its end, of the folder that holds the topmost file or folder ``marker``."""
    found = [PurePosixPath(name).parts for name in archive.sizes]
    roots = [parts[: parts.index(marker)] for parts in found if marker in parts]
    if not roots:
        raise InputError(f"no {marker}", f"{archive.where}, which begins with {next(iter(archive.sizes))}", expected)
    return "".join(f"{part}/" for part in min(roots, key=len))
