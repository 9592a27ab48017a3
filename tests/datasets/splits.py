"""Splits created by hand: an index in memory, without shards."""

from collections.abc import Sequence

import numpy as np

from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Shard, Split, columns, split_of


def split_with(blocks: Sequence[tuple[int, int, int]], name: str = "train") -> Split:
    """A split of blocks (shard, identity, samples), in the order of the shards; every sample is one byte long."""
    samples: list[tuple[int, ...]] = []
    rows: list[tuple[int, ...]] = []
    for shard, identity, count in blocks:
        rows.append((shard, identity, 0, len(samples), count, len(samples), count, 0))
        samples += [(len(rows) - 1, len(samples) + i, 1, 0) for i in range(count)]
    identities = 1 + max(identity for _, identity, _ in blocks)
    shards = tuple(Shard(f"{name}-{i:06d}.tar", 1 << 20, name) for i in range(1 + max(shard for shard, _, _ in blocks)))
    tables = columns(samples, SAMPLE_COLUMNS), columns(rows, BLOCK_COLUMNS)
    return split_of(Index("memory", shards, (name,), ("c1",), tuple(f"{i:04d}" for i in range(identities)), *tables, {}), name)


def identities_of(*counts: int, each_shard: int = 3) -> Split:
    """Identities with so many samples, one block each, a few to a shard."""
    return split_with([(i // each_shard, i, count) for i, count in enumerate(counts)])


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """How probable it is that counts differ this much from the expected ones, or more, by chance."""
    import torch

    used = expected > 0
    assert observed[~used].sum() == 0
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = torch.tensor((used.sum() - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))
