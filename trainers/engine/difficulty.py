"""The difficulty vector: for every identity the largest cosine of its classifier row to another identity's row.

    w_i = W0_i / |W0_i|,   D = W W^T,   c_i = max over n != i of D(i, n)

Exact, without ever holding N x N: tiles of D are computed for a <= b only (D is symmetric), each gives the maxima of its
rows and of its columns. A tile is the same product whoever computes it and maxima merge in any order, so the result is
the same to the bit on any number of ranks. N identities, D features, T rows a tile.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from datasets.errors import InputError

TILE = 1024


class Difficulty(NamedTuple):
    """``cosine`` float32 [N] in -1..1, and ``nearest`` int64 [N], the identity that it is the cosine to."""

    cosine: Tensor
    nearest: Tensor


@torch.no_grad()
def difficulty(rows: Tensor, *, tile: int = TILE, group: dist.ProcessGroup | None = None) -> Difficulty:
    """Difficulty of every identity, from classifier rows [N, D] of any float type and any length.

    A row of zeros has cosine 0 to every other. Among equal cosines the identity with the smallest number is the nearest.
    With a process group every rank passes the same rows, takes an equal share of the tiles, and gets the whole result.

    Raises:
        ValueError: fewer than two identities.
        InputError: a row is not finite: training has diverged.
    """
    count = len(rows)
    if count < 2:
        raise ValueError(f"the difficulty of an identity needs another one; there are {count}")
    rows = rows.detach().float()
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)  # no square over- or underflows
    w = torch.nn.functional.normalize(rows, dim=1)
    if not torch.isfinite(w).all():
        bad = torch.nonzero(~torch.isfinite(w).all(dim=1)).flatten().tolist()
        what = f"classifier rows are not finite (first: {bad[:5]} of {len(bad)}): training has diverged"
        raise InputError(what, "the difficulty vector", "lower --optim.lr, or give more --optim.warmup")
    best = Difficulty(torch.full((count,), -2.0, device=w.device), torch.zeros(count, dtype=torch.int64, device=w.device))
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    for a, b in tiles_of(-(-count // tile), rank, world):
        _take_tile(best, w, a * tile, b * tile, tile)
    best = Difficulty(best.cosine + 0.0, best.nearest)  # -0.0 and 0.0 are equal, their bits are not
    return best if world == 1 else _merge_ranks(best, group)


def tiles_of(side: int, rank: int, world: int) -> list[tuple[int, int]]:
    """The tiles (a, b), a <= b < side, of one rank: dealt out in turn, so that shares differ by one tile at most."""
    return [(a, b) for a in range(side) for b in range(a, side)][rank::world]


def _take_tile(best: Difficulty, w: Tensor, row: int, col: int, tile: int) -> None:
    products = (w[row : row + tile] @ w[col : col + tile].T).clamp_(-1, 1)  # rounding gives 1.0000002 for equal rows
    if row == col:
        products.fill_diagonal_(-2.0)  # below every cosine: an identity is not its own neighbour
    _raise_to(best, row, *products.max(dim=1), col)
    if row != col:
        _raise_to(best, col, *products.max(dim=0), row)


def _raise_to(best: Difficulty, start: int, cosine: Tensor, nearest: Tensor, offset: int) -> None:
    """Raise best[start:] to the maxima of one tile; ``nearest`` counts from ``offset``. Ties go to the smaller number."""
    mine = slice(start, start + len(cosine))
    nearest = nearest + offset
    better = (cosine > best.cosine[mine]) | ((cosine == best.cosine[mine]) & (nearest < best.nearest[mine]))
    best.cosine[mine] = torch.where(better, cosine, best.cosine[mine])
    best.nearest[mine] = torch.where(better, nearest, best.nearest[mine])


def _merge_ranks(best: Difficulty, group: dist.ProcessGroup | None) -> Difficulty:
    """One MAX over ranks of (cosine, smaller number first), packed into an int64 that sorts the same way."""
    bits = best.cosine.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    packed = (ordered << 32) | (0x7FFFFFFF - best.nearest)
    dist.all_reduce(packed, dist.ReduceOp.MAX, group=group)
    ordered = (packed >> 32).int()
    cosine = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return Difficulty(cosine, 0x7FFFFFFF - (packed & 0xFFFFFFFF))
