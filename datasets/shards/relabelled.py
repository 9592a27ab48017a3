"""The index of the same shards with other names of identities: no shard is written, and only divided blocks are read.

A block is a run of neighbouring samples of one identity, fetched by one read. It stays as it is where all its samples get one
name. Otherwise each run of samples with the same name becomes a block of its own, with the checksum of its bytes.

M samples before, m after.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import google_crc32c
import numpy as np

from datasets.errors import InputError
from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Int64s
from datasets.shards.tar import END
from datasets.shards.tar_reader import samples_of

Read = Callable[[int], bytes]
Runs = dict[int, list[tuple[int, int, int]]]
RESTORE = "copy the shard again, or pack again"


def relabelled(index: Index, names: Sequence[str | None], read: Read) -> tuple[Index, Int64s]:
    """Return the index with these identities, and the samples that it holds as their numbers in ``index``, ascending [m].

    The order of samples, shards, splits and cameras stays. Identities without samples disappear.

    Args:
        index: One set.
        names: The identity of each sample [M]; None leaves it out.
        read: Returns the bytes of a block, by its number.

    Raises:
        InputError: no sample is left; or a block that must be divided does not match the index.
    """
    kept = np.flatnonzero([name is not None for name in names]).astype(np.int64)
    if not len(kept):
        raise InputError("no image is left", index.url, "keep some")
    identities = sorted({name for name in names if name is not None})
    number = {name: place for place, name in enumerate(identities)}
    identity = np.array([number[name] for name in names if name is not None], np.int32)
    block = index.samples["block"][kept].astype(np.int64)
    changes = (np.diff(kept, prepend=-2) != 1) | (np.diff(block, prepend=-1) != 0) | (np.diff(identity, prepend=-1) != 0)
    begins = np.flatnonzero(changes)
    counts, of = np.diff(begins, append=len(kept)), block[begins]
    blocks = {name: index.blocks[name][of].astype(dtype) for name, dtype in BLOCK_COLUMNS.items()}
    blocks |= {"identity": identity[begins], "first": begins.astype(np.int64), "count": counts.astype(np.int32)}
    runs: Runs = {}  # of each block that is divided: the new block, and its first and last sample
    for place in np.flatnonzero(counts != index.blocks["count"][of]).tolist():
        run = place, int(kept[begins[place]]), int(kept[begins[place] + counts[place] - 1])
        runs.setdefault(int(of[place]), []).append(run)
    for divided, places in runs.items():
        for place, offset, size, crc in _divided(index, divided, places, read(divided)):
            blocks["offset"][place], blocks["size"][place], blocks["crc32c"][place] = offset, size, crc
    samples = {name: index.samples[name][kept].astype(dtype) for name, dtype in SAMPLE_COLUMNS.items()}
    samples["block"] = np.repeat(np.arange(len(begins), dtype=np.int32), counts)
    return replace(index, identities=identities, samples=samples, blocks=blocks), kept


def _divided(
    index: Index, block: int, runs: list[tuple[int, int, int]], data: bytes
) -> list[tuple[int, int, int, int]]:  # fmt: skip
    """Return for each run (new block, first sample, last sample) of a block the new block, its offset, size and crc32c."""
    start = int(index.blocks["offset"][block])
    where = f"{index.shard_url(index.blocks['shard'][block])} at byte {start}"
    if google_crc32c.value(data) != int(index.blocks["crc32c"][block]):
        raise InputError("the block's checksum is wrong: the shard does not match its index", where, RESTORE)
    members = samples_of(io.BytesIO(data + END), where, "r:")
    spans = {part.offset: (sample[0].start, sample[-1].end) for sample in members for part in sample}
    found = []
    for place, *ends in runs:
        first, last = (spans.get(int(index.samples["offset"][sample]) - start) for sample in ends)
        if first is None or last is None:
            raise InputError("the tar has no member where the index has one", where, RESTORE)
        found.append((place, start + first[0], last[1] - first[0], google_crc32c.value(data[first[0] : last[1]])))
    return found
