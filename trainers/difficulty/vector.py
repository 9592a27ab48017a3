"""The difficulty vector, for every identity the largest cosine of its classifier row to another identity's, and the k largest.

    w_i = W0_i / |W0_i|,   D = W W^T,   c_i = max over n != i of D(i, n)

The result is exact, and D [N, N] is never held in memory. D is symmetric, so only the tiles (a, b) with a <= b are computed, and
each updates the best of its rows and of its columns. A tile's product does not depend on the rank that computes it, and the best
can be merged in any order, so the result is the same to the bit on any number of ranks, whether each holds all rows
(`difficulty`, `neighbours`) or its slice (`neighbours_of_slice`). For many identities, and on a GPU, approximate products come
first, and only pairs that could be among the best are computed in float32 (`trainers.difficulty.pruning`; it says when the last
bit may differ).

N identities, D features, T rows a tile, S = N / T tiles a side, R ranks.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import torch
import torch.distributed as dist
from torch import Tensor
from torch.linalg import vector_norm

from datasets.errors import InputError
from trainers.difficulty.best import Best, Nearest, Neighbours
from trainers.difficulty.pruning import Precision, Search, fastest
from trainers.difficulty.tiles import Block, space_for, strips, take_strip

TILE = {"cpu": 512, "cuda": 8192}  # on a CPU a tile's products fit its caches; on a GPU they occupy it
STRIP = {"cpu": 4, "cuda": 1}  # adjacent tiles that are reduced together
MOST = 32  # neighbours of an identity
BLOCK = {"cpu": 4096, "cuda": 1 << 16}  # rows that are normalised at a time, so that W is not copied whole


def difficulty(
    rows: Tensor, *, tile: int | None = None, group: dist.ProcessGroup | None = None, precision: Precision | None = None
) -> Nearest:
    """The difficulty of every identity: its only neighbour, as `neighbours` finds it for k = 1, with the same errors."""
    cosine, numbers = neighbours(rows, 1, tile=tile, group=group, precision=precision)
    return Nearest(cosine[:, 0], numbers[:, 0])


@torch.no_grad()
def neighbours(
    rows: Tensor, k: int, *, tile: int | None = None, group: dist.ProcessGroup | None = None, precision: Precision | None = None
) -> Neighbours:
    """The k nearest neighbours of every identity, from classifier rows [N, D] of any float type and any length.

    A row of zeros has cosine 0 to every other. Of equal cosines, the identity with the smaller number is nearer. With a process
    group, every rank passes the same rows, computes its slice of the tiles, and gets the whole result. Needs 2 BLOCK D floats
    (and as many bytes), (STRIP + 1) T T floats and 24 N k + 44 N bytes, the result's 12 N k included, besides the rows.
    ``precision``: of the products that come first; None: the fastest.

    Raises:
        ValueError: fewer than two identities, or k not in 1 .. min(32, N - 1).
        InputError: a row is not finite: training has diverged.
    """
    tile = tile or TILE[rows.device.type]
    rank, world = _place(group)
    search = _search(rows, len(rows), k, tile, precision)
    _check_finite(rows, tile, len(rows), 0, None)
    for left, right, pairs in _visits(rows, tile, rank, world):
        search.visit(left, right, pairs)
    return search.best.merged(group)


@torch.no_grad()
def neighbours_of_slice(
    rows: Tensor, count: int, k: int, *, tile: int | None = None, group: dist.ProcessGroup | None = None,
    precision: Precision | None = None,
) -> Neighbours:  # fmt: skip
    """The k nearest neighbours of all ``count`` identities, when each rank holds only the rows [n, D] of its slice (`slice_of`).

    Every rank gets the result that `neighbours` has for all rows together. Rows are first moved so that each rank has whole
    tiles. Then they are passed around in a ring to half of the other ranks: one of two ranks computes the tiles between their
    rows. Needs three slices of N D / R floats (and two of as many bytes), (STRIP + 1) T T floats and 24 N k + 44 N bytes, the
    result's 12 N k included, besides the rows.

    Raises:
        ValueError: fewer than two identities, or k not in 1 .. min(32, N - 1).
        InputError: a row is not finite: training has diverged.
    """
    tile = tile or TILE[rows.device.type]
    rank, world = _place(group)
    search, side = _search(rows, count, k, tile, precision), -(-count // tile)
    _check_finite(rows, tile, count, slice_of(count, rank, world)[0], group)
    w = _unit(rows, tile, torch.empty(rows.shape, device=rows.device))
    w = w if group is None else _to_tiles(w, count, tile, group)
    own = guest = Block(_rows_of(count, tile, rank, world)[0], w)
    for step, pairs in enumerate(ring_tiles(side, rank, world)):
        last = step == world // 2
        coming, moves = (guest, []) if last else _pass_on(guest, count, tile, step, group)
        left, right = (own, guest) if own.first <= guest.first else (guest, own)
        search.visit(left, right, pairs)
        for move in moves:
            move.wait()
        guest = coming
    return search.best.merged(group)


def slice_of(count: int, rank: int, world: int) -> tuple[int, int]:
    """A rank's slice of ``count`` things, (first, one past the last): consecutive ones, N / R of them to within one."""
    return rank * count // world, (rank + 1) * count // world


def tiles_of(side: int, across: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """One rank's tiles (a, b), a <= b < side, when each rank holds all rows.

    All tiles are ordered by blocks of ``across`` x ``across``, each of which has one side in common with the one before it. A
    rank has a slice of this order, so ranks differ by one tile at most and need few blocks.
    """
    starts = range(0, side, across)
    ends = ((starts[i], starts[j]) for j in range(len(starts)) for i in (*reversed(range(j)), j))
    blocks = ((range(i, min(i + across, side)), range(j, min(j + across, side))) for i, j in ends)
    tiles = ((a, b) for left, right in blocks for a in left for b in right if a <= b)
    return islice(tiles, *slice_of(side * (side + 1) // 2, rank, world))


def ring_tiles(side: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
    """One rank's tiles (a, b), a <= b, at each of the R // 2 + 1 steps of the ring; at step s it has the rows of rank + s.

    If R is even, two ranks meet twice, in the last step: each computes half of their tiles, in a chessboard pattern.
    """
    own, steps = range(*slice_of(side, rank, world)), []
    for step in range(world // 2 + 1):
        owner = (rank + step) % world
        pairs = [(min(a, b), max(a, b)) for a in own for b in range(*slice_of(side, owner, world)) if step or a <= b]
        if step and 2 * step == world:
            pairs = [(a, b) for a, b in pairs if (a + b) % 2 == (rank < owner)]
        steps.append(sorted(pairs))
    return steps


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    return (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)


def _search(rows: Tensor, count: int, k: int, tile: int, precision: Precision | None) -> "Plain | Search":
    """A search among ``count`` identities; ``rows``: all rows, or a rank's slice."""
    if count < 2:
        raise ValueError(f"the difficulty of an identity needs another one; there are {count}")
    if not 1 <= k <= min(MOST, count - 1):
        raise ValueError(f"k = {k} neighbours of {count} identities: must be from 1 to {min(MOST, count - 1)}")
    best = Best(count, k, rows.device)
    precision = precision or fastest(count, rows.shape[1], rows.device)
    tiles = min(STRIP[rows.device.type], -(-count // tile))
    return Plain(best, tile, tiles) if precision == "float32" else Search(best, tile, tiles, precision)


class Plain:
    """Updates ``best`` with the float32 cosines of the blocks that it visits."""

    def __init__(self, best: Best, tile: int, tiles: int) -> None:
        self.best, self.tile, self.tiles = best, tile, tiles
        self._space = space_for(tile, tiles, best.floor.device)

    def visit(self, left: Block, right: Block, pairs: Sequence[tuple[int, int]]) -> None:
        """Search the tiles ``pairs`` (a, b) between two blocks, or within one."""
        mine, others = (dict(enumerate(torch.split(b.rows, self.tile), b.first // self.tile)) for b in (left, right))
        for a, columns in strips(pairs, self.tiles):
            rights = [others[b] for b in columns]
            take_strip(self.best, mine[a], rights, a * self.tile, columns[0] * self.tile, self._space)


def _visits(rows: Tensor, tile: int, rank: int, world: int) -> Iterator[tuple[Block, Block, list[tuple[int, int]]]]:
    """A rank's tiles, grouped by the two blocks of normalised rows that they are between; at most two blocks are in memory."""
    across = max(BLOCK[rows.device.type] // tile, 1)  # tiles per block
    held, spare = dict[int, tuple[Tensor, Block]](), list[Tensor]()  # each block's memory and rows
    own = tiles_of(-(-len(rows) // tile), across, rank, world)
    for ends, tiles in groupby(own, key=lambda pair: (pair[0] // across, pair[1] // across)):
        spare += [held.pop(number)[0] for number in held.keys() - ends]
        for number in ends:
            if number not in held:
                first = number * across * tile
                some = rows[first : first + across * tile]
                space = spare.pop() if spare else torch.empty(min(across * tile, len(rows)), rows.shape[1], device=rows.device)
                held[number] = space, Block(first, _unit(some, tile, space))
        left, right = (held[number][1] for number in ends)
        yield left, right, list(tiles)


def _unit(rows: Tensor, tile: int, space: Tensor) -> Tensor:
    """Normalise rows [n, D] to length 1 (or 0), a tile at a time, so that a row's result is the same to the bit on any rank.

    Written to the beginning of ``space``, float32 [n or more, D]; returns that part of it.
    """
    for start in range(0, len(rows), tile):
        some = _scaled(rows[start : start + tile])
        part = space[start : start + len(some)].copy_(some)  # their memory layout affects the rounding
        part /= _largest(part)[:, None].clamp_min_(torch.finfo(part.dtype).tiny)
        part /= vector_norm(part, dim=1, keepdim=True).clamp_min_(1e-12)  # at least 1, or 0: no square has over- or underflowed
    return space[: len(rows)]


def _scaled(rows: Tensor) -> Tensor:
    """Float64 rows, each divided by its largest value, as they may exceed float32's range; rows of other types unchanged."""
    if rows.dtype != torch.float64:
        return rows
    return rows / _largest(rows)[:, None].clamp_min(torch.finfo(rows.dtype).tiny)


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each row, or NaN if it has one; in two passes, which is fastest on a CPU."""
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))


def _check_finite(rows: Tensor, tile: int, count: int, first: int, group: dist.ProcessGroup | None) -> None:
    """Raise InputError if a row is not finite, on all ranks of a group. ``rows`` are those from ``first`` on, of ``count``."""
    bad = torch.zeros(count, dtype=torch.uint8, device=rows.device)
    for start in range(0, len(rows), tile):
        some = rows[start : start + tile].detach()
        some = some if some.dtype == torch.float64 else some.float()
        bad[first + start : first + start + len(some)] = ~torch.isfinite(_largest(some))
    if group is not None:
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bad.any():
        numbers = torch.nonzero(bad).flatten().tolist()
        what = f"classifier rows are not finite (first: {numbers[:5]} of {len(numbers)}): training has diverged"
        raise InputError(what, "the difficulty vector", "lower --optim.lr, or give more --optim.warmup")


def _rows_of(count: int, tile: int, rank: int, world: int) -> tuple[int, int]:
    """The rows (first, one past the last) of a rank's tiles."""
    first, end = slice_of(-(-count // tile), rank, world)
    return min(first * tile, count), min(end * tile, count)


def _to_tiles(w: Tensor, count: int, tile: int, group: dist.ProcessGroup) -> Tensor:
    """Exchange rows, so that each rank has those of its tiles."""
    rank, world = _place(group)

    def common(owner: int, user: int) -> int:
        (first, end), (begin, stop) = slice_of(count, owner, world), _rows_of(count, tile, user, world)
        return max(min(end, stop) - max(first, begin), 0)

    first, end = _rows_of(count, tile, rank, world)
    whole = w.new_empty(end - first, w.shape[1])
    sizes = [common(owner, rank) for owner in range(world)], [common(rank, user) for user in range(world)]
    dist.all_to_all_single(whole, w, *sizes, group=group)
    return whole


def _pass_on(guest: Block, count: int, tile: int, step: int, group: dist.ProcessGroup | None) -> tuple[Block, list[dist.Work]]:
    """Start to send the guest's rows to the previous rank and to receive the next rank's; returns these and what to wait for."""
    rank, world = _place(group)
    first, end = _rows_of(count, tile, (rank + step + 1) % world, world)
    coming = guest.rows.new_empty(end - first, guest.rows.shape[1])
    moves = [(dist.isend, guest.rows, (rank - 1) % world), (dist.irecv, coming, (rank + 1) % world)]
    peers = [dist.P2POp(move, block, group=group, group_peer=peer) for move, block, peer in moves if len(block)]
    return Block(first, coming), dist.batch_isend_irecv(peers) if peers else []
