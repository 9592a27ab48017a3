"""Indexes WebDataset shards of other tools in one streaming pass, without packing them again; for ``python -m datasets.index``.

A sample's image is its first member with an image's ending. Consecutive samples of one identity form a block, with everything
between them, so every image lies in exactly one block. Only .cls and .json are read, and nothing is unpickled.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import google_crc32c

from datasets.errors import InputError
from datasets.media.decode import IMAGES
from datasets.object_storage import Bucket, Folder, open_objects
from datasets.shards.identity_rules import IdentityReader, Rules
from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Shard, columns
from datasets.shards.tar_reader import Group, LeftOut, TarReader, groups
from datasets.skipped_files import LITTER, NAMED, is_litter
from datasets.splits import SPLITS, counted, split_of_file, split_word

PROBE = "index/probe"
OTHER_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".TAR")
UNNAMED = "default, as no name says a split"


@dataclass
class Found:
    """Results of a scan; identities and cameras are numbered in the order of their appearance."""

    identity_reader: IdentityReader
    identities: dict[str, int] = field(default_factory=dict)
    cameras: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[int, ...]] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    splits_by: dict[str, Counter[str]] = field(default_factory=dict)
    """Images of each split, by where the split was read from."""

    def lines(self) -> list[str]:
        """Return the summary: what happened to every file, and where splits and identities were read from."""
        seen, gone = self.left_out.seen, self.left_out.counts.total()
        beside, names = seen - gone - len(self.keys), ", ".join(list(self.identities)[:NAMED])
        return [
            *self.left_out.lines(),
            f"{seen:,} files seen: {len(self.keys):,} images indexed, {gone:,} left out, {beside:,} beside the images",
            *(f"splits: {counted(splits.elements())}; by {by}" for by, splits in self.splits_by.items()),
            f"identities: by {self.identity_reader.named_by}: {names}{', ...' if len(self.identities) > NAMED else ''}",
        ]


def scan(url: str, rules: Rules, advance: Callable[[int], None] = lambda _: None) -> tuple[Index, list[str], Found]:
    """Index a set of shards without writing anything. Returns the index, the key of every sample, and the scan's results.

    Raises:
        InputError: no shards; a shard that is truncated, damaged, unsorted or no plain tar; or a sample without an identity.
    """
    objects, found = open_objects(url), Found(IdentityReader(rules))
    sizes = shards_of(objects, found.left_out)
    said = {name: split_of_file(name) for name in sizes}
    split_of = {name: split_word(rules.split) or said[name] or "train" for name in sizes}
    splits = tuple(split for split in SPLITS if split in split_of.values())
    sizes = {name: sizes[name] for name in sorted(sizes, key=lambda name: (splits.index(split_of[name]), name))}
    for number, (name, size) in enumerate(sizes.items()):
        by = "--split" if rules.split else "the shards' names" if said[name] else UNNAMED
        before = len(found.keys)
        _scan_shard(TarReader(objects, name, size, advance), number, split_of[name], splits, by, found)
        found.splits_by.setdefault(by, Counter())[split_of[name]] += len(found.keys) - before
    found.identity_reader.check_orphans()
    if not found.samples:
        raise InputError("no images in the shards", url, f"members with the endings {', '.join(sorted(IMAGES))} are taken")
    return _sorted(objects.url, sizes, split_of, splits, rules, found), found.keys, found


def shards_of(objects: Folder | Bucket, left_out: LeftOut) -> dict[str, int]:
    """Return the shards with their sizes in bytes; notes other tars as left out.

    Raises:
        InputError: there are no shards.
    """
    sizes = objects.sizes()
    shards = {name: size for name, size in sizes.items() if name.endswith(".tar") and not is_litter(name)}
    if not shards:
        raise InputError("no .tar files", objects.url, "give the folder or prefix that holds the WebDataset shards, uncompressed")
    for name in sizes:
        if name not in shards and name.endswith((".tar", *OTHER_TARS)):
            left_out.seen += 1
            left_out.note(LITTER if is_litter(name) else "tars that are compressed, or do not end in .tar", name)
    return shards


def _scan_shard(reader: TarReader, number: int, split: str, splits: tuple[str, ...], by: str, found: Found) -> None:
    run: list[tuple[Group, int]] = []  # one identity's samples, with their cameras
    running = ""

    def close() -> None:
        if run:
            start, end = run[0][0].start, run[-1][0].end
            crc = google_crc32c.value(reader.look(start, end))
            row = (number, found.identities[running], splits.index(split), start, end - start, len(found.keys), len(run), crc)
            for group, camera in run:
                offset, size = group.image or (0, 0)
                found.samples.append((len(found.blocks), offset, size, camera))
                found.keys.append(group.key)
            found.blocks.append(row)
            run.clear()

    for group in groups(reader, found.left_out):
        for ending in group.endings[1:] or ([] if group.image else group.members):
            rule = "images beside the first of a sample" if group.image else "files of samples without an image"
            found.left_out.note(rule, f"{group.key}.{ending}")
        if group.image is None:
            found.identity_reader.note_imageless(group, reader)
            close()
        else:
            if by == UNNAMED:
                _check_top(group.key, reader.where)
            # If cameras are unknown, each split is one camera, so that the same-camera rule of evaluation removes nothing.
            identity, camera = found.identity_reader.of(group, reader)
            if run and (identity != running or group.end - run[0][0].start > found.identity_reader.rules.max_block):
                close()
            running = identity
            found.identities.setdefault(identity, len(found.identities))
            run.append((group, found.cameras.setdefault(camera or split, len(found.cameras))))
        reader.cut(run[0][0].start if run else group.end)
    close()


def _check_top(key: str, where: str) -> None:
    """Raise InputError for samples in a folder of another split, where the shard's name names no split."""
    top, slash, _ = key.partition("/")
    if slash and split_word(top) not in ("", "train"):
        what = f"{key} lies in a folder of {split_word(top)}, and the shard's name says no split"
        raise InputError(what, where, "name the shard by its split, one split in each, or give --split")


def _sorted(
    url: str, sizes: dict[str, int], split_of: dict[str, str], splits: tuple[str, ...], rules: Rules, found: Found
) -> Index:
    """Return the index, with identities and cameras numbered in the order of their names."""
    identities, cameras = sorted(found.identities), sorted(found.cameras)
    identity_id = {found.identities[name]: i for i, name in enumerate(identities)}
    camera_id = {found.cameras[name]: i for i, name in enumerate(cameras)}
    samples = [(*row[:3], camera_id[row[3]]) for row in found.samples]
    blocks = [(row[0], identity_id[row[1]], *row[2:]) for row in found.blocks]
    tables = columns(samples, SAMPLE_COLUMNS), columns(blocks, BLOCK_COLUMNS)
    about = {"layout": "webdataset", "size": [224, 224], "mirror": True, "max_block": rules.max_block}
    shards = tuple(Shard(name, size, split_of[name]) for name, size in sizes.items())
    return Index(url, shards, splits, tuple(cameras), tuple(identities), *tables, about)
