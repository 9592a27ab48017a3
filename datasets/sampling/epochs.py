"""The uniform epoch: every sample once before any comes twice, in a random order that reads shards almost sequentially."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from datasets.seeding import generator
from datasets.shards.index import Int64s, Split

MIXED_BYTES = 1 << 30  # bytes of shards that are mixed at a time
MIN_SHARDS, MAX_SHARDS = 4, 128  # limits of the number of shards that are mixed at a time: a reader has them open


class UniformEpochs:
    """An endless sequence of shuffled epochs of a split, as a pure function of the place in the sequence.

    Each epoch puts the shards on a ring in a new random order. There is one turn per shard. The samples of a shard are divided at
    random among its own turn and the next ``mixed`` - 1 turns, and each turn shuffles its samples. So with every turn a reader
    opens one shard and finishes another (except where the ring closes), and only ``mixed`` shards are open. Sets of up to
    ``MIXED_BYTES`` bytes and ``MAX_SHARDS`` shards are mixed completely.
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
        """Return ``count`` positions from ``place`` on; a batch may cross the border of two epochs, so no sample is left out."""
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
        """Return the order of the shards in an epoch, and where in the epoch each turn ends."""
        order = generator(self.seed, "shards", epoch).permutation(len(self.shards))
        sizes, turns = self.sizes[order], np.zeros(len(order), np.int64)
        for part in range(self.mixed):
            turns += np.roll(sizes * (part + 1) // self.mixed - sizes * part // self.mixed, part)
        return order, np.cumsum(turns)

    def _make_turn(self, epoch: int, turn: int) -> Int64s:
        """Return the positions of a turn: part 0 of its own shard, part 1 of the shard before it on the ring, and so on."""
        order, parts = self._order(epoch)[0], list[Int64s]()
        for part in range(self.mixed):
            dealt = self._dealt(epoch, int(order[turn - part]))
            parts.append(dealt[len(dealt) * part // self.mixed : len(dealt) * (part + 1) // self.mixed])
        return generator(self.seed, "turn", epoch, turn).permutation(np.concatenate(parts))

    def _deal(self, epoch: int, shard: int) -> Int64s:
        """Return the positions of a shard's samples in random order."""
        blocks = self.blocks[shard]
        first = self.split.starts[blocks]
        return generator(self.seed, "deal", epoch, shard).permutation(runs(first, self.split.starts[blocks + 1] - first))


class WeightedEpochs:
    """The even draws of joined sets by whole-number weights: each set has epochs of its own, which take turns (`Turns`).

    So every sample of a set is drawn once before any of that set comes twice, and a small set of much weight begins its next
    epoch earlier than the others. Like `UniformEpochs`, a pure function of the place in the sequence.
    """

    def __init__(self, sets: Sequence[Split], weights: Sequence[int], seed: int) -> None:
        """``sets``: the same split of each set. Positions count through all of them."""
        self.epochs = [UniformEpochs(split, own) for split, own in zip(sets, seeds_of_sets(seed, len(sets)), strict=True)]
        self.turns = Turns([len(split) for split in sets], weights)
        self.mixed_bytes = sum(epochs.mixed_bytes for epochs in self.epochs)

    def batch(self, place: int, count: int) -> Int64s:
        """Return ``count`` positions from ``place`` on."""
        return self.turns.batch(place, count, [epochs.batch for epochs in self.epochs])


class Turns:
    """Sequences of several sets that take turns by whole-number weights.

    Turns repeat after sum(weights) draws; ``weights[k]`` of them are set k's, spread over the turns.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[int]) -> None:
        """``sizes``: by how many numbers each set's sequence is moved up for the next sets."""
        self.firsts = np.cumsum([0, *sizes])[:-1]
        within = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in weights])
        self.sets = np.repeat(np.arange(len(weights)), weights)[np.argsort(within, kind="stable")]  # whose turn it is

    def batch(self, place: int, count: int, sequences: Sequence[Callable[[int, int], Int64s]]) -> Int64s:
        """Return ``count`` numbers from ``place`` on; ``sequences``: of each set, ``batch(place, count)`` of its own sequence."""
        rounds, start = divmod(place, len(self.sets))
        turns = np.resize(np.roll(self.sets, -start), count)
        numbers = np.empty(count, np.int64)
        for number, (batch, first) in enumerate(zip(sequences, self.firsts, strict=True)):
            mine = turns == number
            drawn = rounds * np.count_nonzero(self.sets == number) + np.count_nonzero(self.sets[:start] == number)
            numbers[mine] = first + batch(int(drawn), int(mine.sum()))
        return numbers


def seeds_of_sets(seed: int, count: int) -> list[int]:
    """A seed for each of joined sets, so that sets of one size are shuffled apart."""
    return [int(generator(seed, "set", number).integers(2**62)) for number in range(count)]


def runs(first: Int64s, counts: Int64s) -> Int64s:
    """Return the numbers first[0], first[0] + 1, ... (``counts[0]`` of them), then those from first[1] on, and so on."""
    before = np.cumsum(counts) - counts
    numbers: Int64s = np.arange(counts.sum()) + np.repeat(first - before, counts)
    return numbers
