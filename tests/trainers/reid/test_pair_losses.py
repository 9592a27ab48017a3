"""The losses over pairs against loops over the images, written with no code in common."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datasets.errors import InputError
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.pair_losses import BatchHardTriplet, PairLoss, SoftTriplet, build_pair_loss, hard_share

Array = NDArray[np.float64]
KINDS = ("triplet", "soft_triplet", "circle", "supcon")


def naive_triplet(features: Array, labels: list[int], margin: float) -> float:
    losses = []
    for a, label in enumerate(labels):
        distances = [float(np.linalg.norm(features[a] - other)) for other in features]
        positives = [d for i, d in enumerate(distances) if labels[i] == label and i != a]
        negatives = [d for i, d in enumerate(distances) if labels[i] != label]
        if positives and negatives:
            losses.append(max(0.0, margin + max(positives) - min(negatives)))
    return float(np.mean(losses)) if losses else 0.0


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=10), st.sampled_from([0.0, 0.3, 2.0]))
def test_triplet_is_batch_hard(seed: int, labels: list[int], margin: float) -> None:
    features = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    loss = BatchHardTriplet(margin)(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(naive_triplet(features.double().numpy(), labels, margin), rel=1e-4, abs=1e-5)


def test_triplet_golden() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    loss = BatchHardTriplet(0.5)(features, torch.tensor([7, 7, 8]))  # anchors 0: 5 - 1, 1: 5 - sqrt(18); 2 has no positive
    assert loss.item() == pytest.approx((0.5 + 4 + 0.5 + 5 - math.sqrt(18)) / 2)


def test_triplet_of_equal_features_is_the_margin_with_finite_gradients() -> None:
    features = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = PairLoss(PairConfig("triplet", margin=0.25))(features, features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.25)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def cosines_of(features: Array) -> Array:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def plain(config: PairConfig, features: Array, labels: list[int]) -> float:
    """A loss of cosines, image by image."""
    margin, scale = config.resolved
    losses = []
    for a, cosines in enumerate(cosines_of(features)):
        same = [c for i, c in enumerate(cosines) if labels[i] == labels[a] and i != a]
        others = [c for i, c in enumerate(cosines) if labels[i] != labels[a]]
        if not same or not others:
            continue
        if config.kind == "soft_triplet":
            losses.append(math.log1p(math.exp(scale * (margin + max(others) - min(same)))))
        elif config.kind == "circle":  # equation 6 and 8 of the paper
            near = sum(math.exp(scale * max(c + margin, 0) * (c - margin)) for c in others)
            far = sum(math.exp(-scale * max(1 + margin - c, 0) * (c - 1 + margin)) for c in same)
            losses.append(math.log1p(near * far))
        else:  # equation 2 of the paper, L_out
            total = sum(math.exp(scale * c) for c in [*same, *others])
            losses.append(-sum(math.log(math.exp(scale * c) / total) for c in same) / len(same))
    return float(np.mean(losses)) if losses else 0.0


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["soft_triplet", "circle", "supcon"]))
def test_losses_of_cosines(seed: int, kind: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = [0, 0, 0, 1, 1, 2, 2, 3]  # the last has no positive
    features = torch.randn(len(labels), 6, generator=generator)
    config = PairConfig(kind, scale=8.0 if kind == "circle" else None)
    loss = build_pair_loss(config)(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(plain(config, features.double().numpy(), labels), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_without_a_pair_to_compare_the_loss_is_zero(kind: Any, labels: list[int]) -> None:
    features = torch.randn(len(labels), 4, requires_grad=True)
    loss, hard = PairLoss(PairConfig(kind))(features, features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert hard.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("kind", ["soft_triplet", "circle", "supcon"])
def test_the_neck_decides_for_cosines(kind: Any) -> None:
    features, other, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    loss = PairLoss(PairConfig(kind))
    assert torch.equal(loss(other, features, labels)[0], loss(features, features, labels)[0])
    triplet = PairLoss(PairConfig("triplet"))
    assert torch.equal(triplet(features, other, labels)[0], triplet(features, features, labels)[0])


def test_soft_triplet_in_bfloat16_is_computed_in_float32() -> None:
    features = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = PairLoss(PairConfig("soft_triplet"))(features, features, torch.tensor([0, 0, 1, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.e), rel=1e-5)  # softplus(10 x 0.1)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_the_share_of_hard_images(seed: int, labels: list[int]) -> None:
    features = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    cosines, hard, counted = cosines_of(features.double().numpy()), 0, 0
    for a, label in enumerate(labels):
        positives = [cosines[a, i] for i, other in enumerate(labels) if other == label and i != a]
        negatives = [cosines[a, i] for i, other in enumerate(labels) if other != label]
        if positives and negatives:
            counted += 1
            hard += max(negatives) >= min(positives)
    assert hard_share(features, torch.tensor(labels)).item() == pytest.approx(hard / max(counted, 1))


def test_equal_features_are_hard() -> None:
    assert hard_share(torch.ones(4, 3), torch.tensor([0, 0, 1, 1])).item() == 1


def test_soft_triplet_takes_the_hardest() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    loss = SoftTriplet(0.0, 1.0)(features, torch.tensor([0, 0, 1]))  # both anchors: cosine 0 to the same, sqrt 1/2 to the other
    assert loss.item() == pytest.approx(math.log1p(math.exp(math.sqrt(0.5))))


@pytest.mark.parametrize(
    ("pair", "head", "weight"),
    [
        (PairConfig("soft_triplet"), HeadConfig("cosface", scale=20.0), 1.0),
        (PairConfig("soft_triplet"), HeadConfig("arcface", scale=64.0), 3.2),
        (PairConfig("soft_triplet"), HeadConfig("adaface"), math.sqrt(2) * math.log(181) / 20),  # AdaCos' scale of 182 identities
        (PairConfig("soft_triplet", weight=2.0), HeadConfig("cosface", scale=20.0), 2.0),
        (PairConfig("soft_triplet"), HeadConfig("softmax"), 1.0),
        (PairConfig("soft_triplet"), HeadConfig("sphereface", scale=5.0), 1.0),
        (PairConfig("triplet"), HeadConfig("cosface", scale=8.0), 1.0),
        (PairConfig("circle"), HeadConfig("cosface", scale=8.0), 1.0),
    ],
)
def test_the_weight_of_soft_triplets_follows_the_heads_scale(pair: PairConfig, head: HeadConfig, weight: float) -> None:
    assert pair.weight_beside(head, identities=182) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "quadruplet"}, "unknown pair loss: quadruplet"),
        ({"kind": "circle", "weight": 0.0}, "weight of the pair loss must be positive"),
        ({"kind": "circle", "margin": -0.1}, "margin of 0 or more"),
        ({"kind": "soft_triplet", "scale": math.inf}, "positive scale"),
        ({"kind": "triplet", "scale": 2.0}, "'triplet' has no scale"),
        ({"kind": "supcon", "margin": 0.2}, "'supcon' has no margin"),
        ({"margin": 0.2}, "'none' has no margin"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairConfig(**fields)
