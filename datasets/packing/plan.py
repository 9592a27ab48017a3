"""The plan of a pack: which sample goes where, as a pure function of the listing, the sizes and the seed.

An identity's samples lie side by side in random order, so that any run of them is a fair sample. Identities follow each other
in random order. An identity's samples are cut into blocks, and blocks fill shards; no block crosses a shard.
"""

import posixpath
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.layouts.listing import Sample, shuffled
from datasets.shards.boxes import Box
from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Shard, columns
from datasets.shards.tar import END, RECORD, padded
from datasets.splits import PAIRS, SPLITS

T = TypeVar("T")
LONGEST = 99  # characters of a member's name in every tar


@dataclass(frozen=True, slots=True)  # sets have millions of them, so what can be computed is not stored
class Member:
    """A planned sample of a shard; ``number``: its number in its identity; ``size``: bytes, without header and padding."""

    sample: Sample
    number: int
    size: int

    @property
    def key(self) -> str:
        """The sample's name in the tar, without its ending."""
        return f"{self.sample.identity}/{self.number:06d}"

    @property
    def source(self) -> str:
        """The sample's name in the archive."""
        return self.sample.name

    @property
    def ending(self) -> str:
        """What follows the key and a dot in the sample's name in the tar."""
        suffix = posixpath.splitext(self.source)[1].lower()
        return "jpg" if suffix == ".jpeg" else suffix[1:]

    @property
    def name(self) -> str:
        """The sample's name in the tar."""
        return f"{self.key}.{self.ending}"

    @property
    def span(self) -> int:
        """Bytes in the tar, from its header to the end of its padding."""
        return RECORD + padded(self.size)


Block = tuple[Member, ...]


@dataclass(frozen=True)
class ShardPlan:
    """The plan of one tar file."""

    name: str
    split: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Written:
    """A written shard: its size in bytes, the crc32c of each block that is not empty, and by name in the archive why samples
    were left out."""

    size: int
    crc32c: list[int]
    unreadable: dict[str, str]


def plan_shards(
    samples: Sequence[Sample], sizes: dict[str, int], shard_size: int, max_block: int, seed: int, *, in_order: bool = False
) -> list[ShardPlan]:
    """Plan the shards of all samples.

    Blocks take at most ``max_block`` bytes, shards at most ``shard_size``, unless a single sample or block is larger.
    ``in_order``: an identity's samples keep the order of their names. Pairs always keep the published order.

    Raises:
        InputError: an identity's name is too long for a tar.
    """
    shards = []
    members = _members(samples, sizes)
    for split in SPLITS:
        blocks: list[Block] = []
        names = list(members[split])
        for identity in names if split == PAIRS else shuffled(names, seed, f"identities of {split}"):
            own = members[split][identity]
            own = own if in_order or split == PAIRS else shuffled(own, seed, f"samples of {split}/{identity}")
            spans = [member.span for member in own]
            blocks += _filled(own, spans, _even_limit(spans, max_block))
        spans = [sum(member.span for member in block) for block in blocks]
        filled = _filled(blocks, spans, shard_size - len(END))
        shards += [ShardPlan(f"{split}-{number:06d}.tar", split, shard) for number, shard in enumerate(filled)]
    return shards


def index_of(url: str, shards: Sequence[ShardPlan], written: Sequence[Written], about: dict[str, Any]) -> tuple[Index, list[str]]:
    """Return the index of the written shards, and the key of each sample."""
    blocks, crcs = [], []  # blocks with samples in them, and their shard
    for number, (shard, result) in enumerate(zip(shards, written, strict=True)):
        blocks += [(number, block) for block in left(shard, result.unreadable.keys())]
        crcs += result.crc32c
    splits = [split for split in SPLITS if any(shard.split == split for shard in shards)]
    identities = sorted({block[0].sample.identity for _, block in blocks})
    cameras = sorted({member.sample.camera for _, block in blocks for member in block})
    identity_id, camera_id = ({name: i for i, name in enumerate(names)} for names in (identities, cameras))
    if len(cameras) > np.iinfo(np.int16).max:
        raise InputError(f"{len(cameras)} cameras", url, f"the index holds at most {np.iinfo(np.int16).max}")
    samples = array("q")  # flat: a tuple for each of millions of samples would take five times the memory
    rows: list[tuple[int, ...]] = []
    keys: list[str] = []
    offset, in_shard = 0, -1
    for (shard_id, block), crc in zip(blocks, crcs, strict=True):
        offset, in_shard = (offset, in_shard) if shard_id == in_shard else (0, shard_id)
        split, identity, start = splits.index(shards[shard_id].split), identity_id[block[0].sample.identity], offset
        for member in block:
            samples.extend((len(rows), offset + RECORD, member.size, camera_id[member.sample.camera]))
            offset += member.span
        rows.append((shard_id, identity, split, start, offset - start, len(keys), len(block), crc))
        keys += [member.key for member in block]
    tars = tuple(Shard(shard.name, result.size, shard.split) for shard, result in zip(shards, written, strict=True))
    tables = columns(samples, SAMPLE_COLUMNS), columns(rows, BLOCK_COLUMNS)
    return Index(url, tars, tuple(splits), tuple(cameras), tuple(identities), *tables, about), keys


def labels_of(shards: Sequence[ShardPlan], written: Sequence[Written]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the labels in the order of `index_of`: a column [M] for each label that any sample has, NaN where absent."""
    members = list(_members_left(shards, written))
    names = sorted({name for member in members for name in member.sample.labels})
    return {name: np.array([member.sample.labels.get(name, np.nan) for member in members], np.float32) for name in names}


def boxes_of(shards: Sequence[ShardPlan], written: Sequence[Written]) -> list[tuple[Box, ...] | None]:
    """Return the boxes of the samples in the order of `index_of`."""
    return [member.sample.boxes for member in _members_left(shards, written)]


def _members_left(shards: Sequence[ShardPlan], written: Sequence[Written]) -> Iterator[Member]:
    for shard, result in zip(shards, written, strict=True):
        for block in left(shard, result.unreadable.keys()):
            yield from block


def left(shard: ShardPlan, unreadable: Set[str]) -> Iterator[Block]:
    """Yield the shard's blocks without unreadable samples, and without empty blocks."""
    for block in shard.blocks:
        if readable := tuple(member for member in block if member.source not in unreadable):
            yield readable


def _members(samples: Sequence[Sample], sizes: dict[str, int]) -> dict[str, dict[str, list[Member]]]:
    """Return the members by split and identity, sorted.

    A member's number is the sample's position, or counts all samples of its identity in the order of their names.
    """
    by_split: dict[str, dict[str, list[Member]]] = {split: defaultdict(list) for split in SPLITS}
    seen: dict[str, int] = defaultdict(int)
    for sample in sorted(samples, key=lambda s: (s.identity, s.position or 0, s.name)):
        number = seen[sample.identity] if sample.position is None else sample.position
        member = Member(sample, number, sizes[sample.name])
        if len(member.name) > LONGEST:
            remedy = f"{LONGEST} characters fit, /000000.jpg among them"
            raise InputError("an identity's name is too long for a tar", sample.identity, remedy)
        seen[sample.identity] += 1
        by_split[sample.split][sample.identity].append(member)
    return by_split


def _even_limit(spans: Sequence[int], limit: int) -> int:
    """Return the smallest limit that gives as few parts: parts of similar size each have enough samples to draw from."""
    parts = sum(1 for _ in _filled(spans, spans, limit))
    low, high = 0, limit
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(1 for _ in _filled(spans, spans, middle)) <= parts else (middle, high)
    return high


def _filled(items: Sequence[T], spans: Sequence[int], limit: int) -> Iterator[tuple[T, ...]]:
    """Cut a sequence into parts whose spans add up to at most the limit; a single larger item is a part of its own."""
    part: list[T] = []
    filled = 0
    for item, span in zip(items, spans, strict=True):
        if part and filled + span > limit:
            yield tuple(part)
            part, filled = [], 0
        part.append(item)
        filled += span
    if part:
        yield tuple(part)
