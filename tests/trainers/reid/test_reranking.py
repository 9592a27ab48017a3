"""Re-ranking against the rule of its authors, taken literally: sets, loops and a full matrix."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.metrics import Side, evaluate_scores
from trainers.tasks.reid.reranking import Reranked

Matrix = npt.NDArray[np.float64]
AUTHORS = EvaluationConfig(rerank_k1=20, rerank_k2=6, rerank_lambda=0.3)


def literal(query: Matrix, gallery: Matrix, config: EvaluationConfig) -> Matrix:
    """The distances [Q, G] by the rule as published."""
    features = np.concatenate([query, gallery])
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    images, k1, k2 = range(len(features)), config.rerank_k1, config.rerank_k2
    distance = np.array([[float(((a - b) ** 2).sum()) for b in features] for a in features])
    distance /= distance.max(axis=1, keepdims=True)
    order = [sorted(images, key=lambda j, i=i: (distance[i, j], j)) for i in images]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encoding = np.zeros_like(distance)
    for i in images:
        own = reciprocal(i, k1)
        expanded = set(own)
        for candidate in own:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        for j in expanded:
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    encoding = np.array([encoding[order[i][:k2]].mean(axis=0) for i in images])
    result = np.zeros((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            a, b = encoding[q], encoding[len(query) + g]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            result[q, g] = (1 - config.rerank_lambda) * jaccard + config.rerank_lambda * distance[q, len(query) + g]
    return result


def clusters(seed: int, queries: int, images: int, spread: float) -> tuple[Matrix, Matrix]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(6, 8))
    query, gallery = (centres[random.integers(0, 6, n)] + spread * random.normal(size=(n, 8)) for n in (queries, images))
    return query, gallery


def reranked(query: Matrix, gallery: Matrix, config: EvaluationConfig) -> Tensor:
    return -Reranked(torch.from_numpy(query), torch.from_numpy(gallery), config).scores(torch.arange(len(query)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_it_is_the_published_rule(seed: int, spread: float) -> None:
    query, gallery = clusters(seed, 15, 70, spread)
    np.testing.assert_allclose(reranked(query, gallery, AUTHORS), literal(query, gallery, AUTHORS), atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 25), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_it_is_the_published_rule_for_all_settings(seed: int, queries: int, images: int, k1: int, k2: int, weight: float) -> None:
    """Also with more neighbours than there are images."""
    config = EvaluationConfig(rerank_k1=k1, rerank_k2=k2, rerank_lambda=weight)
    query, gallery = clusters(seed, queries, images, 0.7)
    np.testing.assert_allclose(reranked(query, gallery, config), literal(query, gallery, config), atol=2e-6)


def test_figures_are_those_of_the_published_rule() -> None:
    query, gallery = clusters(0, 12, 60, 1.0)
    random = torch.Generator().manual_seed(0)
    sides = [Side(torch.randint(0, 6, (n,), generator=random), torch.randint(0, 3, (n,), generator=random)) for n in (12, 60)]
    slow = torch.from_numpy(literal(query, gallery, AUTHORS)).float()
    fast = Reranked(torch.from_numpy(query), torch.from_numpy(gallery), AUTHORS)
    assert evaluate_scores(fast.scores, *sides).ap.tolist() == evaluate_scores(lambda rows: -slow[rows], *sides).ap.tolist()


def test_the_result_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = clusters(1, 9, 50, 0.8)
    whole = reranked(query, gallery, AUTHORS)
    monkeypatch.setattr("trainers.tasks.reid.metrics.ENTRIES", 300)
    torch.testing.assert_close(reranked(query, gallery, AUTHORS), whole, atol=1e-6, rtol=0)
    some = Reranked(torch.from_numpy(query), torch.from_numpy(gallery), AUTHORS).scores(torch.tensor([7, 2]))
    torch.testing.assert_close(-some, whole[[7, 2]], atol=1e-6, rtol=0)


def test_images_that_are_all_the_same() -> None:
    """More of them than neighbours: not every image is among its own."""
    query, gallery = np.ones((3, 4)), np.ones((40, 4))
    found = reranked(query, gallery, replace(AUTHORS, rerank_k1=4))
    assert found.isfinite().all()
    assert reranked(query, query, AUTHORS).abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rerank_k1": 0}, "rerank_k1 and rerank_k2 must be at least 1: 0 and 6; use 20 and 6"),
        ({"rerank_k2": 0}, "rerank_k1 and rerank_k2 must be at least 1: 20 and 0; use 20 and 6"),
        ({"rerank_lambda": -0.1}, "rerank_lambda must be in 0..1: -0.1; use 0.3"),
        ({"rerank_lambda": float("nan")}, "rerank_lambda must be in 0..1: nan; use 0.3"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        EvaluationConfig(**settings)
    assert str(error.value) == line
