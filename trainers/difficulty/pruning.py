"""Finds each identity's nearest neighbour with approximate products; exact cosines are computed only where they can matter.

A row of length 1 is w = s q + r. On a CPU q is int8, whose products are exact and, with VNNI, take a quarter of the time of
float32; on a GPU q is bfloat16 and s = 1. With e = |r|, the length of the residual, Cauchy-Schwarz bounds every cosine:

    |w_i w_j - s^2 q_i q_j| <= e_i + (1 + e_i) e_j

Only pairs that by this bound could still be the largest cosine of one of their identities are recomputed in float32. The bound is
computed from the residuals of the rows, so it holds for any rows. N identities, D features, T rows a tile, W tiles a strip.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from trainers.difficulty.tiles import Block, Nearest, Space, raise_by_pairs, space_for, strips, take_strip
from trainers.torch_compat import has_int8_products, int8_product

MIN_IDENTITIES = 4096  # identities from which int8 is faster than float32
ACROSS, DOWN = 32, 16  # products of a row, and of a column, that are reduced to their maximum first
SCALES = (3.0, 3.6, 4.2, 5.0, 6.0, 9.0, 14.0)  # candidates for the range of int8, in standard deviations of a row
CANDIDATES = 16  # pairs per row and column of a strip up to which single cosines are faster than the strip
WAITING = {"cpu": 1 << 17, "cuda": 1 << 22}  # pairs that are collected, while the floor rises, before they are computed
PAIRS = {"cpu": 1 << 7, "cuda": 1 << 16}  # pairs that are computed at once; on a CPU they fit its L2 cache
NONE = {torch.int32: -(2**31), torch.float32: -math.inf}  # product of a pair that does not exist

Precision = Literal["float32", "int8", "bfloat16"]


class Approximate(NamedTuple):
    """A block's approximate rows ``numbers`` [n, D], and ``error`` [n], the length of each row's residual."""

    numbers: Tensor
    error: Tensor


class Pairs(NamedTuple):
    """P pairs whose cosine could be the largest of one of their identities: rows in either block, approximate cosine [P]."""

    left: Tensor
    right: Tensor
    cosine: Tensor


def fastest(count: int, features: int, device: torch.device) -> Precision:
    """The precision of the products that is fastest here; int8 or bfloat16 ones are approximate."""
    if device.type == "cuda":
        return "bfloat16"
    return "int8" if count >= MIN_IDENTITIES and features > 1 and has_int8_products() else "float32"


class Search:
    """Updates ``best`` with the cosines of the blocks that it visits.

    On a CPU the result does not depend on the order of the visits, with one exception: where so many pairs are within the bound
    that a whole strip is computed in float32, its cosines may be rounded differently from those of single pairs. That can change
    the last bit, or which of two equal ones is the nearest.
    """

    def __init__(self, best: Nearest, tile: int, tiles: int, precision: Precision) -> None:
        self.best, self.tile, self.tiles, self.precision = best, tile, tiles, precision
        self.floor = best.cosine.clone()  # lower bound of each identity's largest cosine
        self.across, self.down = math.gcd(ACROSS, tile), math.gcd(DOWN, tile)
        self.step = 0.0  # s; chosen from the first rows
        self._blocks: dict[int, Approximate] = {}

    def visit(self, left: Block, right: Block, pairs: Sequence[tuple[int, int]]) -> None:
        """Search the tiles ``pairs`` (a, b) between two blocks, or within one."""
        if not pairs:
            return
        self._blocks = {block.first: self._blocks.get(block.first) or self._approximated(block.rows) for block in (left, right)}
        found = list[Pairs]()
        for a, columns in strips(pairs, self.tiles):
            found += self._look(left, right, a * self.tile, columns[0] * self.tile, len(columns))
            if sum(len(some.left) for some in found) > WAITING[left.rows.device.type]:
                self._settle(left, right, found)
                found.clear()
        self._settle(left, right, found)

    def _approximated(self, rows: Tensor) -> Approximate:
        """Approximate rows [n, D] of length 1, a tile at a time, so that they stay in the caches."""
        if self.precision == "bfloat16":
            self.step = 1.0
            numbers = rows.bfloat16()
            return Approximate(numbers, vector_norm(rows - numbers, dim=1))
        self.step = self.step or step_for(rows[: self.tile])
        numbers, error = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
        for start in range(0, len(rows), self.tile):
            part = rows[start : start + self.tile]
            whole = (part / self.step).round_().clamp_(-127, 127)
            numbers[start : start + self.tile] = whole
            error[start : start + self.tile] = vector_norm(part - whole.mul_(self.step), dim=1)
        return Approximate(numbers, error)

    def _look(self, left: Block, right: Block, row: int, col: int, tiles: int) -> Sequence[Pairs]:
        """The pairs of a strip that could be the largest of their row, and those that could be the largest of their column.

        If there are too many, the strip is computed in float32 at once, and none is returned.
        """
        here = slice(row - left.first, min(row - left.first + self.tile, len(left.rows)))
        there = slice(col - right.first, min(col - right.first + tiles * self.tile, len(right.rows)))
        mine, others = (
            Approximate(c.numbers[s], c.error[s])
            for c, s in ((self._blocks[left.first], here), (self._blocks[right.first], there))
        )
        n, count = len(mine.error), len(others.error)
        products = self._products(mine.numbers, others.numbers)
        if left.first == right.first and col <= row < col + count:
            products[:n, row - col : row - col + n].fill_diagonal_(NONE[products.dtype])  # an identity is not its own neighbour
        groups, most = products.view(self.tile, -1, self.across), CANDIDATES * (n + count)
        error = mine.error[:, None] + (1 + mine.error[:, None]) * _most(others.error, self.across)
        tops = groups.amax(dim=2)[:n, : error.shape[1]]
        rows = self._close(tops, error, self.floor[row : row + n], 1, most, lambda i, g: _members(groups, i, g))
        stacks = products.view(-1, self.down, products.shape[1])
        error = others.error + (1 + others.error) * _most(mine.error, self.down)[:, None]
        tops = stacks.amax(dim=1)[: len(error), :count]
        columns = self._close(tops, error, self.floor[col : col + count], 0, most, lambda g, j: stacks[g, :, j])
        if rows is None or columns is None or len(rows[0]) + len(columns[0]) > most:
            take_strip(self.best, left.rows[here], torch.split(right.rows[there], self.tile), row, col, self._space)
            self._raise_floor(row, n)
            self._raise_floor(col, count)
            return []
        i, group, within, cosine = rows
        by_row = Pairs(here.start + i, there.start + group * self.across + within, cosine)
        group, j, within, cosine = columns
        return [by_row, Pairs(here.start + group * self.down + within, there.start + j, cosine)]

    def _products(self, mine: Tensor, others: Tensor) -> Tensor:
        """q_i q_j of a strip [T, W T], `NONE` where the strip has fewer rows or columns."""
        whole = (len(mine), len(others)) == (self.tile, self.tiles * self.tile)
        if self.precision == "bfloat16":  # float32 output, which torch supports on GPUs only
            product = torch.mm(mine, others.T, out_dtype=torch.float32) if mine.is_cuda else mine.float() @ others.float().T
        else:
            product = int8_product(mine, others.T, self._space_of_products if whole else None)
        if whole:
            return product
        self._space_of_products.fill_(NONE[product.dtype])[: len(mine), : len(others)] = product
        return self._space_of_products

    def _close(
        self, tops: Tensor, error: Tensor, floor: Tensor, side: int, most: int, members: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Raise the floor of a strip's rows (``side`` 1) or columns (0), and find the pairs that could be above it.

        ``tops``: the largest product of each group; ``members``: the products of groups. Returns of each pair the two indices of
        its group in ``tops``, its place in the group and its approximate cosine; None if there are more than ``most`` groups.
        """
        unit, error = self.step**2, error + self._slack
        cosine = tops * unit
        torch.maximum(floor, (cosine - error).amax(dim=side).clamp_(max=1), out=floor)
        first, second = _true(cosine.add_(error) >= (floor[:, None] if side else floor))
        if len(first) > most:
            return None
        some, owner = members(first, second), first if side else second
        least = (floor[owner] - error[first, second]) / unit  # in units of the products, which are not converted
        place, within = _true(some >= (least if some.is_floating_point() else least.floor_().int())[:, None])
        return first[place], second[place], within, some[place, within] * unit

    def _settle(self, left: Block, right: Block, found: Sequence[Pairs]) -> None:
        """Compute pairs in float32. The closest pair of each row comes first: its cosine rules most of the others out."""
        if not found:
            return
        pairs = Pairs(*map(torch.cat, zip(*found, strict=True)))
        mine, others = self._blocks[left.first], self._blocks[right.first]
        error = mine.error[pairs.left] + (1 + mine.error[pairs.left]) * others.error[pairs.right] + self._slack
        closest = torch.zeros_like(pairs.left, dtype=torch.bool)
        for place, count in ((pairs.left, len(left.rows)), (pairs.right, len(right.rows))):
            top = pairs.cosine.new_full((count,), -math.inf).scatter_reduce_(0, place, pairs.cosine, "amax")
            closest |= pairs.cosine == top[place]
        for some in (closest, ~closest):
            high = pairs.cosine + error
            open_ = (high >= self.floor[left.first + pairs.left]) | (high >= self.floor[right.first + pairs.right])
            kept = torch.nonzero(some & open_).squeeze(1)
            i, j = pairs.left[kept], pairs.right[kept]
            cosine = torch.empty(len(i), device=i.device)
            for start in range(0, len(i), PAIRS[i.device.type]):
                part = slice(start, start + PAIRS[i.device.type])
                torch.sum(left.rows.index_select(0, i[part]).mul_(right.rows.index_select(0, j[part])), dim=1, out=cosine[part])
            cosine.clamp_(max=1)  # equal rows give 1.0000002
            raise_by_pairs(self.best, left.first, len(left.rows), i, cosine, right.first + j)
            raise_by_pairs(self.best, right.first, len(right.rows), j, cosine, left.first + i)
            self._raise_floor(left.first, len(left.rows))
            self._raise_floor(right.first, len(right.rows))

    def _raise_floor(self, first: int, count: int) -> None:
        part = self.floor[first : first + count]
        torch.maximum(part, self.best.cosine[first : first + count], out=part)

    @property
    def _slack(self) -> float:
        """More than the rounding error of a float32 sum of D products."""
        features = next(iter(self._blocks.values())).numbers.shape[1]
        return (features + 8) * 2.0**-21

    @cached_property
    def _space_of_products(self) -> Tensor:
        kind = torch.int32 if self.precision == "int8" else torch.float32
        return torch.empty(self.tile, self.tiles * self.tile, dtype=kind, device=self.best.cosine.device)

    @cached_property
    def _space(self) -> Space:
        return space_for(self.tile, self.tiles, self.best.cosine.device)


def step_for(rows: Tensor) -> float:
    """The step s of int8 that leaves the smallest residuals of a few rows [n, D] of length 1, among those of `SCALES`."""
    steps = [scale / 127 / math.sqrt(rows.shape[1]) for scale in SCALES]
    errors = [vector_norm(rows - (rows / s).round_().clamp_(-127, 127) * s, dim=1) for s in steps]
    return min(zip(steps, errors, strict=True), key=lambda pair: float(_most(pair[1], ACROSS).median()))[0]


def _true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each true element [n, m]. Few are true, and NumPy finds them ten times as fast as torch."""
    if mask.device.type != "cpu":
        row, column = torch.nonzero(mask, as_tuple=True)
        return row, column
    places = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return places // mask.shape[1], places % mask.shape[1]


def _members(groups: Tensor, i: Tensor, g: Tensor) -> Tensor:
    """groups[i, g], by index_select, which is faster than indexing."""
    return groups.flatten(0, 1).index_select(0, i * groups.shape[1] + g)


def _most(values: Tensor, together: int) -> Tensor:
    """The largest of each ``together`` consecutive values [n]; the last group may be smaller."""
    missing = values.new_zeros(-len(values) % together)
    return torch.cat([values, missing]).view(-1, together).amax(dim=1)
