"""Which split an image, a clip or a shard is in: read from lists, folder names and file names, else drawn by a hash.

The one place that knows the field's words for splits. A word counts when it stands whole, in any case, between characters that
are no letters: ``instances_val2017.json`` says val, ``annotations_latest.json`` says nothing.
"""

import hashlib
import os
import re
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from datasets.errors import InputError

SPLITS = ("train", "val", "query", "gallery", "test")  # the order of shards
WORDS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "minival": "val", "test": "test", "testing": "test", "query": "query", "queries": "query", "probe": "query",
    "gallery": "gallery",
}  # fmt: skip
JOINED = {frozenset({"train", "val"}): "train", frozenset({"test", "val"}): "test"}  # train_val, test-dev
EXPECTED = "train, val (valid, validation, dev), test (testing), query or gallery is expected"


@dataclass(frozen=True)
class HeldOut:
    """What is kept from training where a data set does not say: a fraction, drawn by ``seed``."""

    fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise InputError("the held-out share must be at least 0 and below 1", str(self.fraction))


class Splits(NamedTuple):
    """The split of each name, and ``by``: what said so, in words for a summary."""

    of: dict[str, str]
    by: str


def split_word(name: str) -> str:
    """The split that a name says by a whole word; "" where it says none, or contradicts itself (``train_test``)."""
    found = {WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS}
    return next(iter(found)) if len(found) == 1 else JOINED.get(frozenset(found), "")


def split_of_path(path: str) -> str:
    """The split that a path says: the folder nearest to the top that says one, else the file's name; "" for none."""
    *folders, file = PurePosixPath(path).parts
    return next((split for folder in folders if (split := split_word(folder))), "") or split_word(PurePosixPath(file).stem)


def split_of_file(path: str) -> str:
    """The split that a list's or a shard's path says: its own name, else the folder nearest to it that says one; "" for none."""
    *folders, file = PurePosixPath(path).parts
    return split_word(PurePosixPath(file).stem) or next((split for folder in folders[::-1] if (split := split_word(folder))), "")


def checked_split(text: str, where: str) -> str:
    """The split that a cell of a list names; raises InputError for any other word."""
    split = WORDS.get(text.strip().lower())
    if split is None:
        raise InputError(f"split '{text.strip()}'", where, EXPECTED)
    return split


def splits_by_names(names: Collection[str], held_out: HeldOut, where: str) -> Splits:
    """Splits of a set without a list: by folders; else by file names, if every one says its split; else by the hash of each name.

    Folders around everything say nothing, and neither does a single split.

    Raises:
        InputError: some images lie in folders of splits, and others do not.
    """
    around = os.path.commonpath([PurePosixPath(name).parent for name in names]) if names else ""
    inner = {name: PurePosixPath(name).relative_to(around) for name in names}
    by_folder = {name: next((s for part in path.parts[:-1] if (s := split_word(part))), "") for name, path in inner.items()}
    if len(said := set(by_folder.values()) - {""}) > 1:
        if outside := next((name for name, split in by_folder.items() if not split), None):
            remedy = "move it into one of them, or take it out"
            raise InputError(f"an image in none of the folders of {', '.join(sorted(said))}", f"{outside} in {where}", remedy)
        return Splits(by_folder, "the names of folders")
    by_file = {name: split_word(path.stem) for name, path in inner.items()}
    if all(by_file.values()) and len(set(by_file.values())) > 1:
        return Splits(by_file, "the names of files")
    by_hash = {name: split_by_hash(name, held_out) for name in names}
    return Splits(by_hash, f"a hash of each file's name, a share of {held_out.fraction:g} for test")


def split_by_hash(name: str, held_out: HeldOut) -> str:
    """Test for the held-out share of file names, by their hash: the same ones whatever else is in the set."""
    digest = hashlib.sha256(os.fsencode(PurePosixPath(name).name)).digest()
    return "test" if int.from_bytes(digest[:8]) < held_out.fraction * 2**64 else "train"


def evaluation_split(splits: Container[str]) -> str | None:
    """The split to evaluate on: test, else val, else None."""
    return next((split for split in ("test", "val") if split in splits), None)


def counted(splits: Iterable[str]) -> str:
    """How many images each split has, as in "5 train, 2 test"."""
    every = list(splits)
    own = dict.fromkeys(split for split in SPLITS if split in every) | dict.fromkeys(every)
    return ", ".join(f"{every.count(split):,} {split}" for split in own) or "none"
