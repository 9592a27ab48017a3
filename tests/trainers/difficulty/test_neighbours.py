"""The k nearest neighbours against the whole matrix, sorted: on any tiles, in any precision, on any number of ranks."""

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

from datasets.errors import InputError
from trainers.difficulty import vector
from trainers.difficulty.best import Best, Neighbours
from trainers.difficulty.pruning import WAITING, Precision, cosines
from trainers.difficulty.tiles import space_for
from trainers.difficulty.vector import MOST, difficulty, neighbours, neighbours_of_slice, slice_of

# Without VNNI sums of 8-bit products may saturate, so int8 is not chosen there.
APPROXIMATE: tuple[Precision, ...] = ("int8", "bfloat16") if torch.cpu._is_vnni_supported() else ("bfloat16",)
precisions = st.sampled_from(["float32", *APPROXIMATE])
tiles = st.sampled_from([1, 2, 3, 7, 16, 64, 1024])


def sorted_matrix(matrix: Tensor, k: int) -> Neighbours:
    """The k largest of each row of a matrix [N, N] but for its diagonal; of equal ones, those with the smallest numbers."""
    found = (matrix + 0.0).fill_diagonal_(-math.inf).sort(dim=1, descending=True, stable=True)
    return Neighbours(found.values[:, :k], found.indices[:, :k])


def brute_force(rows: Tensor, k: int, tile: int, precision: Precision) -> Neighbours:
    """From all float32 cosines above the diagonal, by products of tiles, or pair by pair as after approximate products."""
    w, count = vector._unit(rows, tile, torch.empty(rows.shape)), len(rows)
    matrix, space = torch.zeros(count, count), space_for(tile, 1, w.device)
    if precision == "float32":
        for a in range(0, count, tile):
            for b in range(a, count, tile):
                left, right = w[a : a + tile], w[b : b + tile]
                matrix[a : a + tile, b : b + tile] = torch.mm(left, right.T, out=space[: len(left), : len(right)])
    else:
        i, j = torch.triu_indices(count, count, 1)
        matrix[i, j] = cosines(w, w, i, j)
    matrix = matrix.clamp(max=1).triu(1)
    return sorted_matrix(matrix + matrix.T, k)


def same_bits(one: Neighbours, other: Neighbours) -> bool:
    return torch.equal(one.cosine.view(torch.int32), other.cosine.view(torch.int32)) and torch.equal(one.numbers, other.numbers)


def check(found: Neighbours, rows: Tensor, k: int) -> None:
    """Right within rounding, by float64; of several that are equal within rounding any may come first."""
    w = normalize(rows.double(), dim=1)
    assert found.cosine.dtype == torch.float32
    assert found.numbers.dtype == torch.int64
    assert found.cosine.shape == found.numbers.shape == (len(rows), k)
    torch.testing.assert_close(found.cosine.double(), sorted_matrix(w @ w.T, k).cosine, atol=1e-6, rtol=0)
    torch.testing.assert_close((w[:, None] * w[found.numbers]).sum(2), found.cosine.double(), atol=1e-6, rtol=0)
    assert (found.numbers != torch.arange(len(rows))[:, None]).all()
    assert all(len(set(row)) == k for row in found.numbers.tolist())


def test_golden() -> None:
    """Four rows, by hand: two of them equal, one opposite."""
    rows = torch.tensor([[1.0, 0.0], [3.0, 4.0], [2.0, 0.0], [-1.0, 0.0]])
    cosine, numbers = neighbours(rows, 3)
    torch.testing.assert_close(cosine, torch.tensor([[1, 0.6, -1], [0.6, 0.6, -0.6], [1, 0.6, -1], [-0.6, -1, -1]]))
    assert numbers.tolist() == [[2, 1, 3], [0, 2, 3], [0, 1, 3], [1, 0, 2]]


@given(st.integers(2, 60), st.integers(2, 40), st.integers(1, MOST), tiles, st.integers(0, 1000), precisions)
def test_brute_force_to_the_bit(count: int, features: int, k: int, tile: int, seed: int, precision: Precision) -> None:
    rows, k = torch.randn(count, features, generator=torch.Generator().manual_seed(seed)), min(k, count - 1)
    found = neighbours(rows, k, tile=tile, precision=precision)
    assert same_bits(found, brute_force(rows, k, tile, precision))
    check(found, rows, k)


@given(
    st.integers(2, 60), st.integers(2, 40), st.integers(1, MOST), tiles, st.integers(0, 1000),
    st.sampled_from([1.0, 1e-2, 1e-4, 0.0]), precisions,
)  # fmt: skip
def test_far_apart_close_together_and_equal(
    count: int, features: int, k: int, tile: int, seed: int, spread: float, precision: Precision
) -> None:
    random, k = torch.Generator().manual_seed(seed), min(k, count - 1)
    rows = torch.randn(1, features, generator=random) + spread * torch.randn(count, features, generator=random)
    found = neighbours(rows, k, tile=tile, precision=precision)
    assert same_bits(found, brute_force(rows, k, tile, precision))


axes = st.tuples(st.integers(0, 3), st.sampled_from([-2.0, 0.0, 0.5, 1.0]))  # on an axis cosines are -1, 0 and 1 without rounding


@given(st.lists(axes, min_size=2, max_size=40), st.integers(1, MOST), tiles, precisions)
def test_ties_zeros_and_duplicates_exactly(rows: list[tuple[int, float]], k: int, tile: int, precision: Precision) -> None:
    matrix, k = torch.zeros(len(rows), 4), min(k, len(rows) - 1)
    for row, (axis, length) in zip(matrix, rows, strict=True):
        row[axis] = length
    w = normalize(matrix, dim=1)
    found = neighbours(matrix, k, tile=tile, precision=precision)
    assert same_bits(found, sorted_matrix(w @ w.T, k))


def clustered(count: int, features: int) -> Tensor:
    """Random rows, and for each tenth of them a near-duplicate of another."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(count, features, generator=random)
    copies = torch.randint(0, count, (count // 10,), generator=random)
    rows[: len(copies)] = rows[copies] + 0.1 * torch.randn(len(copies), features, generator=random)
    return rows


@pytest.mark.parametrize("precision", ["float32", *APPROXIMATE])
@pytest.mark.parametrize("k", [1, 2, 8, 32])
def test_many_rows(k: int, precision: Precision) -> None:
    rows = clustered(2500, 64)
    found = neighbours(rows, k, tile=256, precision=precision)
    check(found, rows, k)
    assert (found.numbers == brute_force(rows, k, 256, "float32").numbers).float().mean() > 0.999


@pytest.mark.parametrize("precision", APPROXIMATE)
def test_strips_that_leave_too_many_pairs_open(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such strips are computed in float32, so rounding is that of either way."""
    monkeypatch.setattr("trainers.difficulty.pruning.CANDIDATES", 1)
    rows = clustered(600, 64)
    check(neighbours(rows, 8, tile=64, precision=precision), rows, 8)


@pytest.mark.parametrize("waiting", [0, 1000])
def test_pairs_that_are_computed_during_a_visit(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAITING, "cpu", waiting)
    rows = clustered(600, 64)
    assert same_bits(neighbours(rows, 8, tile=64, precision="bfloat16"), brute_force(rows, 8, 64, "bfloat16"))


@pytest.mark.parametrize("count", [9, 700])
@pytest.mark.parametrize("precision", ["float32", *APPROXIMATE])
def test_one_neighbour_is_the_difficulty(count: int, precision: Precision) -> None:
    rows = clustered(count, 16)
    found, one, more = (
        difficulty(rows, tile=64, precision=precision),
        *(neighbours(rows, k, tile=64, precision=precision) for k in (1, 8)),
    )
    assert torch.equal(one.cosine[:, 0], found.cosine)
    assert torch.equal(one.numbers[:, 0], found.nearest)
    assert torch.equal(more.cosine[:, 0], found.cosine)


@pytest.mark.parametrize(("count", "k"), [(9, 0), (9, 9), (9, -1), (100, 33)])
def test_k_out_of_range(count: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} neighbours of {count} identities: must be from 1 to {min(32, count - 1)}"):
        neighbours(torch.ones(count, 4), k)
    with pytest.raises(ValueError, match="must be from 1 to"):
        neighbours_of_slice(torch.ones(count, 4), count, k)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two(count: int) -> None:
    with pytest.raises(ValueError, match="needs another one"):
        neighbours(torch.ones(count, 4), 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite(value: float) -> None:
    rows = torch.ones(9, 4)
    rows[3, 1] = value
    with pytest.raises(InputError, match=r"first: \[3\] of 1"):
        neighbours(rows, 2)
    with pytest.raises(InputError, match=r"first: \[3\] of 1"):
        neighbours_of_slice(rows, 9, 2)


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 1000), st.integers(1, 7))
def test_the_order_of_insertion_does_not_matter(count: int, k: int, seed: int, part: int) -> None:
    """Few different cosines, in batches of pairs, against a sort; the floor never exceeds the k-th."""
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randint(-2, 3, (count, 20), generator=random) / 2
    best, k = Best(count, k, matrix.device), min(k, 20)
    order = torch.randperm(count * 20, generator=random)
    for places in order.split(part):
        place, number = places // 20, places % 20
        best.insert(0, count, place, matrix[place, number], number)
    expected = (matrix + 0.0).sort(dim=1, descending=True, stable=True)
    found = best.merged(None)
    assert torch.equal(found.cosine, expected.values[:, :k])
    assert torch.equal(found.numbers, expected.indices[:, :k])
    assert torch.equal(best.floor, found.cosine[:, -1])


Case = tuple[Tensor, int, int, Precision]


def cases() -> list[Case]:
    """Rows, k, tile sizes, precision: a remainder; ties; zeros; negative cosines; fewer tiles than ranks."""
    random = torch.Generator().manual_seed(3)
    ties = torch.eye(6).repeat(5, 1)
    rows = [
        (torch.randn(301, 48, generator=random), 8, 64),
        (torch.randn(37, 3, generator=random).bfloat16(), 32, 5),
        (torch.cat([ties, -ties, torch.zeros(4, 6)]), 12, 4),
        (torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-2.0, 0.5]]), 2, 1024),
        (torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), 1, 1),
    ]
    return [(some, k, tile, precision) for precision in ("float32", *APPROXIMATE) for some, k, tile in rows]


def both_ways(group: dist.ProcessGroup) -> list[Neighbours]:
    """All cases with the rows on every rank, and with a slice of them on each."""
    found = [neighbours(rows, k, tile=tile, group=group, precision=precision) for rows, k, tile, precision in cases()]
    for rows, k, tile, precision in cases():
        first, end = slice_of(len(rows), dist.get_rank(group), dist.get_world_size(group))
        part = rows[first:end].clone()
        found.append(neighbours_of_slice(part, len(rows), k, tile=tile, group=group, precision=precision))
    return found


def on_rank(rank: int) -> list[Any]:
    """All cases on three ranks, then on two of them; in blocks of few rows, which the parent's are not."""
    vector.BLOCK["cpu"] = 128
    pair = dist.new_group([0, 2])
    found = both_ways(dist.group.WORLD)
    found += both_ways(pair) if rank != 1 else []
    return [tuple(d) for d in found]


def test_brute_force_to_the_bit_on_two_and_three_ranks() -> None:
    expected = [brute_force(*case) for case in cases()]
    for results in on_ranks(3, on_rank):
        assert len(results) % len(expected) == 0
        for place, result in enumerate(results):
            assert same_bits(Neighbours(*result), expected[place % len(expected)]), place
