"""The difficulty vector against the plain formula, on any tiles and any number of ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.errors import InputError
from trainers.difficulty import vector
from trainers.difficulty.best import Nearest
from trainers.difficulty.pruning import SCALES, Pairs, Precision, Search, step_for
from trainers.difficulty.tiles import Block, strips
from trainers.difficulty.vector import difficulty, neighbours_of_slice, ring_tiles, slice_of, tiles_of

tiles = st.sampled_from([1, 2, 3, 7, 64, 1024])


def plainly(rows: Tensor) -> tuple[Tensor, Tensor]:
    """c_i = max over n != i of cos(i, n), and the smallest n that has it; with the whole matrix, in float64."""
    w = normalize(rows.double(), dim=1)
    cosines = w @ w.T
    cosines.fill_diagonal_(-math.inf)
    best = cosines.max(dim=1).values
    return best, torch.argmax((cosines == best[:, None]).int(), dim=1)


def check(found: Nearest, rows: Tensor) -> None:
    """Right within rounding; of several that are equal within rounding any may be the nearest."""
    w = normalize(rows.double(), dim=1)
    assert found.cosine.dtype == torch.float32
    assert found.nearest.dtype == torch.int64
    torch.testing.assert_close(found.cosine.double(), plainly(rows)[0], atol=1e-6, rtol=0)
    assert (found.nearest != torch.arange(len(rows))).all()
    torch.testing.assert_close((w * w[found.nearest]).sum(1), found.cosine.double(), atol=1e-6, rtol=0)
    assert found.cosine.abs().max() <= 1


def same_bits(one: Nearest, other: Nearest) -> bool:
    return torch.equal(one.cosine.view(torch.int32), other.cosine.view(torch.int32)) and torch.equal(one.nearest, other.nearest)


def test_golden() -> None:
    """Three rows, by hand."""
    found = difficulty(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.4, 1.96]]))
    torch.testing.assert_close(found.cosine, torch.tensor([0.2, 0.98, 0.98]), atol=1e-3, rtol=0)
    assert found.nearest.tolist() == [2, 2, 1]


@given(
    st.integers(2, 40),
    st.integers(1, 9),
    tiles,
    st.integers(0, 1000),
    st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
)
def test_against_the_formula(count: int, features: int, tile: int, seed: int, kind: str) -> None:
    rows = torch.randn(count, features, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, kind))
    before = rows.clone()
    check(difficulty(rows, tile=tile), rows)
    assert torch.equal(rows, before)


# Without VNNI sums of 8-bit products may saturate, so int8 is not chosen there.
APPROXIMATE: tuple[Precision, ...] = ("int8", "bfloat16") if torch.cpu._is_vnni_supported() else ("bfloat16",)


@given(
    st.integers(2, 60), st.integers(2, 40), tiles, st.integers(0, 1000), st.sampled_from([1.0, 1e-2, 1e-4, 0.0]),
    st.sampled_from(APPROXIMATE),
)  # fmt: skip
def test_approximate_products_leave_it_exact(
    count: int, features: int, tile: int, seed: int, spread: float, precision: Precision
) -> None:
    """Far apart, close together (pairs abound), nearly equal, and equal."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, features, generator=random) + spread * torch.randn(count, features, generator=random)
    check(difficulty(rows, tile=tile, precision=precision), rows)


@pytest.mark.parametrize("precision", APPROXIMATE)
@pytest.mark.parametrize("heavy", [False, True])
def test_approximate_products_of_many_rows(precision: Precision, heavy: bool) -> None:
    """Also where some features are so large that 8 bits cannot represent the others beside them."""
    rows = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    if heavy:
        rows[::7, :3] *= 30
    found, expected = difficulty(rows, tile=256, precision=precision), difficulty(rows, precision="float32")
    torch.testing.assert_close(found.cosine, expected.cosine, atol=1e-6, rtol=0)
    assert (found.nearest == expected.nearest).float().mean() > 0.999  # else within rounding, as `check` knows
    check(found, rows)


@pytest.mark.parametrize("precision", APPROXIMATE)
def test_approximate_products_leave_few_pairs_open(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result alone would not show it."""
    rows, counts, settle = torch.randn(3000, 256, generator=torch.Generator().manual_seed(0)), list[int](), Search._settle

    def counted(search: Search, left: Block, right: Block, found: list[Pairs]) -> None:
        counts.append(sum(len(some.left) for some in found))
        settle(search, left, right, found)

    monkeypatch.setattr(Search, "_settle", counted)
    monkeypatch.setattr("trainers.difficulty.pruning.take_strip", None)  # is not needed
    difficulty(rows, precision=precision)
    assert len(rows) <= sum(counts) < {"int8": 25, "bfloat16": 6}[precision] * len(rows)


def test_the_residuals_bound_the_error_and_the_step_is_the_best_of_its_kind() -> None:
    rows = normalize(torch.randn(200, 96, generator=torch.Generator().manual_seed(0)), dim=1)
    rows[3] = 0
    rows[4] = torch.eye(96)[0]
    steps = [scale / 127 / math.sqrt(96) for scale in SCALES]

    def residuals(step: float) -> Tensor:
        return rows - step * (rows / step).round().clamp(-127, 127)

    step = step_for(rows)
    assert step in steps
    assert residuals(step).norm(dim=1).median() < 1.5 * min(residuals(s).norm(dim=1).median() for s in steps)
    error = residuals(step).norm(dim=1)
    rounded = rows - residuals(step)
    assert ((rows @ rows.T - rounded @ rounded.T).abs() <= error[:, None] + (1 + error[:, None]) * error + 1e-6).all()


axes = st.tuples(st.integers(0, 3), st.sampled_from([-2.0, 0.0, 0.5, 1.0]))  # on an axis cosines are -1, 0 and 1 without rounding


@given(st.lists(axes, min_size=2, max_size=30), tiles)
def test_ties_zeros_and_duplicates_exactly(rows: list[tuple[int, float]], tile: int) -> None:
    matrix = torch.zeros(len(rows), 4)
    for row, (axis, length) in zip(matrix, rows, strict=True):
        row[axis] = length
    found = difficulty(matrix, tile=tile)
    cosine, nearest = plainly(matrix)
    assert torch.equal(found.cosine.double(), cosine)
    assert torch.equal(found.nearest, nearest)
    assert not torch.signbit(found.cosine)[found.cosine == 0].any()


@pytest.mark.parametrize("tile", [1, 1024])
def test_two_identities(tile: int) -> None:
    found = difficulty(torch.tensor([[3.0, 4.0], [-4.0, -3.0]]), tile=tile)
    torch.testing.assert_close(found.cosine, torch.tensor([-0.96, -0.96]))
    assert found.nearest.tolist() == [1, 0]


def test_a_row_of_zeros_has_cosine_0() -> None:
    found = difficulty(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    assert found.cosine.tolist() == [0, 0, 0]
    assert found.nearest.tolist() == [1, 0, 0]


def test_equal_rows_have_cosine_1_and_no_more() -> None:
    rows = torch.randn(100, 33, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    found = difficulty(rows, tile=64)
    check(found, rows)
    assert found.cosine.min() > 1 - 1e-6


@pytest.mark.parametrize("length", [1e-37, 1e-30, 1e-12, 1e12, 1e30, 1e37])
def test_length_does_not_matter(length: float) -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    lengths = torch.ones(20, 1)
    lengths[::2] = length
    torch.testing.assert_close(difficulty(rows * lengths).cosine, difficulty(rows).cosine, atol=2e-6, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@given(st.lists(st.integers(-900, 900), min_size=2, max_size=30), st.integers(0, 1000))
def test_length_does_not_matter_beyond_float32s_range(precision: Precision, powers: list[int], seed: int) -> None:
    """Float64 rows times powers of two, which change no digit, have the difficulty of the rows to the bit."""
    rows = torch.randn(len(powers), 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[seed % len(rows)] *= seed % 3 > 0
    lengths = torch.tensor([[2.0**power] for power in powers], dtype=torch.float64)
    expected, found = difficulty(rows, tile=8, precision=precision), difficulty(rows * lengths, tile=8, precision=precision)
    assert same_bits(found, expected)
    check(found, rows)
    with pytest.raises(InputError, match="not finite"):
        difficulty(torch.where(rows == rows.max(), math.inf, rows))


@pytest.mark.parametrize("tile", [1, 5, 9, 10, 11, 20, 21])
def test_tile_sizes(tile: int) -> None:
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    check(difficulty(rows, tile=tile), rows)


def test_the_hardest_is_a_pair() -> None:
    rows = torch.randn(333, 40, generator=torch.Generator().manual_seed(1))
    cosine, nearest = difficulty(rows, tile=50)
    assert (cosine[nearest] >= cosine).all()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two(count: int) -> None:
    with pytest.raises(ValueError, match="needs another one"):
        difficulty(torch.ones(count, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite(value: float) -> None:
    rows = torch.ones(9, 4)
    rows[3, 1] = rows[7, 0] = value
    with pytest.raises(InputError, match=r"first: \[3, 7\] of 2"):
        difficulty(rows)


def test_no_gradient_is_kept() -> None:
    rows = torch.randn(5, 3, requires_grad=True)
    assert not difficulty(rows).cosine.requires_grad


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_neither_the_matrix_nor_the_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    count, features, tile, block = 500, 60, 32, 256
    rows = torch.randn(count, features, generator=torch.Generator().manual_seed(5))
    whole = difficulty(rows, tile=tile)
    monkeypatch.setitem(vector.BLOCK, "cpu", block)
    with Largest() as seen:
        assert same_bits(difficulty(rows, tile=tile), whole)
    assert seen.elements == block * features < count * features


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("side", [0, 1, 2, 5, 12, 31])
@pytest.mark.parametrize("across", [1, 3, 16])
def test_tiles_cover_half_the_matrix_once(side: int, across: int, world: int) -> None:
    expected = [(a, b) for a in range(side) for b in range(a, side)]
    slices = [list(tiles_of(side, across, rank, world)) for rank in range(world)]
    assert sorted(tile for part in slices for tile in part) == expected
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    rings = [ring_tiles(side, rank, world) for rank in range(world)]
    assert sorted(tile for ring in rings for step in ring for tile in step) == expected


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 4))
def test_strips_are_the_same_tiles_in_the_same_order(side: int, across: int, world: int, most: int, rank: int) -> None:
    rank %= world
    steps = [[(a, b) for step in ring_tiles(side, rank, world) for a, b in step], list(tiles_of(side, across, rank, world))]
    for tiles in steps:
        found = list(strips(tiles, most))
        assert [(a, b) for a, columns in found for b in columns] == tiles
        assert all(len(columns) <= most for _, columns in found)


@pytest.mark.parametrize("world", [2, 3, 4, 5, 8])
def test_slices_of_the_tiles_are_even(world: int) -> None:
    side = 40 * world + 1  # the ring's slices are as even as whole tiles a rank can be
    for part in (
        (list(tiles_of(side, 16, rank, world)) for rank in range(world)),
        ([tile for step in ring_tiles(side, rank, world) for tile in step] for rank in range(world)),
    ):
        sizes = [len(tiles) for tiles in part]
        assert max(sizes) <= 1.05 * sum(sizes) / world


@given(st.integers(0, 1000), st.integers(1, 16))
def test_slices_are_runs_that_differ_by_one(count: int, world: int) -> None:
    slices = [slice_of(count, rank, world) for rank in range(world)]
    assert [first for first, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert slices[-1][1] == count
    assert max(end - first for first, end in slices) - min(end - first for first, end in slices) <= 1


def cases() -> list[tuple[Tensor, int, Precision]]:
    """Rows, tile sizes, precision: a remainder; ties; zeros; negative cosines; fewer tiles than ranks."""
    random = torch.Generator().manual_seed(3)
    ties = torch.eye(6).repeat(5, 1)
    rows = [
        (torch.randn(301, 48, generator=random), 64),
        (torch.randn(37, 3, generator=random).bfloat16(), 5),
        (torch.cat([ties, -ties, torch.zeros(4, 6)]), 4),
        (torch.tensor([[1.0, 0.0], [-1.0, 0.1]]), 1024),
        (torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), 1),
    ]
    return [(some, tile, precision) for precision in ("float32", *APPROXIMATE) for some, tile in rows]


def of_slice(rows: torch.Tensor, count: int, **how: Any) -> Nearest:
    cosine, numbers = neighbours_of_slice(rows, count, 1, **how)
    return Nearest(cosine[:, 0], numbers[:, 0])


def both_ways(group: dist.ProcessGroup) -> list[Nearest]:
    """All cases with the rows on every rank, and with a slice of them on each."""
    found = [difficulty(rows, tile=tile, group=group, precision=precision) for rows, tile, precision in cases()]
    for rows, tile, precision in cases():
        first, end = slice_of(len(rows), dist.get_rank(group), dist.get_world_size(group))
        found.append(of_slice(rows[first:end].clone(), len(rows), tile=tile, group=group, precision=precision))
    return found


def on_rank(rank: int) -> list[Any]:
    """All cases on three ranks, then on two of them, then on one; in blocks of few rows, which the parent's are not."""
    vector.BLOCK["cpu"] = 128
    pair = dist.new_group([0, 2])
    found = both_ways(dist.group.WORLD)
    found += both_ways(pair) if rank != 1 else []
    found += [difficulty(rows, tile=tile, precision=precision) for rows, tile, precision in cases()]
    return [tuple(d) for d in found]


def test_the_same_to_the_bit_on_any_number_of_ranks() -> None:
    alone = [difficulty(rows, tile=tile, precision=precision) for rows, tile, precision in cases()]
    for results in on_ranks(3, on_rank):
        assert len(results) % len(alone) == 0
        for place, result in enumerate(results):
            assert same_bits(Nearest(*result), alone[place % len(alone)]), place


def test_a_slice_of_all_rows_is_all_rows() -> None:
    for rows, tile, precision in cases():
        assert same_bits(
            of_slice(rows, len(rows), tile=tile, precision=precision), difficulty(rows, tile=tile, precision=precision)
        )


def test_the_order_of_the_rows_in_memory_does_not_matter() -> None:
    rows = torch.randn(100, 37, generator=torch.Generator().manual_seed(4))
    assert same_bits(difficulty(rows.T.contiguous().T), difficulty(rows))


def a_slice_that_is_not_finite(rank: int) -> str:
    rows = torch.ones(3, 2)
    rows[1, 0] = math.nan if rank == 1 else 1.0
    try:
        of_slice(rows, 6, group=dist.group.WORLD)
    except InputError as error:
        return str(error)
    return ""


def test_every_rank_learns_that_a_slice_is_not_finite() -> None:
    for said in on_ranks(2, a_slice_that_is_not_finite):
        assert "first: [4] of 1" in said
