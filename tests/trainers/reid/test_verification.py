"""Verification: the threshold against trying them all, folds and figures of pairs against loops and scikit-learn."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainers.tasks.reid.verification import Verification, best_threshold, cosine_histogram


def chosen(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor, chunk: int = 256) -> Verification:
    return best_threshold(cosine_histogram(query, gallery, query_pids, gallery_pids, chunk))


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
