"""The largest cosine of each identity, updated with one strip of tiles of the cosine matrix after another.

N identities, D features, T rows a tile, W tiles a strip.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

GAP = 32  # floats between the rows of a strip: at strides of a power of two they would compete for few cache lines


class Nearest(NamedTuple):
    """The nearest neighbour of each identity."""

    cosine: Tensor
    """float32 [N], in -1..1: the largest cosine to another identity's row."""
    nearest: Tensor
    """int64 [N]: that identity."""


class Block(NamedTuple):
    """Consecutive rows float32 [n, D] of length 1 (or 0), from row ``first`` on; whole tiles, except at the end of the matrix."""

    first: int
    rows: Tensor


class Space(NamedTuple):
    """Memory for a strip of W tiles."""

    products: Tensor  # [T, W T] and a gap between the rows
    of_rows: Tensor  # [W, T]: the largest product of each row, tile by tile
    of_columns: Tensor  # [W T]


def space_for(tile: int, tiles: int, device: torch.device) -> Space:
    """Allocate memory for a strip of ``tiles`` tiles."""
    products = torch.empty(tile, tiles * tile + GAP, device=device)
    return Space(products, torch.empty(tiles, tile, device=device), torch.empty(tiles * tile, device=device))


def strips(tiles: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, range]]:
    """Group consecutive tiles (a, b) into strips: a, and up to ``most`` adjacent b."""
    for (a, _), run in groupby(enumerate(tiles), key=lambda item: (item[1][0], item[1][1] - item[0])):
        columns = [b for _, (_, b) in run]
        yield from ((a, range(first, min(first + most, columns[-1] + 1))) for first in columns[::most])


def take_strip(best: Nearest, left: Tensor, rights: Sequence[Tensor], row: int, col: int, space: Space) -> None:
    """Update ``best`` with the cosines between rows ``left``, from number ``row`` on, and tiles ``rights``, from ``col`` on.

    A tile is the same product in any strip. Its maxima are vectorised and taken while it is in the caches. Their positions are
    slower, and are computed only for rows and columns whose best may rise, soon few. Of equal cosines the smaller number wins.
    """
    n, count, tile = len(left), sum(map(len, rights)), len(space.products)
    for number, right in enumerate(rights):
        start, end = number * tile, number * tile + len(right)
        products = torch.mm(left, right.T, out=space.products[:n, start:end])
        if row == col + start:
            products.fill_diagonal_(-2.0)  # below every cosine: an identity is not its own neighbour
        torch.amax(products, 1, out=space.of_rows[number, :n])
        torch.amax(products, 0, out=space.of_columns[start:end])
    strip = space.products[:n]
    strip[:, count : len(rights) * tile] = -2.0
    top, place = space.of_rows[: len(rights), :n].clamp_(max=1).max(dim=0)  # equal rows give 1.0000002
    rising = torch.nonzero(top >= best.cosine[row : row + n]).squeeze(1)
    if len(rising):
        place = place[rising]
        within = strip[:, : len(rights) * tile].view(n, -1, tile)[rising, place].clamp_(max=1).argmax(dim=1)
        _raise(best, row + rising, top[rising], col + place * tile + within)
    top = space.of_columns[:count].clamp_(max=1)
    rising = torch.nonzero(top >= best.cosine[col : col + count]).squeeze(1)
    if len(rising):
        within = strip.index_select(1, rising).clamp_(max=1).max(dim=0).indices
        _raise(best, col + rising, top[rising], row + within)


def _raise(best: Nearest, rising: Tensor, cosine: Tensor, nearest: Tensor) -> None:
    """Update ``best`` at ``rising`` with cosines that are at least as large."""
    was = best.nearest[rising]
    best.nearest[rising] = torch.where((cosine > best.cosine[rising]) | (nearest < was), nearest, was)
    best.cosine[rising] = cosine


def raise_by_pairs(best: Nearest, start: int, count: int, place: Tensor, cosine: Tensor, nearest: Tensor) -> None:
    """Update best[start : start + count] with pairs: ``place`` within that range, ``cosine``, ``nearest``."""
    mine = slice(start, start + count)
    raised = packed(Nearest(best.cosine[mine], best.nearest[mine]))
    raised.scatter_reduce_(0, place, packed(Nearest(cosine, nearest)), "amax")
    best.cosine[mine], best.nearest[mine] = unpacked(raised)


def packed(best: Nearest) -> Tensor:
    """Cosine and number in one int64, ordered by cosine and, for equal cosines, by smaller number."""
    bits = (best.cosine + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal, their bits are not
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32) | (0x7FFFFFFF - best.nearest)


def unpacked(pairs: Tensor) -> Nearest:
    """The inverse of `packed`."""
    bits = (pairs >> 32).int()
    cosine = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return Nearest(cosine, 0x7FFFFFFF - (pairs & 0xFFFFFFFF))
