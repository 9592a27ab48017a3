"""Checks of a pack's destination: it may be empty, or hold the same set, complete or interrupted; nothing else is overwritten.

While a set is being packed, its notes are in ``_packing/<fingerprint>/``; the note ``begun`` marks the shards there as its own.
"""

import re
import shutil

from datasets.errors import InputError
from datasets.object_storage import UNFINISHED, Bucket, Folder
from datasets.shards.index import MANIFEST, PACKING, Index, check_shards, read_index
from datasets.splits import SPLITS

SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")


def note_name(fingerprint: str, name: str) -> str:
    """Return the name of a pack's note about one of its shards."""
    return f"{PACKING}/{fingerprint}/{name}.json"


def claim(objects: Folder | Bucket, fingerprint: str, overwrite: bool, *, alone: bool = True) -> Index | None:
    """Return the index if this pack is already complete there; otherwise mark the destination as this pack's and incomplete.

    ``alone``: no other process packs another part of the same set, so unfinished files can be removed.

    Raises:
        InputError: something else is there, and ``overwrite`` is False.
    """
    begun = f"{PACKING}/{fingerprint}/begun"
    if not overwrite and objects.exists(MANIFEST):
        index = _known(objects)
        if index.about.get("fingerprint") != fingerprint:
            remedy = "give another destination, or replace it by --overwrite"
            raise InputError("another shard set, or one with other options, is at the destination", objects.url, remedy)
        if _is_whole(index):
            forget(objects)
            return index
        objects.put(begun, b"")
    objects.delete(MANIFEST)
    there = objects.sizes()
    tars = [name for name in there if SHARD_NAME.fullmatch(name)]
    notes = [name for name in there if name.startswith(f"{PACKING}/")]
    if overwrite:
        for name in tars + notes:
            objects.delete(name)
    elif tars and begun not in there:
        what = "an interrupted pack of other data or options is" if notes else "shards without an index are"
        remedy = "give another destination, or replace it by --overwrite"
        raise InputError(f"{what} at the destination", f"{objects.url}/{tars[0]}", remedy)
    if alone and isinstance(objects, Folder):
        for leftover in objects.path.glob(f".*.tar.*{UNFINISHED}"):  # from a killed pack
            leftover.unlink()
    objects.put(begun, b"")
    return None


def forget(objects: Folder | Bucket) -> None:
    """Remove a pack's notes."""
    for name in objects.sizes(f"{PACKING}/"):
        objects.delete(name)
    if isinstance(objects, Folder):
        shutil.rmtree(objects.path / PACKING, ignore_errors=True)  # the empty folders that remain


def _known(objects: Folder | Bucket) -> Index:
    try:
        return read_index(objects.url)
    except InputError as error:
        remedy = "give another destination, or replace it by --overwrite"
        raise InputError(f"a damaged shard set is at the destination ({error.args[0]})", objects.url, remedy) from error


def _is_whole(index: Index) -> bool:
    try:
        check_shards(index)
    except InputError:
        return False
    return True
