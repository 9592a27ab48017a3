"""Retrieval's figures against plain loops and scikit-learn."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import normalize

from datasets.errors import InputError
from trainers.tasks.reid.metrics import RankingResult, Side, evaluate_ranking, evaluate_scores, rank


@dataclass(frozen=True)
class Case:
    query: Tensor
    gallery: Tensor
    query_pids: Tensor
    gallery_pids: Tensor
    query_camids: Tensor
    gallery_camids: Tensor

    def evaluate(self, chunk: int = 256, ranks: tuple[int, ...] = (1, 5, 10)) -> RankingResult:
        sides = (self.query, self.gallery, self.query_pids, self.gallery_pids, self.query_camids, self.gallery_camids)
        return evaluate_ranking(*sides, ranks=ranks, chunk=chunk)


def on_a_circle(cosines: list[float]) -> Tensor:
    """Unit vectors with these cosines to (1, 0)."""
    return torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])


def one_query(cosines: list[float], pids: list[int], camids: list[int], pid: int = 7, camid: int = 0) -> Case:
    vectors = (torch.tensor([[2.0, 0.0]]), on_a_circle(cosines))
    return Case(*vectors, *(torch.tensor(v) for v in ([pid], pids, [camid], camids)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Features without ties; few identities and cameras, so that all the rules of the protocol meet."""
    queries, images, seed = draw(st.integers(1, 6)), draw(st.integers(1, 25)), draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    features = [torch.from_numpy(random.normal(size=(n, 6))).float() for n in (queries, images)]
    pids = [torch.from_numpy(random.integers(-1, 3, n)) for n in (queries, images)]
    camids = [torch.from_numpy(random.integers(-1, 2, n)) for n in (queries, images)]
    return Case(*features, *pids, *camids)


def naive(case: Case) -> tuple[list[float], list[int], list[float]]:
    """AP, rank of the first match and INP for each query, by loops; nan, 0 and nan where there is no match."""
    aps, firsts, inps = [], [], []
    for q, feature in enumerate(case.query.double()):
        scores, matches = [], []
        for g, other in enumerate(case.gallery.double()):
            pid, camid = int(case.gallery_pids[g]), int(case.gallery_camids[g])
            same_shot = pid == case.query_pids[q] and camid == case.query_camids[q] and camid >= 0
            if pid != -1 and not same_shot:
                scores.append(float(feature @ other / feature.norm() / other.norm()))
                matches.append(pid == case.query_pids[q])
        order = np.argsort(-np.array(scores), kind="stable")
        hits = [position for position, g in enumerate(order, start=1) if matches[g]]
        aps.append(float(np.mean([n / hit for n, hit in enumerate(hits, start=1)])) if hits else float("nan"))
        firsts.append(hits[0] if hits else 0)
        inps.append(len(hits) / hits[-1] if hits else float("nan"))
        if hits and len(set(scores)) == len(scores):
            assert aps[-1] == pytest.approx(average_precision_score(matches, scores))
    return aps, firsts, inps


def check_naive(case: Case, chunk: int) -> None:
    aps, firsts, inps = naive(case)
    valid = [first for first in firsts if first]
    if not valid:
        with pytest.raises(InputError, match=f"no query has a match in the gallery: {len(aps)} queries"):
            case.evaluate(chunk)
        return
    result = case.evaluate(chunk, ranks=(1, 3, 100))
    np.testing.assert_allclose(result.ap.numpy(), aps, rtol=1e-9)
    assert result.mean_ap == pytest.approx(np.nanmean(aps))
    assert result.mean_inp == pytest.approx(np.nanmean(inps))
    assert result.cmc == {k: pytest.approx(np.mean([first <= k for first in valid])) for k in (1, 3, 100)}
    assert (result.valid_queries, result.skipped_queries) == (len(valid), len(aps) - len(valid))


@settings(max_examples=150)
@given(cases(), st.integers(1, 7))
def test_ranking_is_the_naive_loops_and_scikit_learns(case: Case, chunk: int) -> None:
    check_naive(case, chunk)


@settings(max_examples=60)
@given(cases(), st.integers(1, 7))
def test_ranking_with_many_ties_is_the_naive_loops(case: Case, chunk: int) -> None:
    """Features along six axes, in both directions: cosines are exactly -1, 0 and 1."""
    check_naive(replace(case, query=along_axes(case.query), gallery=along_axes(case.gallery)), chunk)


def along_axes(features: Tensor) -> Tensor:
    largest = features.abs() == features.abs().amax(1, keepdim=True)
    return torch.where(largest, features.sign(), 0)


def test_negative_zero_ties_with_zero() -> None:
    sides = Side(torch.tensor([7]), torch.tensor([0])), Side(torch.tensor([1, 7, 2]), torch.tensor([1, 1, 1]))
    for scores, rank_of_match in (
        ([0.0, -0.0, 0.0], 2),
        ([-0.0, 0.0, -0.0], 2),
        ([-1e-45, -0.0, 1e-45], 2),
        ([-2.0, -1.0, -3.0], 1),
    ):
        result = evaluate_scores(lambda rows, scores=scores: torch.tensor([scores]), *sides)
        assert result.mean_ap == 1 / rank_of_match


def test_a_large_gallery_is_ranked_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    case = Case(*(torch.randn(n, 5, generator=random) for n in (23, 40)), *(torch.arange(n) % 6 for n in (23, 40, 23, 40)))
    case = replace(case, gallery_camids=torch.arange(40) % 5)
    asked: list[int] = []

    def scores(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return normalize(case.query)[rows] @ normalize(case.gallery).T

    sides = Side(case.query_pids, case.query_camids), Side(case.gallery_pids, case.gallery_camids)
    whole = evaluate_scores(scores, *sides)
    assert asked == [23]
    asked.clear()
    monkeypatch.setattr("trainers.tasks.reid.metrics.ENTRIES", 170)
    assert evaluate_scores(scores, *sides).ap.tolist() == whole.ap.tolist()
    assert asked == [4] * 5 + [3]
    order, cosines = rank(case.query, case.gallery, 7)
    expected = (normalize(case.query) @ normalize(case.gallery).T).sort(dim=1, descending=True)
    assert torch.equal(order, expected.indices[:, :7])
    torch.testing.assert_close(cosines, expected.values[:, :7])


@settings(max_examples=30)
@given(cases(), st.floats(0.01, 100))
def test_the_length_of_features_does_not_count(case: Case, length: float) -> None:
    longer = replace(case, query=case.query * length, gallery=case.gallery / length)
    try:
        expected = case.evaluate()
    except InputError:
        return
    np.testing.assert_array_equal(longer.evaluate().ap.numpy(), expected.ap.numpy())


def test_golden_average_precision() -> None:
    # in order: match, distractor, match, distractor, match
    result = one_query([0.9, 0.8, 0.7, 0.6, 0.5], [7, 0, 7, 3, 7], [1, 1, 1, 1, 1]).evaluate()
    assert result.mean_ap == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert result.mean_inp == pytest.approx(3 / 5)
    assert result.cmc == {1: 1.0, 5: 1.0, 10: 1.0}


def test_same_camera_and_junk_leave_the_list_and_distractors_stay() -> None:
    # same shot, junk, distractor, other identity by the query's camera, match: the match is third of those that stay
    result = one_query([0.9, 0.8, 0.7, 0.6, 0.5], [7, -1, 0, 3, 7], [0, 1, 1, 0, 1]).evaluate(ranks=(1, 2, 3))
    assert result.mean_ap == pytest.approx(1 / 3)
    assert result.cmc == {1: 0.0, 2: 0.0, 3: 1.0}


def test_an_unknown_camera_is_no_camera_in_common() -> None:
    assert one_query([0.9, 0.5], [7, 0], [-1, -1], camid=-1).evaluate().mean_ap == 1
    with pytest.raises(InputError, match="from other cameras"):
        one_query([0.9, 0.5], [7, 0], [2, 2], camid=2).evaluate()


def test_a_junk_query_is_skipped_even_with_junk_in_the_gallery() -> None:
    case = one_query([0.9, 0.5], [-1, 7], [1, 1])
    pids, camids = torch.tensor([-1, 7]), torch.tensor([0, 0])
    two = replace(case, query=case.query.repeat(2, 1), query_pids=pids, query_camids=camids)
    result = two.evaluate()
    assert result.ap.isnan().tolist() == [True, False]
    assert (result.mean_ap, result.valid_queries, result.skipped_queries) == (1.0, 1, 1)


@pytest.mark.parametrize(("pids", "first"), [([7, 0, 0], 1), ([0, 7, 0], 2), ([0, 0, 7], 3)])
def test_ties_are_ordered_by_gallery_index(pids: list[int], first: int) -> None:
    result = one_query([0.0, 0.0, 0.0], pids, [1, 1, 1]).evaluate()
    assert result.mean_ap == pytest.approx(1 / first)


def test_features_beyond_float32s_range_are_refused() -> None:
    case = one_query([0.9, 0.5], [7, 0], [1, 1])
    with pytest.raises(ValueError, match="2 of 2 features are not finite"):
        replace(case, gallery=case.gallery.double() * 1e300).evaluate()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    case = one_query([0.9, 0.5], [7, 0], [1, 1])
    case.gallery[1, 0] = bad
    with pytest.raises(ValueError, match="1 of 2 features are not finite"):
        case.evaluate()
    with pytest.raises(ValueError, match="not finite"):
        rank(case.query, case.gallery, 1)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"agree in length, not \(2, 2\), \(1,\), \(2,\)"):
        one_query([0.9, 0.5], [7], [1, 1]).evaluate()
    with pytest.raises(ValueError, match="matrix with at least one row"):
        rank(torch.ones(2), torch.ones(0, 2), 1)


def test_rank_gives_the_best_first() -> None:
    gallery = 3 * on_a_circle([0.1, 0.9, -0.5, 0.6])
    indices, cosines = rank(torch.tensor([5.0, 0.0]), gallery, top=3)
    assert indices.tolist() == [[1, 3, 0]]
    torch.testing.assert_close(cosines, torch.tensor([[0.9, 0.6, 0.1]]))


def test_rank_orders_ties_by_index_and_gives_no_more_than_there_is() -> None:
    indices, cosines = rank(torch.eye(2), torch.eye(2)[[1, 0, 1, 0]], top=9)
    assert indices.tolist() == [[1, 3, 0, 2], [0, 2, 1, 3]]
    assert cosines.tolist() == [[1, 1, 0, 0]] * 2
