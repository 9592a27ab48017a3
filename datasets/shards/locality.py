"""Measures how close together a set stores each identity: what a draw of its images reads, compared with the possible minimum."""

from dataclasses import dataclass

import numpy as np

from datasets.shards.index import Index

DRAW = 4  # images of an identity in a usual P x K batch
MAX_BLOCK = 256 << 10


@dataclass(frozen=True)
class Locality:
    """Means over the identities of all splits. The ideal: all samples of an identity side by side."""

    samples_per_block: float
    ideal_samples_per_block: float
    in_one_block: float
    """Fraction of identities that lie in one block."""
    reads_per_draw: float
    """Mean number of blocks that hold DRAW random images of an identity."""
    ideal_reads_per_draw: float
    bytes_per_draw: float
    """Bytes of these blocks."""
    bytes_wanted: float
    """Bytes of these images alone."""

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        ratio = self.samples_per_block / self.ideal_samples_per_block
        takes = f"{self.reads_per_draw:.1f} reads ({self.ideal_reads_per_draw:.1f} at best)"
        reads = f"drawing {DRAW} images of an identity takes {takes}"
        if ratio >= 0.8:
            return f"good: identities lie side by side; {reads}"
        if ratio >= 0.3:
            return f"middling: identities are partly scattered; {reads}"
        return f"poor: identities are scattered over the shards; {reads}: shards sorted by identity would be faster"


def locality_of(index: Index, max_block: int = MAX_BLOCK) -> Locality:
    """Measure a set. ``max_block``: the largest block in bytes."""
    blocks = index.blocks
    pairs = np.stack([blocks["split"].astype(np.int64), blocks["identity"].astype(np.int64)])
    _, group = np.unique(pairs, axis=1, return_inverse=True)
    group = group.reshape(-1)
    count, size = blocks["count"].astype(np.float64), blocks["size"].astype(np.float64)
    total, total_size = np.bincount(group, count), np.bincount(group, size)
    block_of = index.samples["block"]
    wanted = np.bincount(group[block_of], index.samples["size"]) / total * np.minimum(total, DRAW)
    ideal_blocks = np.minimum(np.ceil(total_size / max_block), total)
    missed = _missed(count, total[group])
    ideal_missed = _missed(total / ideal_blocks, total)
    return Locality(
        samples_per_block=len(index) / len(count),
        ideal_samples_per_block=len(index) / float(ideal_blocks.sum()),
        in_one_block=float(np.mean(np.bincount(group) == 1)),
        reads_per_draw=float(np.bincount(group, 1 - missed).mean()),
        ideal_reads_per_draw=float(np.mean(ideal_blocks * (1 - ideal_missed))),
        bytes_per_draw=float(np.bincount(group, size * (1 - missed)).mean()),
        bytes_wanted=float(wanted.mean()),
    )


def _missed(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the probability that min(DRAW, total) samples drawn without replacement miss all ``count``: hypergeometric."""
    missed = np.ones_like(count)
    for drawn in range(DRAW):
        factor = np.maximum(total - count - drawn, 0) / np.maximum(total - drawn, 1)
        missed *= np.where(drawn < total, factor, 1.0)
    return missed
