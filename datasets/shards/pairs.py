"""The pairs of a verification set, in their published order."""

import numpy as np

from datasets.errors import InputError
from datasets.shards.index import Index, Int64s, split_of
from datasets.splits import PAIRS


def pairs_of(index: Index) -> Int64s:
    """Return the samples of each pair as their numbers in the index, int64 [n, 2], in the published order.

    A pair is "same" where ``index.identity_of`` is equal for both. Pairs with an unreadable image that was left out are missing.

    Raises:
        InputError: the set has no pairs, or its keys do not say which images form one.
    """
    split = split_of(index, PAIRS)
    samples = split.samples(np.arange(len(split)))
    try:
        positions = np.array([int(index.keys[sample].rpartition("/")[2]) for sample in samples.tolist()], np.int64)
    except ValueError as error:
        raise InputError("keys without the number of a pair", index.url, "pack the set again") from error
    order = np.argsort(positions, kind="stable")
    positions, samples = positions[order], samples[order]
    first = np.flatnonzero((positions[:-1] % 2 == 0) & (np.diff(positions) == 1))
    if len(np.unique(positions)) < len(positions) or not len(first):
        raise InputError("no pairs by its keys", index.url, "pack the set again")
    pairs: Int64s = np.stack([samples[first], samples[first + 1]], axis=1)
    return pairs
