"""The difficulty vector: for every identity the largest cosine of its classifier row to another identity's row.

    w_i = W0_i / |W0_i|,   D = W W^T,   c_i = max over n != i of D(i, n)

Exact, without ever holding N x N: tiles of D are computed for a <= b only (D is symmetric), each gives the maxima of its
rows and of its columns. A tile is the same product whoever computes it and maxima merge in any order, so the result is
the same to the bit on any number of ranks, whether each holds all rows (`difficulty`) or a share (`difficulty_of_slice`).
Of many identities, and on a GPU, tiles are first computed from coarser numbers, and only what may be a maximum within their
error in float32 (`trainers.difficulty.pruning`, which tells when that may move the last bit).

N identities, D features, T rows a tile, S = N / T tiles a side, R ranks.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import torch
import torch.distributed as dist
from torch import Tensor
from torch.linalg import vector_norm

from datasets.errors import InputError
from trainers.difficulty.pruning import Numbers, Search, fastest
from trainers.difficulty.tiles import Block, Nearest, packed, space_for, strips, take_strip, unpacked

TILE = {"cpu": 512, "cuda": 8192}  # a CPU's tile of products stays in its caches, a GPU's keeps it busy
STRIP = {"cpu": 4, "cuda": 1}  # tiles side by side whose rows are looked through at once
BLOCK = {"cpu": 4096, "cuda": 1 << 16}  # rows made 1 long at a time, for either side of the tiles: W is not copied


@torch.no_grad()
def difficulty(
    rows: Tensor, *, tile: int | None = None, group: dist.ProcessGroup | None = None, numbers: Numbers | None = None
) -> Nearest:
    """Difficulty of every identity, from classifier rows [N, D] of any float type and any length.

    A row of zeros has cosine 0 to every other. Among equal cosines the identity with the smallest number is the nearest.
    With a process group every rank passes the same rows, takes an equal share of the tiles, and gets the whole result.
    Needs 2 BLOCK D floats (and as many bytes), STRIP T T floats and 32 N bytes besides the rows. ``numbers``: those that it
    is told by first; None: the fastest.

    Raises:
        ValueError: fewer than two identities.
        InputError: a row is not finite: training has diverged.
    """
    tile = tile or TILE[rows.device.type]
    rank, world = _place(group)
    search = _search(rows, len(rows), tile, numbers)
    _check_finite(rows, tile, len(rows), 0, None)
    for left, right, pairs in _visits(rows, tile, rank, world):
        search.visit(left, right, pairs)
    return _merged(search.best, group)


@torch.no_grad()
def difficulty_of_slice(
    rows: Tensor, count: int, *, tile: int | None = None, group: dist.ProcessGroup | None = None, numbers: Numbers | None = None
) -> Nearest:
    """Difficulty of all ``count`` identities when each rank holds the rows [n, D] of its `slice_of` them alone.

    Rows move so that each rank has whole tiles, then visit half of the other ranks in a ring: a tile of two ranks' rows is
    computed by one of the two. Every rank gets the whole result, that of `difficulty` of all rows together, as exact.
    Needs three shares of N D / R floats (two of as many bytes), STRIP T T floats and 32 N bytes besides the rows.

    Raises:
        ValueError: fewer than two identities.
        InputError: a row is not finite: training has diverged.
    """
    tile = tile or TILE[rows.device.type]
    rank, world = _place(group)
    search, side = _search(rows, count, tile, numbers), -(-count // tile)
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
    return _merged(search.best, group)


def slice_of(count: int, rank: int, world: int) -> tuple[int, int]:
    """The run of ``count`` things that a rank owns, first and one past the last: N / R of them, to within one."""
    return rank * count // world, (rank + 1) * count // world


def tiles_of(side: int, across: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """The tiles (a, b), a <= b < side, of one rank, block of ``across`` x ``across`` after block: a run of them all, so that
    shares differ by one tile at most and a rank sees few blocks; each block shares one side with the block before it."""
    starts = range(0, side, across)
    ends = ((starts[i], starts[j]) for j in range(len(starts)) for i in (*reversed(range(j)), j))
    blocks = ((range(i, min(i + across, side)), range(j, min(j + across, side))) for i, j in ends)
    tiles = ((a, b) for left, right in blocks for a in left for b in right if a <= b)
    return islice(tiles, *slice_of(side * (side + 1) // 2, rank, world))


def ring_tiles(side: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
    """The tiles (a, b), a <= b, that a rank computes at each of the R // 2 + 1 steps of the ring, when at step s it is visited
    by the rows of rank + s. With an even R the two ends of the last step meet twice and halve their tiles as a chessboard."""
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


def _search(rows: Tensor, count: int, tile: int, numbers: Numbers | None) -> "Plain | Search":
    """Of the best of each of ``count`` identities, none of which is known yet; ``rows``: all of theirs, or a rank's."""
    if count < 2:
        raise ValueError(f"the difficulty of an identity needs another one; there are {count}")
    device = rows.device
    best = Nearest(torch.full((count,), -2.0, device=device), torch.zeros(count, dtype=torch.int64, device=device))
    numbers = numbers or fastest(count, rows.shape[1], device)
    tiles = min(STRIP[device.type], -(-count // tile))
    return Plain(best, tile, tiles) if numbers == "float32" else Search(best, tile, tiles, numbers)


class Plain:
    """Raises ``best`` to the cosines of the blocks that it is shown, by their float32 products."""

    def __init__(self, best: Nearest, tile: int, tiles: int) -> None:
        self.best, self.tile, self.tiles = best, tile, tiles
        self._space = space_for(tile, tiles, best.cosine.device)

    def visit(self, left: Block, right: Block, pairs: Sequence[tuple[int, int]]) -> None:
        """The tiles (a, b) of two blocks, or of one."""
        mine, others = (dict(enumerate(torch.split(b.rows, self.tile), b.first // self.tile)) for b in (left, right))
        for a, columns in strips(pairs, self.tiles):
            rights = [others[b] for b in columns]
            take_strip(self.best, mine[a], rights, a * self.tile, columns[0] * self.tile, self._space)


def _visits(rows: Tensor, tile: int, rank: int, world: int) -> Iterator[tuple[Block, Block, list[tuple[int, int]]]]:
    """A rank's tiles, by the two blocks that they lie in. At most two blocks are held, in one memory."""
    across = max(BLOCK[rows.device.type] // tile, 1)  # tiles of a block
    held, spare = dict[int, tuple[Tensor, Block]](), list[Tensor]()  # of a block its memory and its rows
    shared = tiles_of(-(-len(rows) // tile), across, rank, world)
    for ends, tiles in groupby(shared, key=lambda pair: (pair[0] // across, pair[1] // across)):
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
    """Rows [n, D] made 1 long (or 0), a tile at a time: a row becomes the same to the bit wherever it is done.

    They come to stand at the beginning of ``space``, float32 [n or more, D]; that part of it is returned.
    """
    for start in range(0, len(rows), tile):
        some = _scaled(rows[start : start + tile])
        part = space[start : start + len(some)].copy_(some)  # their order in memory matters
        part /= _largest(part)[:, None].clamp_min_(torch.finfo(part.dtype).tiny)
        part /= vector_norm(part, dim=1, keepdim=True).clamp_min_(1e-12)  # 1 or more, or 0: no square over- or underflowed
    return space[: len(rows)]


def _scaled(rows: Tensor) -> Tensor:
    """Float64 rows, each divided by its largest value, since they may lie beyond float32's range; others as they are."""
    if rows.dtype != torch.float64:
        return rows
    return rows / _largest(rows)[:, None].clamp_min(torch.finfo(rows.dtype).tiny)


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each row, or NaN where there is one; two passes, which is the fastest on a CPU."""
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))


def _check_finite(rows: Tensor, tile: int, count: int, first: int, group: dist.ProcessGroup | None) -> None:
    """Raise InputError for rows that are not finite; they are those of ``count`` from ``first`` on.

    All ranks of a group raise what one of them finds.
    """
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


def _merged(best: Nearest, group: dist.ProcessGroup | None) -> Nearest:
    """The result of all ranks together: the maximum over them."""
    merged = packed(best)
    if group is not None:
        dist.all_reduce(merged, dist.ReduceOp.MAX, group=group)
    return unpacked(merged)


def _rows_of(count: int, tile: int, rank: int, world: int) -> tuple[int, int]:
    """The rows of a rank's tiles."""
    first, end = slice_of(-(-count // tile), rank, world)
    return min(first * tile, count), min(end * tile, count)


def _to_tiles(w: Tensor, count: int, tile: int, group: dist.ProcessGroup) -> Tensor:
    """The rows of this rank's tiles, from the ranks that own them."""
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
    """Begin to send the guest's rows on around the ring and to receive the next one's; what comes, and what to wait for."""
    rank, world = _place(group)
    first, end = _rows_of(count, tile, (rank + step + 1) % world, world)
    coming = guest.rows.new_empty(end - first, guest.rows.shape[1])
    moves = [(dist.isend, guest.rows, (rank - 1) % world), (dist.irecv, coming, (rank + 1) % world)]
    peers = [dist.P2POp(move, block, group=group, group_peer=peer) for move, block, peer in moves if len(block)]
    return Block(first, coming), dist.batch_isend_irecv(peers) if peers else []
