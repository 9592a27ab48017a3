"""Finds each identity's k nearest neighbours with approximate products; exact cosines are computed only where they can matter.

A row of length 1 is w = s q + r. On a CPU q is int8, whose products are exact and, with VNNI, take a quarter of the time of
float32; on a GPU q is bfloat16 and s = 1. With e = |r|, the length of the residual, Cauchy-Schwarz bounds every cosine:

    |w_i w_j - s^2 q_i q_j| <= e_i + (1 + e_i) e_j

Only pairs that by this bound could still be among the k largest of one of their identities are recomputed in float32. The bound
is computed from the residuals of the rows, so it holds for any rows. N identities, D features, T rows a tile, W tiles a strip.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from trainers.difficulty.best import Best, places_of
from trainers.difficulty.tiles import ACROSS, NONE, Block, Near, group_of, keep_half, most, space_for, strips, take_strip
from trainers.torch_compat import has_int8_products, int8_product

MIN_IDENTITIES = 4096  # identities from which int8 is faster than float32
SCALES = (3.0, 3.6, 4.2, 5.0, 6.0, 9.0, 14.0)  # candidates for the range of int8, in standard deviations of a row
CANDIDATES = 24  # groups with near pairs, per row and column of a strip, up to which single cosines are faster than the strip
WAITING = {"cpu": 1 << 17, "cuda": 1 << 22}  # pairs that are collected, while the floor rises, before they are computed
PAIRS = 1 << 16  # pairs that a GPU computes at once

Precision = Literal["float32", "int8", "bfloat16"]


class Approximate(NamedTuple):
    """A block's approximate rows ``numbers`` [n, D], and ``error`` [n], the length of each row's residual."""

    numbers: Tensor
    error: Tensor


class Pairs(NamedTuple):
    """P pairs whose cosine could be among the k largest of one of their identities: rows in either block, bounds of it [P]."""

    left: Tensor
    right: Tensor
    low: Tensor
    high: Tensor

    def at(self, places: Tensor) -> "Pairs":
        """Some of them."""
        return Pairs(*(column.index_select(0, places) for column in self))


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

    def __init__(self, best: Best, tile: int, tiles: int, precision: Precision) -> None:
        self.best, self.tile, self.tiles, self.precision = best, tile, tiles, precision
        self.step = 0.0  # s; chosen from the first rows
        self._blocks: dict[int, Approximate] = {}

    def visit(self, left: Block, right: Block, pairs: Sequence[tuple[int, int]]) -> None:
        """Search the tiles ``pairs`` (a, b) between two blocks, or within one."""
        if not pairs:
            return
        self._blocks = {block.first: self._blocks.get(block.first) or self._approximated(block.rows) for block in (left, right)}
        found, waiting = list[Pairs](), 0
        for a, columns in strips(pairs, self.tiles):
            new = self._look(left, right, a * self.tile, columns[0] * self.tile, len(columns))
            found, waiting = [*found, *new], waiting + sum(len(some.left) for some in new)
            if waiting > WAITING[left.rows.device.type]:
                self._settle(left, right, found)
                found, waiting = [], 0
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
        """The pairs of a strip that could be among the k largest of their row, and those that could be of their column.

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
        keep_half(products, row - col)
        across, down = most(others.error, group_of(self.tile, 1)), most(mine.error, group_of(self.tile, 0))
        error = mine.error[:, None] + (1 + mine.error[:, None]) * across + self._slack
        rows = Near(products, 1, error, self.best.low[row : row + n], self.step**2)
        error = others.error + (1 + others.error) * down[:, None] + self._slack
        columns = Near(products, 0, error, self.best.low[col : col + count], self.step**2)
        if len(rows) + len(columns) > CANDIDATES * (n + count):
            take_strip(self.best, left.rows[here], torch.split(right.rows[there], self.tile), row, col, self._space, new=False)
            return []
        found = []
        for i, j, cosine in (rows.elements(), columns.elements()):
            one, other = mine.error.index_select(0, i), others.error.index_select(0, j)
            error = one + (1 + one) * other + self._slack
            found.append(Pairs(here.start + i, there.start + j, cosine - error, cosine + error))
        return found

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

    def _settle(self, left: Block, right: Block, found: Sequence[Pairs]) -> None:
        """Compute pairs in float32. Those that are above the floor for sure come first: they rule most of the others out."""
        if not found:
            return
        pairs = Pairs(*map(torch.cat, zip(*found, strict=True)))
        pairs = _distinct(pairs.at(places_of(pairs.high >= self._floor(left, right, pairs))))
        sure = pairs.low >= self._floor(left, right, pairs)
        for some in (pairs.at(places_of(sure)), pairs.at(places_of(~sure))):
            i, j, _, _ = some.at(places_of(some.high >= self._floor(left, right, some)))
            exact = cosines(left.rows, right.rows, i, j).clamp_(max=1)  # equal rows give 1.0000002
            self.best.insert(left.first, len(left.rows), i, exact, right.first + j)
            self.best.insert(right.first, len(right.rows), j, exact, left.first + i)

    def _floor(self, left: Block, right: Block, pairs: Pairs) -> Tensor:
        """The lower floor of the two identities of each pair."""
        one, other = (self.best.floor[block.first : block.first + len(block.rows)] for block in (left, right))
        return torch.minimum(one.index_select(0, pairs.left), other.index_select(0, pairs.right))

    @property
    def _slack(self) -> float:
        """More than the rounding error of a float32 sum of D products."""
        features = next(iter(self._blocks.values())).numbers.shape[1]
        return (features + 8) * 2.0**-21

    @cached_property
    def _space_of_products(self) -> Tensor:
        kind = torch.int32 if self.precision == "int8" else torch.float32
        return torch.empty(self.tile, self.tiles * self.tile, dtype=kind, device=self.best.floor.device)

    @cached_property
    def _space(self) -> Tensor:
        return space_for(self.tile, self.tiles, self.best.floor.device)


def cosines(left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Products of rows left[i] and right[j], [P]; i rises. A pair's does not depend on the others, nor on which is left."""
    if left.is_cuda:
        parts = zip(torch.split(i, PAIRS), torch.split(j, PAIRS), strict=True)
        return torch.cat([torch.sum(left.index_select(0, a).mul_(right.index_select(0, b)), dim=1) for a, b in parts])
    starts = torch.searchsorted(i, torch.arange(len(left) + 1))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # "Sparse CSR tensor support is in beta state"
        wanted = torch.sparse_csr_tensor(starts, j, torch.zeros(len(j)), (len(left), len(right)))
    found: Tensor = torch.sparse.sampled_addmm(wanted, left, right.T, beta=0).values()
    return found


def _distinct(pairs: Pairs) -> Pairs:
    """Each pair once, by rising left and then right row."""
    key, order = torch.sort((pairs.left << 32) | pairs.right)
    new = torch.ones_like(key, dtype=torch.bool)
    torch.ne(key[1:], key[:-1], out=new[1:])
    return pairs.at(order.index_select(0, places_of(new)))


def step_for(rows: Tensor) -> float:
    """The step s of int8 that leaves the smallest residuals of a few rows [n, D] of length 1, among those of `SCALES`."""
    steps = [scale / 127 / math.sqrt(rows.shape[1]) for scale in SCALES]
    errors = [vector_norm(rows - (rows / s).round_().clamp_(-127, 127) * s, dim=1) for s in steps]
    return min(zip(steps, errors, strict=True), key=lambda pair: float(most(pair[1], ACROSS).median()))[0]
