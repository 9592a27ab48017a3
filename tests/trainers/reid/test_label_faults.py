"""Label faults planted in features that are drawn at random."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.tasks.reid.fault_probability import posterior
from trainers.tasks.reid.feature_groups import Groups, divided
from trainers.tasks.reid.label_faults import Suspicion, suspicions

IDENTITIES, IMAGES, FEATURES = 150, 12, 48
Int64s = npt.NDArray[np.int64]


def drawn(seed: int, spread: float = 0.6) -> tuple[torch.Tensor, Int64s]:
    """Features of identities that are well apart: a centre of length 1 each, and noise of this length."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(IDENTITIES, FEATURES)) / np.sqrt(FEATURES)
    identity = np.repeat(np.arange(IDENTITIES), IMAGES)
    noise = rng.normal(size=(len(identity), FEATURES)) * spread / np.sqrt(FEATURES)
    length = rng.uniform(0.5, 20, (len(identity), 1))
    return torch.from_numpy((centres[identity] + noise) * length), identity


def planted(seed: int) -> tuple[torch.Tensor, Int64s, set[tuple[int, int]], set[int], dict[int, int]]:
    """Fifteen identities split, eight merged with another one, 2% of the images under a wrong one; and which."""
    features, identity = drawn(seed)
    identity = identity.copy()
    rng = np.random.default_rng(seed + 100)
    order = rng.permutation(IDENTITIES)
    same = set()
    for number, of in enumerate(order[:15]):
        identity[rng.permutation(np.flatnonzero(identity == of))[:5]] = IDENTITIES + number
        same.add((int(of), IDENTITIES + number))
    merged = {int(other): int(kept) for kept, other in zip(order[15:23], order[23:31], strict=True)}
    for other, kept in merged.items():
        identity[identity == other] = kept
    wrong = {}
    untouched = np.flatnonzero(np.isin(identity, order[31:]))
    for row in rng.permutation(untouched)[:36]:
        wrong[int(row)] = int(identity[row])
        identity[row] = rng.choice(order[31:][order[31:] != identity[row]])
    names, numbers = np.unique(identity, return_inverse=True)
    place = {int(name): number for number, name in enumerate(names)}
    pairs = {(place[a], place[b]) for a, b in same}
    return features, numbers, pairs, {place[kept] for kept in merged.values()}, {row: place[own] for row, own in wrong.items()}


def accepted(found: Sequence[Suspicion]) -> set[tuple[str, int, int, tuple[int, ...]]]:
    return {(each.kind, each.identity, each.other, each.images) for each in found if each.probability >= 0.9}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_faults_are_found(seed: int) -> None:
    features, identity, same, mixed, wrong = planted(seed)
    found = [each for each in suspicions(features, identity) if each.probability >= 0.9]
    pairs = {(each.identity, each.other) for each in found if each.kind == "same"}
    mixtures = {each.identity: each.images for each in found if each.kind == "mixture"}
    images = {each.images[0]: each.other for each in found if each.kind == "wrong"}
    assert len(pairs & same) >= 0.9 * max(len(same), len(pairs))
    assert len(mixtures.keys() & mixed) >= 0.9 * max(len(mixed), len(mixtures))
    assert sum(wrong.get(row) == other for row, other in images.items()) >= 0.9 * max(len(wrong), len(images))
    for number in mixtures.keys() & mixed:  # the part is one of the two identities: rows of one stand together
        rows = np.array(mixtures[number])
        assert len(np.unique(rows // IMAGES)) == 1
        assert len(rows) == IMAGES


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_nothing_is_accepted_where_nothing_is_wrong(seed: int) -> None:
    assert accepted(suspicions(*drawn(seed))) == set()


def test_features_that_tell_nothing_accuse_nobody() -> None:
    rng = np.random.default_rng(0)
    assert accepted(suspicions(torch.from_numpy(rng.normal(size=(2000, 64))), np.repeat(np.arange(100), 20))) == set()


def test_the_order_of_images_and_identities_does_not_matter() -> None:
    features, identity, *_ = planted(0)
    rng = np.random.default_rng(7)
    rows, numbers = rng.permutation(len(identity)), rng.permutation(identity.max() + 1)
    found = accepted(suspicions(features[torch.from_numpy(rows)], numbers[identity[rows]]))
    expected = set()
    where, back = np.argsort(rows), {-1: -1, **{old: int(new) for old, new in enumerate(numbers)}}
    for kind, own, other, images in accepted(suspicions(features, identity)):
        ends = [back[own], back[other]]
        ends = sorted(ends) if kind == "same" else ends
        expected.add((kind, *ends, tuple(sorted(int(where[row]) for row in images))))
    assert len(found ^ expected) <= 0.05 * len(expected)  # the simulation draws others


def test_an_image_is_in_one_suspicion_at_most() -> None:
    features, identity, *_ = planted(1)
    rows = [row for each in suspicions(features, identity, least=1e-6) for row in each.images]
    assert len(rows) == len(set(rows))


def test_a_wrong_image_of_nobody_is_left_out() -> None:
    features, identity, _, _, wrong = planted(2)
    rng = np.random.default_rng(0)
    strange = sorted(wrong)[:6]
    features[strange] = torch.from_numpy(rng.normal(size=(6, FEATURES)))
    found = {each.images[0]: each for each in suspicions(features, identity) if each.kind == "wrong"}
    assert all(found[row].other == -1 or found[row].probability < 0.9 for row in strange if row in found)


def test_identities_of_one_image_are_no_error() -> None:
    features, identity = drawn(0)
    single = np.flatnonzero(np.concatenate([[True], np.diff(identity) > 0]) | (identity > 20))
    found = suspicions(features[torch.from_numpy(single)], identity[single])
    assert all(np.isfinite(each.probability) for each in found)
    alone = torch.from_numpy(np.flatnonzero(np.concatenate([[True], np.diff(identity) > 0])))
    assert accepted(suspicions(features[alone], np.arange(IDENTITIES))) == set()


def test_few_identities_are_refused() -> None:
    with pytest.raises(ValueError, match="6 identities or more; there are 5"):
        suspicions(torch.eye(10), np.repeat(np.arange(5), 2))


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 6))
def test_a_division_finds_two_clusters(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    side = rng.permutation(np.repeat([0, 1], [first, second]))
    centres = np.eye(8)[:2]
    features = centres[side] + rng.normal(size=(len(side), 8)) * 0.05
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    twice = Groups(np.concatenate([features, features[::-1]]), np.array([0, len(side), 2 * len(side)]))
    found = divided(twice)
    for part, expected in ((found[: len(side)], side), (found[len(side) :], side[::-1])):
        assert np.array_equal(part, expected) or np.array_equal(1 - part, expected)


def test_within_is_the_mean_cosine_of_different_images() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 5))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    groups = Groups(rows, np.array([0, 4, 5, 9]))
    expected = [np.mean([rows[i] @ rows[j] for i in part for j in part if i != j]) for part in (range(4), range(5, 9))]
    np.testing.assert_allclose((groups.cosines / np.maximum(groups.pairs, 1))[[0, 2]], expected, atol=1e-6)
    assert groups.usual == pytest.approx(np.median(expected), abs=1e-6)


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_probabilities_are_those_of_the_densities(moved: float) -> None:
    """A tenth of the candidates are faults; the others' scores are 5 below. Also where simulated faults are too clear."""
    rng = np.random.default_rng(0)
    fault = rng.random(20_000) < 0.1
    scores = np.where(fault, rng.normal(4, 1, 20_000), rng.normal(0, 1, 20_000))
    found = posterior(scores[:, None], rng.normal(4 + moved, 1, (5000, 1))).probability
    exact = 1 / (1 + 9 * np.exp(8 - 4 * scores))
    assert np.abs(found - exact).mean() < 0.01
    for low, high in ((0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        some = (found >= low) & (found < high)
        assert abs(found[some].mean() - fault[some].mean()) < 0.12


def test_no_faults_have_no_probability() -> None:
    rng = np.random.default_rng(0)
    found = posterior(rng.normal(0, 1, (5000, 1)), rng.normal(6, 1, (5000, 1)))
    assert found.probability.max() < 0.5
    assert found.evidence < 3
