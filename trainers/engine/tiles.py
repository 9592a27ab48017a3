"""The largest cosine of each identity, raised tile by tile of the matrix of cosines. N identities, D features, T rows a tile."""

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 16  # a row and tile that are worth computing one by one


class Difficulty(NamedTuple):
    """``cosine`` float32 [N] in -1..1, and ``nearest`` int64 [N], the identity that it is the cosine to."""

    cosine: Tensor
    nearest: Tensor


def take_tile(best: Difficulty, left: Tensor, right: Tensor, row: int, col: int, space: Tensor) -> None:
    """Raise ``best`` to the cosines of the rows from ``row`` on to those from ``col`` on. ``space`` [T, T] is written over."""
    products = torch.mm(left, right.T, out=space[: len(left), : len(right)])
    if row == col:
        products.fill_diagonal_(-2.0)  # below every cosine: an identity is not its own neighbour
    _raise_to(best, row, products, col)
    if row != col:
        _raise_to(best, col, products.T, row)


def _raise_to(best: Difficulty, start: int, products: Tensor, offset: int) -> None:
    """Raise best[start:] to the maxima of products [n, T], whose columns count from ``offset``. Ties go to the smaller number.

    The maximum of a row is vectorised and its place is not: that is asked only of the rows, soon few, whose best may rise.
    """
    rising = start + torch.nonzero(products.amax(dim=1) >= best.cosine[start : start + len(products)]).squeeze(1)
    if not len(rising):
        return
    cosine, nearest = products.index_select(0, rising - start).clamp_(max=1).max(dim=1)  # equal rows give 1.0000002
    nearest += offset
    was = Difficulty(best.cosine[rising], best.nearest[rising])
    better = (cosine > was.cosine) | ((cosine == was.cosine) & (nearest < was.nearest))
    best.cosine[rising] = torch.where(better, cosine, was.cosine)
    best.nearest[rising] = torch.where(better, nearest, was.nearest)


def take_tile_by_half(best: Difficulty, left: Tensor, right: Tensor, row: int, col: int, space: Tensor) -> None:
    """As `take_tile`. With a, b of length 1 and their bfloat16 forms a', b':  |a b - a' b'| <= |a - a'| + |b - b'| |a'|, and
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
        take_tile(best, left, right, row, col, space)
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
