"""Neighbourhoods: batches of identities that look alike, of which the model must tell one from another.

Graph sampling: Liao and Shao, "Graph Sampling Based Deep Metric Learning for Generalizable Person Re-Identification", CVPR 2022.
There, a batch is one anchor with its nearest identities, of a graph that is computed once an epoch. Here a batch has several
anchors, so that it is not of one look alone, and the graph is the version of the difficulty vector that the step uses.

N identities, A anchors of a batch, W identities of a neighbourhood (the anchor is one), k known neighbours of each identity.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from datasets.seeding import generator
from datasets.shards.index import Int64s


class AnchorEpochs:
    """An endless sequence of N identities, each once an epoch, in an order of the epoch's own.

    A pure function of the place in the sequence. The order of one epoch is in memory (4 N bytes).
    """

    def __init__(self, identities: int, seed: int) -> None:
        self.identities, self.seed = identities, seed
        self._order = lru_cache(maxsize=1)(self._make_order)

    def batch(self, place: int, count: int) -> Int64s:
        """Return ``count`` identities from ``place`` on, int64; they may cross the border of two epochs."""
        parts = list[npt.NDArray[np.int32]]()
        while count > 0:
            epoch, within = divmod(place, self.identities)
            parts.append(self._order(epoch)[within : within + count])
            place, count = place + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def _make_order(self, epoch: int) -> npt.NDArray[np.int32]:
        return generator(self.seed, "anchors", epoch).permutation(np.arange(self.identities, dtype=np.int32))


def neighbourhoods(
    rng: np.random.Generator, anchors: Int64s, neighbours: npt.NDArray[np.int32], width: int, skip: int = 0
) -> Int64s:
    """Return each anchor with its nearest identities, int64 [A W], all different.

    ``neighbours``: of every identity, the nearest first, [N, k]. ``skip``: leaves out so many of the nearest of each anchor. An
    identity that is in the batch already is replaced by the anchor's next one. Where the known ones are used up, and where an
    anchor comes twice (two epochs meet), an identity is drawn from all that are not in the batch. N must be A W or more.
    """
    heads = list(dict.fromkeys(anchors.tolist()))
    taken, drawn = set(heads), list[int]()
    for place in range(len(anchors)):
        anchor = heads[place] if place < len(heads) else _another(rng, len(neighbours), taken)
        drawn.append(anchor)
        for identity in neighbours[anchor, skip:].tolist():
            if len(drawn) == (place + 1) * width:
                break
            if identity not in taken:
                taken.add(identity)
                drawn.append(identity)
        while len(drawn) < (place + 1) * width:
            drawn.append(_another(rng, len(neighbours), taken))
    return np.array(drawn, np.int64)


def _another(rng: np.random.Generator, identities: int, taken: set[int]) -> int:
    """Draw an identity that is not ``taken``, and take it."""
    while (identity := int(rng.integers(identities))) in taken:
        pass
    taken.add(identity)
    return identity


def of_different_cameras(rng: np.random.Generator, cameras: npt.NDArray[np.integer], counts: Int64s, each: int) -> Int64s:
    """For every identity, draw ``each`` of its samples: numbers from 0 to its count - 1, int64 [len(counts), each].

    ``cameras``: of the identities' samples, side by side, [sum(counts)]. The first sample is any; each next one is any of those
    whose camera has come least often. So no camera comes twice before each has come once. Samples are distinct, or repeated where
    there are fewer than ``each``.
    """
    number, chance = np.arange(len(cameras)), rng.random(len(cameras))
    owner = np.repeat(number[: len(counts)], counts)
    group = owner * (int(cameras.max(initial=0)) + 1) + cameras  # an identity's samples of one camera
    order = np.argsort(group + chance)
    group = group[order]
    begins = np.zeros(len(order), np.int64)  # of each sample's group, in this order
    begins[1:] = np.where(group[1:] == group[:-1], 0, number[1:])
    turn = np.empty(len(order), np.int64)  # how many samples of its group come before each sample
    turn[order] = number - np.maximum.accumulate(begins)
    order = np.argsort(owner * len(order) + turn + chance)
    starts = (np.cumsum(counts) - counts)[:, None]
    drawn: Int64s = order[starts + np.arange(each) % np.minimum(counts, each)[:, None]] - starts
    return drawn
