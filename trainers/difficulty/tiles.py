"""The pairs of a strip of tiles of the cosine matrix whose cosine could be among the k largest of one of its two identities.

Large elements are found through the maxima of groups of adjacent elements. Maxima are vectorised, and few groups are looked into.
N identities, D features, T rows a tile, W tiles a strip, G groups.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from trainers.difficulty.best import Best, places_of

GAP = 32  # floats between the rows of a strip: at strides of a power of two they would compete for few cache lines
ACROSS, DOWN = 32, 16  # elements of a row, and of a column, that are a group
NONE = {torch.int32: -(2**31), torch.float32: -math.inf}  # product of a pair that does not exist


class Block(NamedTuple):
    """Consecutive rows float32 [n, D] of length 1 (or 0), from row ``first`` on; whole tiles, except at the end of the matrix."""

    first: int
    rows: Tensor


class High(NamedTuple):
    """P elements of a strip: row, column and cosine [P]."""

    row: Tensor
    column: Tensor
    cosine: Tensor


class Near:
    """The groups of a strip's rows (``side`` 1) or columns (0) that could have one of the k largest cosines of an identity.

    ``products``, contiguous [T, W T or more], times ``unit`` are the cosines within ``error``, which each group has, [n, G] or
    [G, m]. n rows and m columns of the strip exist; elsewhere ``products`` is `NONE`. Raises ``low``, their part of `Best.low`,
    if the strip is new: a pair counts there only once.
    """

    def __init__(self, products: Tensor, side: int, error: Tensor, low: Tensor, unit: float = 1.0, new: bool = True) -> None:
        self.side, self.unit = side, unit
        self.groups = torch.unflatten(products, side, (-1, group_of(products.shape[0], side)))
        tops = self.groups.amax(dim=side + 1)[: error.shape[0], : error.shape[1]]
        cosine, floor = tops * unit, low[:, -1]
        if new:
            _raise(low, cosine - error, side)
        near = places_of(cosine.add_(error) >= (floor[:, None] if side else floor))
        self.first, self.second = _divided(near, error.shape[1])
        least = floor.index_select(0, self.first if side else self.second).sub_(error.reshape(-1).index_select(0, near)) / unit
        self.least = least if products.is_floating_point() else least.floor_().int()  # the products are not converted

    def __len__(self) -> int:
        return len(self.first)

    def elements(self) -> High:
        """The elements of the groups that could be such a cosine."""
        if self.side:
            some = self.groups.flatten(0, 1).index_select(0, self.first * self.groups.shape[1] + self.second)
        else:
            some = self.groups[self.first, :, self.second]
        high = places_of(some >= self.least[:, None])
        place, within = _divided(high, some.shape[1])
        first, second = self.first.index_select(0, place), self.second.index_select(0, place)
        (second if self.side else first).mul_(some.shape[1]).add_(within)
        return High(first, second, some.view(-1).index_select(0, high) * self.unit)


def group_of(tile: int, side: int) -> int:
    """The number of adjacent elements of a row (``side`` 1) or column (0) that are a group."""
    return math.gcd(ACROSS if side else DOWN, tile)


def space_for(tile: int, tiles: int, device: torch.device) -> Tensor:
    """Allocate memory for the cosines of a strip of ``tiles`` tiles, and a gap between its rows, [T, W T + GAP]."""
    return torch.empty(tile, tiles * tile + GAP, device=device)


def strips(tiles: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, range]]:
    """Group consecutive tiles (a, b) into strips: a, and up to ``most`` adjacent b."""
    for (a, _), run in groupby(enumerate(tiles), key=lambda item: (item[1][0], item[1][1] - item[0])):
        columns = [b for _, (_, b) in run]
        yield from ((a, range(first, min(first + most, columns[-1] + 1))) for first in columns[::most])


def take_strip(best: Best, left: Tensor, rights: Sequence[Tensor], row: int, col: int, space: Tensor, new: bool = True) -> None:
    """Update ``best`` with the cosines between rows ``left``, from number ``row`` on, and tiles ``rights``, from ``col`` on.

    A tile is the same product in any strip. A strip is ``new`` unless approximate products have raised `Best.low`.
    """
    n, count, tile = len(left), sum(map(len, rights)), len(space)
    for number, right in enumerate(rights):
        start = number * tile
        torch.mm(left, right.T, out=space[:n, start : start + len(right)])
    space[n:] = space[:n, count:] = NONE[space.dtype]
    keep_half(space, row - col)
    no_error = space.new_zeros(1, 1)
    for side, first, size, other, others in ((1, row, n, col, count), (0, col, count, row, n)):
        groups = -(-others // group_of(tile, side))
        error = no_error.expand((size, groups) if side else (groups, size))
        high = Near(space, side, error, best.low[first : first + size], new=new).elements()
        place, numbers = (high.row, high.column) if side else (high.column, high.row)
        best.insert(first, size, place, high.cosine.clamp_(max=1), other + numbers)  # equal rows give 1.0000002


def keep_half(products: Tensor, start: int) -> None:
    """Leave of a strip's tile on the diagonal, columns ``start`` on, only what is above it: each pair of two identities once."""
    tile = len(products)
    if 0 <= start < products.shape[1] // tile * tile:
        none = products.new_full((tile, tile), NONE[products.dtype])
        products[:, start : start + tile].triu_(1).add_(none.tril_())  # four times as fast as masked_fill_


def most(values: Tensor, together: int) -> Tensor:
    """The largest of each ``together`` consecutive values [n], none of them negative; the last group may be smaller."""
    missing = values.new_zeros(-len(values) % together)
    return torch.cat([values, missing]).view(-1, together).amax(dim=1)


def _raise(low: Tensor, least: Tensor, side: int) -> None:
    """Raise a part of `Best.low` [n, k], given lower bounds ``least`` of the largest cosine of each group of pairs."""
    top = least.amax(dim=side)
    if low.shape[1] == 1:
        low[:, 0].clamp_(min=top.clamp_(max=1))
        return
    rising = places_of(top > low[:, -1])
    if len(rising):
        new = least.index_select(1 - side, rising)
        both = torch.cat([low.index_select(0, rising), new if side else new.T], dim=1)
        low.index_copy_(0, rising, both.topk(low.shape[1]).values.clamp_(max=1))


def _divided(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of places in a matrix [n, width]."""
    rows = places // width
    return rows, places - rows * width
