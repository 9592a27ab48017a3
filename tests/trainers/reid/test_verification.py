"""Verification: the threshold against trying them all, folds and figures of pairs against loops and scikit-learn."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.nn.functional import normalize

from datasets.errors import InputError
from trainers.tasks.reid.verification import (
    Verification,
    best_threshold,
    cosine_histograms,
    pair_figures,
    tar_at,
    tar_of_histogram,
)


def chosen(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor, chunk: int = 256) -> Verification:
    return best_threshold(cosine_histograms(query, gallery, query_pids, gallery_pids, chunk).coarse)


def accuracy(cosines: Tensor, same: Tensor, threshold: float) -> float:
    """Balanced accuracy, plainly."""
    said = cosines >= threshold
    return 0.5 * (said[same].double().mean().item() + (~said[~same]).double().mean().item())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_against_trying_every_threshold(seed: int, chunk: int) -> None:
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 6, generator=random)
    query_pids, gallery_pids = torch.arange(4).repeat(2), torch.arange(4).repeat(3)
    query = centres[query_pids] + torch.randn(8, 6, generator=random)
    gallery = centres[gallery_pids] + torch.randn(12, 6, generator=random)
    cosines, same = normalize(query) @ normalize(gallery).T, query_pids[:, None] == gallery_pids
    found = chosen(query * 7, gallery, query_pids, gallery_pids, chunk)
    best = max(accuracy(cosines, same, t) for t in cosines.flatten().tolist())
    assert found.accuracy == pytest.approx(best, abs=1e-9)
    assert accuracy(cosines, same, found.threshold) == pytest.approx(best, abs=1e-9)


def test_separable() -> None:
    found = chosen(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3))
    assert found.accuracy == 1
    assert 0 < found.threshold < 1


def test_opposite_features_are_at_the_ends_of_the_range() -> None:
    one = torch.tensor([[1.0, 0.0]])
    found = chosen(one, torch.cat([one, -one]), torch.tensor([1]), torch.tensor([1, 2]))
    assert found.accuracy == 1
    assert -1 < found.threshold < 1
    worst = chosen(one, torch.cat([one, -one]), torch.tensor([1]), torch.tensor([2, 1]))
    assert worst.accuracy == 0.5


@pytest.mark.parametrize("pids", [[1, 1], [2, 3]])
def test_nothing_to_choose_by(pids: list[int]) -> None:
    found = chosen(torch.eye(2)[:1], torch.eye(2), torch.tensor([1]), torch.tensor(pids))
    assert math.isnan(found.threshold)
    assert math.isnan(found.accuracy)


def test_the_threshold_is_fine_enough_to_part_what_is_close() -> None:
    """Cosines of 0.8002 and 0.7996 lie in neighbouring bins."""
    angles = torch.tensor([0.8002, 0.7996], dtype=torch.float64).acos()
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = chosen(torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([1]), torch.tensor([1, 2]))
    assert found.accuracy == 1
    assert 0.7996 < found.threshold < 0.8002


# ---- pairs


def some_pairs(seed: int, count: int, apart: float = 1.0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Cosines with ties, and which pairs are the same."""
    random = np.random.default_rng(seed)
    same = random.random(count) < 0.4
    same[:4] = [True, False, True, False]
    return np.round(np.tanh(random.normal(size=count) * 0.5 + apart * (same - 0.5)), 2), same


def tar_by_scikit_learn(cosines: npt.NDArray[Any], same: npt.NDArray[np.bool_], far: float) -> float:
    fpr, tpr, _ = roc_curve(same, cosines, drop_intermediate=False)
    return float(tpr[fpr <= far + 1e-12].max())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [20, 203, 3000])
def test_area_and_tar_are_scikit_learns(seed: int, count: int) -> None:
    cosines, same = some_pairs(seed, count)
    figures = pair_figures(cosines, same)
    assert figures["AUC"] == pytest.approx(roc_auc_score(same, cosines), abs=1e-12)
    assert figures["pairs"] == count
    different = int((~same).sum())
    for name, far in (("TAR@1e-1", 1e-1), ("TAR@1e-2", 1e-2), ("TAR@1e-3", 1e-3), ("TAR@1e-4", 1e-4)):
        assert (name in figures) == (different >= round(1 / far))
        if name in figures:
            assert figures[name] == pytest.approx(tar_by_scikit_learn(cosines, same, far), abs=1e-12)


def test_as_many_rates_as_the_number_of_pairs_allows() -> None:
    cosines = np.linspace(-0.9, 0.9, 12)
    same = np.arange(12) >= 10  # the highest two: ten of different identities
    assert pair_figures(cosines, same)["TAR@1e-1"] == 1
    assert "TAR@1e-2" not in pair_figures(cosines, same)
    assert not any(name.startswith("TAR") for name in pair_figures(cosines[1:], same[1:]))
    same[[9, 10]] = True, False  # a different pair lies between: one of ten is exactly 0.1
    assert pair_figures(cosines, same)["TAR@1e-1"] == 1
    assert tar_at(np.array([3, 10]), np.array([5, 5])) == {"TAR@1e-1": 0.0}  # the best cosine already accepts three
    assert tar_at(np.array([0, 0]), np.array([5, 5])) == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [40, 57])
def test_accuracy_is_that_of_ten_folds(seed: int, count: int) -> None:
    """Each fold by the threshold that is best on the other nine, found by trying all."""
    cosines, same = some_pairs(seed, count)
    sizes = [count // 10 + (fold < count % 10) for fold in range(10)]
    accuracies, start = [], 0
    for size in sizes:
        inside = range(start, start + size)
        others = [i for i in range(count) if i not in inside]
        values = sorted({float(cosines[i]) for i in others}, reverse=True)
        tried = [1.5, *((a + b) / 2 for a, b in pairwise(values)), -1.5]
        hits = [sum((cosines[i] >= t) == same[i] for i in others) for t in tried]
        threshold = tried[hits.index(max(hits))]
        accuracies.append(sum((cosines[i] >= threshold) == same[i] for i in inside) / size)
        start += size
    figures = pair_figures(cosines, same)
    assert figures["accuracy"] == pytest.approx(np.mean(accuracies))
    assert figures["accuracy_std"] == pytest.approx(np.std(accuracies))


def test_separable_pairs_and_such_that_nothing_separates() -> None:
    same = np.arange(40) % 2 == 0
    figures = pair_figures(np.where(same, 0.6, 0.2), same)
    assert (figures["accuracy"], figures["accuracy_std"], figures["AUC"]) == (1, 0, 1)
    assert figures["threshold"] == pytest.approx(0.4)
    equal = pair_figures(np.full(40, 0.5), same)
    assert (equal["accuracy"], equal["AUC"]) == (0.5, 0.5)
    assert pair_figures(np.where(same, 0.2, 0.6), same)["AUC"] == 0


@pytest.mark.parametrize(
    ("same", "line"),
    [
        (
            [True, False] * 4,
            "4 pairs of the same identity and 4 of different ones: pairs; 10 folds need some of both kinds",
        ),
        ([True] * 20, "20 pairs of the same identity and 0 of different ones"),
        ([False] * 19 + [True], "1 pairs of the same identity and 19 of different ones"),
        ([], "0 pairs of the same identity and 0 of different ones"),
    ],
)
def test_pairs_that_cannot_be_divided(same: list[bool], line: str) -> None:
    with pytest.raises(InputError, match=line):
        pair_figures(np.linspace(0, 1, len(same)), np.array(same, dtype=bool))


# ---- TAR of all pairs of a query and a gallery image


def test_tar_of_the_histogram_is_scikit_learns_within_a_bin() -> None:
    random = torch.Generator().manual_seed(3)
    pids = torch.randint(0, 10, (60,), generator=random)
    query, gallery = (torch.randn(10, 8, generator=random)[pids] + torch.randn(60, 8, generator=random) for _ in range(2))
    found = tar_of_histogram(cosine_histograms(query, gallery, pids, pids).fine)
    cosines = (normalize(query) @ normalize(gallery).T).flatten().numpy()
    same = (pids[:, None] == pids).flatten().numpy()
    assert list(found) == ["TAR@1e-1", "TAR@1e-2", "TAR@1e-3"]  # of 3,240 or so different pairs
    for name, far in (("TAR@1e-1", 1e-1), ("TAR@1e-2", 1e-2), ("TAR@1e-3", 1e-3)):
        in_bins = np.round((cosines.clip(-1, 1) + 1) / 2 * 2**20)
        assert found[name] == pytest.approx(tar_by_scikit_learn(in_bins, same, far), abs=1e-12)
        assert found[name] == pytest.approx(tar_by_scikit_learn(cosines, same, far), abs=2e-3)


def test_tar_of_a_model_whose_features_are_nearly_the_same() -> None:
    """All cosines lie between 0.999 and 1, as before training."""
    random = torch.Generator().manual_seed(3)
    pids = torch.randint(0, 10, (60,), generator=random)
    looks = torch.randn(10, 8, generator=random)
    query, gallery = (10 + 0.3 * looks[pids] + 0.3 * torch.randn(60, 8, generator=random) for _ in range(2))
    cosines = (normalize(query) @ normalize(gallery).T).flatten().numpy()
    assert cosines.min() > 0.99
    found = tar_of_histogram(cosine_histograms(query, gallery, pids, pids).fine)
    same = (pids[:, None] == pids).flatten().numpy()
    for name, far in (("TAR@1e-1", 1e-1), ("TAR@1e-2", 1e-2)):
        assert found[name] == pytest.approx(tar_by_scikit_learn(cosines, same, far), abs=0.01)


def test_histograms_of_parts_add_up() -> None:
    random = torch.Generator().manual_seed(4)
    query, gallery = torch.randn(9, 4, generator=random), torch.randn(11, 4, generator=random)
    pids, others = torch.arange(9) % 3, torch.arange(11) % 3
    parts = [cosine_histograms(query, gallery[part], pids, others[part]) for part in (slice(0, 5), slice(5, 11))]
    whole = cosine_histograms(query, gallery, pids, others, chunk=2)
    both = parts[0] + parts[1]
    for name in ("coarse", "fine"):
        assert torch.equal(getattr(both, name), getattr(whole, name))
        assert getattr(whole, name).sum(1).tolist() == [66, 33]
