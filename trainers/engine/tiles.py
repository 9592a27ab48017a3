"""The largest cosine of each identity, raised tile by tile of the matrix of cosines. N identities, D features, T rows a tile."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GAP = 32  # floats between the rows of a strip: at distances of a power of two they would share few lines of a cache
CANDIDATES = 16  # a row and tile that are worth computing one by one


class Difficulty(NamedTuple):
    """``cosine`` float32 [N] in -1..1, and ``nearest`` int64 [N], the identity that it is the cosine to."""

    cosine: Tensor
    nearest: Tensor


class Space(NamedTuple):
    """Memory in which a strip of W tiles is computed."""

    products: Tensor  # [T, W T] and a gap between the rows
    of_rows: Tensor  # [W, T]: the largest product of each row, tile by tile
    of_columns: Tensor  # [W T]


def space_for(tile: int, tiles: int, device: torch.device) -> Space:
    """Space for a strip of so many tiles."""
    products = torch.empty(tile, tiles * tile + GAP, device=device)
    return Space(products, torch.empty(tiles, tile, device=device), torch.empty(tiles * tile, device=device))


def take_strip(best: Difficulty, left: Tensor, rights: Sequence[Tensor], row: int, col: int, space: Space) -> None:
    """Raise ``best`` to the cosines of the rows from ``row`` on to those from ``col`` on, which come tile by tile.

    A tile is the same product in whatever strip it stands. Its maxima are vectorised, and taken while it is in the caches; their
    places are not, and are asked only of the rows and columns, soon few, whose best may rise. Ties go to the smaller number.
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


def _raise(best: Difficulty, rising: Tensor, cosine: Tensor, nearest: Tensor) -> None:
    """Raise some of the best to cosines that are as large or larger."""
    was = best.nearest[rising]
    best.nearest[rising] = torch.where((cosine > best.cosine[rising]) | (nearest < was), nearest, was)
    best.cosine[rising] = cosine


def take_tile_by_half(best: Difficulty, left: Tensor, right: Tensor, row: int, col: int, space: Space) -> None:
    """As `take_strip`. With a, b of length 1 and their bfloat16 forms a', b':  |a b - a' b'| <= |a - a'| + |b - b'| |a'|, and
    the sum of D products in float32 adds at most D 2^-23: what lies twice that below a row's maximum is not it."""
    rough_left, rough_right = left.bfloat16(), right.bfloat16()
    residuals = [(some - rough).norm(dim=1).amax() for some, rough in ((left, rough_left), (right, rough_right))]
    error = 1.01 * (residuals[0] + residuals[1]) + left.shape[1] * 2.0**-23
    rough = _product(rough_left, rough_right)
    if row == col:
        rough.fill_diagonal_(-4.0)
    of_rows = torch.maximum(best.cosine[row : row + len(left)], rough.amax(dim=1) - error) - error
    of_columns = torch.maximum(best.cosine[col : col + len(right)], rough.amax(dim=0) - error) - error
    i, j = torch.nonzero((rough >= of_rows[:, None]) | (rough >= of_columns), as_tuple=True)
    if len(i) > CANDIDATES * (len(left) + len(right)):  # rows that lie so close are sooner told apart all together
        take_strip(best, left, [right], row, col, space)
        return
    cosine = (left[i] * right[j]).sum(dim=1).clamp_(max=1)
    _raise_by_pairs(best, row, len(left), i, cosine, j + col)
    _raise_by_pairs(best, col, len(right), j, cosine, i + row)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left right^T of bfloat16, summed and given in float32."""
    return torch.mm(left, right.T, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float().T


def _raise_by_pairs(best: Difficulty, start: int, count: int, place: Tensor, cosine: Tensor, nearest: Tensor) -> None:
    """Raise best[start : start + count], each by the pairs that name its place."""
    mine = slice(start, start + count)
    raised = packed(Difficulty(best.cosine[mine], best.nearest[mine]))
    raised.scatter_reduce_(0, place, packed(Difficulty(cosine, nearest)), "amax")
    best.cosine[mine], best.nearest[mine] = unpacked(raised)


def packed(best: Difficulty) -> Tensor:
    """Cosine and number as one int64 that sorts by the cosine, then by the smaller number."""
    bits = (best.cosine + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal, their bits are not
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32) | (0x7FFFFFFF - best.nearest)


def unpacked(pairs: Tensor) -> Difficulty:
    """What `packed` was given."""
    bits = (pairs >> 32).int()
    cosine = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return Difficulty(cosine, 0x7FFFFFFF - (pairs & 0xFFFFFFFF))
