"""The k largest cosines of each identity so far, and to whom: pairs are inserted, ranks are merged.

N identities, K kept of each, P pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

NOTHING = -2.0  # below every cosine
LEAST = -(2**63)  # below every key


class Neighbours(NamedTuple):
    """The K nearest neighbours of each identity: by falling cosine, and of equal cosines by rising number."""

    cosine: Tensor
    """float32 [N, K], in -1..1: the largest cosines to other identities' rows."""
    numbers: Tensor
    """int64 [N, K]: these identities."""


class Nearest(NamedTuple):
    """The nearest neighbour of each identity."""

    cosine: Tensor
    """float32 [N], in -1..1: the largest cosine to another identity's row."""
    nearest: Tensor
    """int64 [N]: that identity."""


class Best:
    """The K nearest neighbours of each of N identities among the pairs seen so far. Takes 12 N K bytes."""

    def __init__(self, count: int, k: int, device: torch.device) -> None:
        self.k = k
        self.keys = packed(torch.full((count, k), NOTHING, device=device), torch.zeros(1, dtype=torch.int64, device=device))
        """int64 [N, K], `packed`, falling."""
        self.low = torch.full((count, k), NOTHING, device=device)
        """float32 [N, K], falling: lower bounds of each identity's K largest cosines, also of pairs that are not inserted yet."""
        self.floor = self.low[:, -1]
        """float32 [N], a view: pairs below it need not be inserted."""

    def insert(self, first: int, count: int, place: Tensor, cosine: Tensor, numbers: Tensor) -> None:
        """Offer pairs to identities first .. first + count - 1: ``place`` [P] within that range, ``cosine`` [P], ``numbers`` [P].

        No pair may be offered twice.
        """
        held, low = self.keys[first : first + count], self.low[first : first + count]
        high = places_of(cosine >= low[:, -1].index_select(0, place))
        place, keys = place.index_select(0, high), packed(cosine.index_select(0, high), numbers.index_select(0, high))
        if self.k == 1:
            held[:, 0].scatter_reduce_(0, place, keys, "amax")
        else:
            _insert(held, place, keys)
        torch.maximum(low, unpacked(held)[0], out=low)

    def merged(self, group: dist.ProcessGroup | None) -> Neighbours:
        """The K nearest of all ranks' pairs, of which no two ranks may have the same; every rank gets the result.

        K rounds, each of which sends 8 N bytes: the largest of what is left on each rank. Takes 12 N K + 44 N bytes beside what
        is held.
        """
        cosine, numbers = torch.empty(self.keys.shape, device=self.keys.device), torch.empty_like(self.keys)
        place = torch.zeros_like(self.keys[:, :1])  # of each identity's largest pair that is left on this rank
        for column in range(self.k):
            mine = self.keys.gather(1, place)
            top = mine.clone()
            if group is not None:
                dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
            place += mine == top
            cosine[:, column], numbers[:, column] = unpacked(top[:, 0])
        return Neighbours(cosine, numbers)


def _insert(held: Tensor, place: Tensor, keys: Tensor) -> None:
    """Insert ``keys`` [P] into the rows ``place`` [P] of ``held`` [n, K]. Each round inserts the largest one left of each row."""
    while len(place):
        top = keys.new_full((len(held),), LEAST).scatter_reduce_(0, place, keys, "amax")
        rows = places_of(top > held[:, -1])
        mine, new = held.index_select(0, rows), top.index_select(0, rows)[:, None]
        mine = mine.maximum(torch.cat([new, mine[:, :-1].minimum(new)], dim=1))  # smaller ones move by a place
        held.index_copy_(0, rows, mine)
        left = places_of((keys < top.index_select(0, place)) & (keys > held[:, -1].index_select(0, place)))
        place, keys = place.index_select(0, left), keys.index_select(0, left)


def places_of(mask: Tensor) -> Tensor:
    """The places of the true elements of a flattened mask. Few are true, and NumPy finds them ten times as fast as torch."""
    if mask.device.type != "cpu":
        return torch.nonzero(mask.reshape(-1)).squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def packed(cosine: Tensor, numbers: Tensor) -> Tensor:
    """Cosine and number in one int64, ordered by cosine and, for equal cosines, by smaller number."""
    bits = (cosine + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal, their bits are not
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32) | (0x7FFFFFFF - numbers)


def unpacked(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `packed`."""
    bits = (pairs >> 32).int()
    cosine = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return cosine, 0x7FFFFFFF - (pairs & 0xFFFFFFFF)
