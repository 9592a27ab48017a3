"""What a layout returns: a listing of samples with their splits and labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TypeVar
from zlib import crc32

import numpy as np

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.media.decode import IMAGES
from datasets.shards.boxes import Box
from datasets.shards.index import DISTRACTOR, JUNK

COMPANIONS = {".txt", ".md", ".csv", ".json", ".xml", ".mat", ".html", ".pdf"}  # text that data sets carry along


T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image: ``name`` is its path in the archive, ``labels`` what is known of the columns in `datasets.shards.labels`.

    ``boxes``: None where nobody looked for any.
    """

    split: str
    identity: str
    camera: str
    name: str
    labels: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None

    def renamed(self, names: Mapping[str, str]) -> "Sample":
        """With other names of its boxes' classes."""
        boxes = None if self.boxes is None else tuple(box._replace(name=names.get(box.name, box.name)) for box in self.boxes)
        return replace(self, boxes=boxes)


@dataclass(frozen=True)
class Listing:
    """A data set. ``size`` is the [h, w] to train at; ``mirror``: does a mirrored image show the same identity?

    Of a set with boxes: the names of its ``classes``, and which boxes were ``dropped``, in words. For the summary: what says the
    splits (``splits_by``), the rule by which an image of ``left_out`` is no sample, the rule for all others that are none
    (``others``), and ``notes``.
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


def clean(name: str) -> str:
    """A name as it can stand in a tar and in a WebDataset key: of ASCII letters, digits, ``_`` and ``-``, and without a meaning.

    Other ASCII becomes ``-``, anything else its code point in hexadecimal; ``0`` and ``-1`` get ``id-`` before them.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", lambda match: "-" if match[0].isascii() else f"u{ord(match[0]):04x}", name.strip())
    return f"id-{safe}" if safe in (JUNK, DISTRACTOR, "") else safe


def shuffled(items: Sequence[T], seed: int, purpose: str) -> list[T]:
    """The items in an order drawn from seed and purpose alone."""
    return [items[i] for i in np.random.default_rng((seed, crc32(purpose.encode()))).permutation(len(items))]


def images_in(archive: Archive, names: list[str]) -> Iterable[str]:
    """Those of the names that are images; what is neither image nor companion is refused."""
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGES:
            yield name
        elif suffix not in COMPANIONS and PurePosixPath(name).stem not in ("LICENSE", "README"):
            expected = f"{', '.join(sorted(IMAGES))} are taken"
            raise InputError("not an image by its name", archive.place(name), f"{expected}: convert it or take it out")


def root_above(archive: Archive, marker: str, expected: str) -> str:
    """The path, with its last slash, above the file or folder ``marker`` that lies nearest to the top."""
    found = [PurePosixPath(name).parts for name in archive.sizes]
    roots = [parts[: parts.index(marker)] for parts in found if marker in parts]
    if not roots:
        raise InputError(f"no {marker}", f"{archive.where}, which begins with {next(iter(archive.sizes))}", expected)
    return "".join(f"{part}/" for part in min(roots, key=len))
