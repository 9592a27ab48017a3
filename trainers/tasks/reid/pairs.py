"""The pairs of a verification set. Stands in for `datasets.shards.pairs` until that is merged."""

import numpy as np

from datasets.shards.index import Index, Int64s, split_of

PAIRS = "pairs"


def pairs_of(index: Index) -> Int64s:
    """Samples of each pair as their numbers in the index, int64 [n, 2], in the published order.

    The number at the end of a sample's key is its position; positions 2i and 2i + 1 are pair i.
    """
    split = split_of(index, PAIRS)
    samples = split.samples(np.arange(len(split)))
    positions = np.array([int(index.keys[sample].rpartition("/")[2]) for sample in samples.tolist()], np.int64)
    pairs: Int64s = samples[np.argsort(positions)][: len(samples) // 2 * 2].reshape(-1, 2)
    return pairs
