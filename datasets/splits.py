"""Finds the split of an image, a clip or a shard: from lists, folder names and file names, else by a hash.

All known words for splits are here. Only whole words between characters that are not letters count, in any case:
``instances_val2017.json`` means val, ``annotations_latest.json`` means nothing.
"""

import hashlib
import os
import re
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from datasets.errors import InputError

PAIRS = "pairs"  # samples 2i and 2i + 1 in the published order are a pair (`datasets.shards.pairs`)
SPLITS = ("train", "val", "query", "gallery", "test", PAIRS)  # the order of shards
WORDS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "minival": "val", "test": "test", "testing": "test", "query": "query", "queries": "query", "probe": "query",
    "gallery": "gallery",
}  # fmt: skip
JOINED = {frozenset({"train", "val"}): "train", frozenset({"test", "val"}): "test"}  # train_val, test-dev
EXPECTED = "train, val (valid, validation, dev), test (testing), query or gallery is expected"


@dataclass(frozen=True)
class HeldOut:
    """The fraction held out for testing where a data set defines no splits, drawn by ``seed``."""

    fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise InputError("the held-out fraction must be at least 0 and below 1", str(self.fraction))


class Splits(NamedTuple):
    """The split of each name; ``by``: where the splits come from, in words for a summary."""

    of: dict[str, str]
    by: str


def split_word(name: str) -> str:
    """Return the split that a whole word of the name means; "" for none, or for two that contradict (``train_test``)."""
    found = {WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS}
    return next(iter(found)) if len(found) == 1 else JOINED.get(frozenset(found), "")


def split_of_path(path: str) -> str:
    """Return the split that a path means: by its topmost folder that names one, else by the file's name; "" for none."""
    *folders, file = PurePosixPath(path).parts
    return next((split for folder in folders if (split := split_word(folder))), "") or split_word(PurePosixPath(file).stem)


def split_of_file(path: str) -> str:
    """Return the split that the path of a list or shard means: by its name, else by the nearest folder; "" for none."""
    *folders, file = PurePosixPath(path).parts
    return split_word(PurePosixPath(file).stem) or next((split for folder in folders[::-1] if (split := split_word(folder))), "")


def checked_split(text: str, where: str) -> str:
    """Return the split that a cell of a list names; raises InputError for any other word."""
    split = WORDS.get(text.strip().lower())
    if split is None:
        raise InputError(f"split '{text.strip()}'", where, EXPECTED)
    return split


def splits_by_names(names: Collection[str], held_out: HeldOut, where: str) -> Splits:
    """Find the splits of a set without lists: by folders; else by file names, if all of them name a split; else by hashes.

    Folders that contain everything are ignored, and so is a split that would hold everything.

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
    return Splits(by_hash, f"a hash of each file's name, a fraction of {held_out.fraction:g} for test")


def split_by_hash(name: str, held_out: HeldOut) -> str:
    """Return "test" for the held-out fraction of file names, else "train". The hash depends on nothing but the name."""
    digest = hashlib.sha256(os.fsencode(PurePosixPath(name).name)).digest()
    return "test" if int.from_bytes(digest[:8]) < held_out.fraction * 2**64 else "train"


def evaluation_split(splits: Container[str]) -> str | None:
    """Return the split to evaluate on: test, else val, else None."""
    return next((split for split in ("test", "val") if split in splits), None)


def counted(splits: Iterable[str]) -> str:
    """Return how many images each split has, as in "5 train, 2 test"."""
    every = list(splits)
    own = dict.fromkeys(split for split in SPLITS if split in every) | dict.fromkeys(every)
    return ", ".join(f"{every.count(split):,} {split}" for split in own) or "none"
