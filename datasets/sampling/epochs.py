"""The uniform epoch: every sample once before any comes twice, in an order that still reads shards nearly in sequence."""

from functools import lru_cache

import numpy as np

from datasets.seeding import generator
from datasets.shards.index import Int64s, Split

MIXED_BYTES = 1 << 30  # bytes of shards that a uniform epoch mixes at a time


MIN_SHARDS, MAX_SHARDS = 4, 128  # shards that it mixes at least, and at most: a reader has them open


class UniformEpochs:
    """An endless stream of shuffled epochs of a split, as a pure function of the place in the stream.

    Shards come in a new random order each epoch, on a ring. Each is dealt out at random over as many turns as shards are mixed,
    its own and those after it; a turn's samples lie in random order. So with each turn one shard comes and one is done with
    (those at the ring's seam come at both ends of the epoch): a reader streams, and has few shards open. A set of ``MIXED_BYTES`` bytes
    or less, in ``MAX_SHARDS`` shards or fewer, is mixed as a whole.
    """

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        shard_of = split.index.blocks["shard"][split.blocks]
        by_shard = np.argsort(shard_of, kind="stable").astype(np.int32)
        self.shards, starts = np.unique(shard_of[by_shard], return_index=True)
        self.blocks = np.split(by_shard, starts[1:])
        self.sizes = np.array([int(np.sum(split.starts[b + 1] - split.starts[b])) for b in self.blocks], np.int64)
        mean = sum(split.index.shards[shard].size for shard in self.shards) / len(self.shards)
        self.mixed = min(len(self.shards), MAX_SHARDS, max(MIN_SHARDS, round(MIXED_BYTES / mean)))
        self.mixed_bytes = int(self.mixed * mean)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._turn = lru_cache(maxsize=3)(self._make_turn)
        self._dealt = lru_cache(maxsize=self.mixed + 1)(self._deal)

    def batch(self, place: int, count: int) -> Int64s:
        """``count`` positions from ``place`` on; a batch may straddle two epochs, and no sample is left out."""
        parts: list[Int64s] = []
        while count > 0:
            epoch, within = divmod(place, len(self.split))
            _, ends = self._order(epoch)
            turn = int(np.searchsorted(ends, within, side="right"))
            order = self._turn(epoch, turn)
            start = within - (int(ends[turn - 1]) if turn else 0)
            parts.append(order[start : start + count])
            place, count = place + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _make_order(self, epoch: int) -> tuple[Int64s, Int64s]:
        """The shards of an epoch, and where in it each turn ends."""
        order = generator(self.seed, "shards", epoch).permutation(len(self.shards))
        sizes, turns = self.sizes[order], np.zeros(len(order), np.int64)
        for part in range(self.mixed):
            turns += np.roll(sizes * (part + 1) // self.mixed - sizes * part // self.mixed, part)
        return order, np.cumsum(turns)

    def _make_turn(self, epoch: int, turn: int) -> Int64s:
        """Part 0 of the shard whose turn it is, part 1 of the one before it on the ring, and so on."""
        order, parts = self._order(epoch)[0], list[Int64s]()
        for part in range(self.mixed):
            dealt = self._dealt(epoch, int(order[turn - part]))
            parts.append(dealt[len(dealt) * part // self.mixed : len(dealt) * (part + 1) // self.mixed])
        return generator(self.seed, "turn", epoch, turn).permutation(np.concatenate(parts))

    def _deal(self, epoch: int, shard: int) -> Int64s:
        """The positions of a shard's samples in random order."""
        blocks = self.blocks[shard]
        first = self.split.starts[blocks]
        return generator(self.seed, "deal", epoch, shard).permutation(runs(first, self.split.starts[blocks + 1] - first))


def runs(first: Int64s, counts: Int64s) -> Int64s:
    """first[0], first[0] + 1, ... ``counts[0]`` numbers, then as many from first[1] on as counts[1] says, and so on."""
    before = np.cumsum(counts) - counts
    numbers: Int64s = np.arange(counts.sum()) + np.repeat(first - before, counts)
    return numbers
