"""The heads against their papers' formulas, written here in NumPy with no code in common."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.heads import Softmax, build_head
from trainers.tasks.reid.margins import AdaFace, AdaFaceMargin, Margin
from trainers.tasks.reid.model import ModelConfig, ReidTask

Array = NDArray[np.float64]
KINDS = ("softmax", "sphereface", "cosface", "arcface", "adaface")
CONFIGS = [
    HeadConfig("softmax"),
    HeadConfig("sphereface"),
    HeadConfig("sphereface", margin=2, scale=0.5),
    HeadConfig("sphereface", margin=3),
    HeadConfig("cosface"),
    HeadConfig("cosface", margin=0.2, scale=10),
    HeadConfig("arcface"),
    HeadConfig("arcface", margin=0.3, scale=16),
    HeadConfig("softmax", smoothing=0.1),
    HeadConfig("cosface", smoothing=0.3),
    HeadConfig("adaface"),
    HeadConfig("adaface", margin=0.7, scale=20, smoothing=0.1),
    HeadConfig("arcface", centres=3),
    HeadConfig("cosface", scale=10, smoothing=0.1, centres=2),
    HeadConfig("cosface", filter=0.3),
    HeadConfig("arcface", scale=16, smoothing=0.1, centres=2, filter=0.1),
    HeadConfig("adaface", filter=0.3),
    HeadConfig("sphereface", margin=2, filter=0.3),
]


def target_cosine(config: HeadConfig, cosine: float) -> float:
    """What a head makes of the cosine between a feature and the row of its own identity."""
    margin = {"sphereface": 4.0, "cosface": 0.35, "arcface": 0.5}[config.kind] if config.margin is None else config.margin
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if config.kind == "cosface":
        return cosine - margin
    if config.kind == "arcface":  # beyond pi the cosine would rise again: goes on straight, as in the authors' code
        return math.cos(angle + margin) if angle + margin <= math.pi else cosine - margin * math.sin(margin)
    k = min(int(angle * margin / math.pi), int(margin) - 1)
    return math.pow(-1, k) * math.cos(margin * angle) - 2 * k


def by_quality(config: HeadConfig, cosine: float, length: float, features: Array) -> float:
    """The same for AdaFace, at its first batch: equations 13 to 15 of the paper, and the limits of the authors' code."""
    margin = 0.4 if config.margin is None else config.margin
    lengths = np.linalg.norm(features, axis=1).clip(0.001, 100)
    mean, deviation = 0.99 * 20 + 0.01 * lengths.mean(), 0.99 * 100 + 0.01 * lengths.std(ddof=1)
    quality = max(-1.0, min(1.0, (length - mean) / (deviation + 0.001) * 0.333))
    g_angle, g_add = -margin * quality, margin * quality + margin
    angle = math.acos(max(-0.999, min(0.999, cosine))) + g_angle
    return math.cos(max(0.001, min(math.pi - 0.001, angle))) - g_add


def reference(config: HeadConfig, features: Array, rows: Array, labels: list[int]) -> float:
    losses = []
    for x, label in zip(features, labels, strict=True):
        if config.kind == "softmax":
            logits = rows @ x
        else:
            others = np.arange(len(rows) // config.centres) != label
            of_centres = np.array([row @ x / np.linalg.norm(row) / np.linalg.norm(x) for row in rows])
            cosines = of_centres.reshape(-1, config.centres).max(axis=1)
            if config.filter is not None:
                cosines[others & (cosines > config.filter)] = 0
            if config.kind == "adaface":
                cosines[label] = by_quality(config, float(cosines[label]), float(np.linalg.norm(x)), features)
            else:
                cosines[label] = target_cosine(config, float(cosines[label]))
            chosen = 1.0 if config.kind == "sphereface" else max(1.0, 2**0.5 * np.log(len(cosines) - 1))
            scale = chosen if config.scale is None else config.scale
            logits = cosines * scale * (np.linalg.norm(x) if config.kind == "sphereface" else 1)
        target = (1 - config.smoothing) * logits[label] + config.smoothing * logits.mean()
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - target)
    return float(np.mean(losses))


def head_with(config: HeadConfig, rows: Tensor) -> Softmax | Margin | AdaFace:
    """``rows``: of one identity after the other, as many as it has centres."""
    head = build_head(config, len(rows) // config.centres, rows.shape[1])
    with torch.no_grad():
        (head.loss.W.T if isinstance(head, Margin) else head.weight).copy_(rows)
    return head


def random_case(seed: int, batch: int, identities: int, dim: int, centres: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, dim, generator=generator) * 2
    rows = torch.randn(identities * centres, dim, generator=generator)
    return features, rows, torch.randint(identities, (batch,), generator=generator)


@settings(max_examples=40)
@given(st.sampled_from(CONFIGS), st.integers(0, 10**6), st.integers(2, 8), st.integers(2, 6), st.integers(2, 8), st.data())
def test_losses_are_their_formulas(
    config: HeadConfig, seed: int, batch: int, identities: int, dim: int, data: st.DataObject
) -> None:
    features, rows, labels = random_case(seed, batch, identities, dim, config.centres)
    if data.draw(st.booleans()):
        features = 3 * rows[labels * config.centres] + 0.1 * features  # near an own row, where training ends
    loss, best = head_with(config, rows)(features, labels)
    expected = reference(config, features.double().numpy(), rows.double().numpy(), labels.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=2e-4)
    assert best.shape == (batch,)


@pytest.mark.parametrize(
    ("kind", "margin", "scale", "expected"),
    [
        # x = (3, 4), rows (1, 0) and (0, 2): cosines .6 and .8, the right one is .6
        ("softmax", None, None, math.log1p(math.exp(8 - 3))),
        ("cosface", 0.35, 1.0, math.log1p(math.exp(0.8 - 0.25))),
        ("arcface", 0.5, 1.0, math.log1p(math.exp(0.8 - (0.6 * math.cos(0.5) - 0.8 * math.sin(0.5))))),
        ("sphereface", 2.0, None, math.log1p(math.exp(5 * (0.8 - (2 * 0.36 - 1))))),  # cos 2a = 2 cos^2 a - 1
    ],
)
def test_golden_losses(kind: Any, margin: float | None, scale: float | None, expected: float) -> None:
    head = head_with(HeadConfig(kind, margin, scale), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    loss, best = head(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert best.tolist() == [1]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_reach_features_and_rows(config: HeadConfig) -> None:
    features, rows, labels = random_case(0, 6, 4, 8, config.centres)
    head = head_with(config, rows)
    loss, best = head(features.requires_grad_(), labels)
    loss.backward()
    assert loss.shape == ()
    assert not best.requires_grad
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_where_feature_and_row_are_one_line(config: HeadConfig, sign: float) -> None:
    rows = torch.eye(3).repeat_interleave(config.centres, dim=0)
    features = (sign * 5 * rows[:1]).requires_grad_()
    head = head_with(config, rows).eval()  # one sample has no deviation
    loss, _ = head(features, torch.tensor([0]))
    loss.backward()
    gradients = [features.grad, *(parameter.grad for parameter in head.parameters())]
    assert loss.isfinite()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_feature_is_finite(kind: Any) -> None:
    features = torch.zeros(2, 4, requires_grad=True)
    loss, _ = build_head(HeadConfig(kind), 3, 4)(features, torch.tensor([0, 2]))
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_features_leave_the_head_in_float32(kind: Any) -> None:
    features, rows, labels = random_case(1, 4, 3, 8)
    half = features.bfloat16().requires_grad_()
    head = head_with(HeadConfig(kind), rows).eval()
    expected, _ = head(half.detach().float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head(half, labels)
    loss.backward()
    assert half.grad is not None
    assert {loss.dtype, head.rows.dtype} == {torch.float32}
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["sphereface", "cosface", "arcface", "adaface"])
def test_a_margin_makes_the_loss_larger(kind: Any) -> None:
    features, rows, labels = random_case(2, 8, 4, 6)
    least = 1.0 if kind == "sphereface" else 0.0
    losses = [head_with(HeadConfig(kind, margin, 4.0), rows)(features, labels)[0] for margin in (least, None)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_parameter(kind: Any) -> None:
    head = build_head(HeadConfig(kind), 5, 3)
    (parameter,) = head.parameters()
    assert head.rows.shape == (5, 3)
    assert head.rows.data_ptr() == parameter.data_ptr()
    assert 0 < head.rows.norm(dim=1).max() < 0.1


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_a_row_is_the_sum_of_the_centres(kind: Any) -> None:
    head = head_with(HeadConfig(kind, centres=2), torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 0.0], [2.0, 2.0]]))
    assert head.rows.tolist() == [[1, 5], [5, 2]]
    _, best = head(torch.tensor([[2.0, 0.1], [0.1, 2.0], [1.0, 1.0]]), torch.tensor([0, 0, 0]))
    assert best.tolist() == [0, 0, 1]  # by the nearest centre, not by the row


def test_adafaces_statistics_are_moving_averages_of_training_and_stored() -> None:
    margin, means, deviations = AdaFaceMargin(0.4, 1.0), [20.0], [100.0]
    for seed in range(5):
        lengths = torch.rand(6, generator=torch.Generator().manual_seed(seed)) * 30
        margin.quality(torch.eye(6) * lengths)
        means.append(0.99 * means[-1] + 0.01 * float(lengths.mean()))
        deviations.append(0.99 * deviations[-1] + 0.01 * float(lengths.std()))
    assert [float(value) for value in margin.state_dict().values()] == pytest.approx([means[-1], deviations[-1]])
    stored = AdaFaceMargin(0.4, 1.0).eval()
    stored.load_state_dict({"mean": torch.tensor(10.0), "deviation": torch.tensor(2.0)})
    quality = stored.quality(torch.eye(4) * torch.tensor([10.0, 11.0, 30.0, 1.0]))
    assert quality.tolist() == pytest.approx([0, 0.333 / 2, 1, -1], abs=1e-3)
    assert (float(stored.mean), float(stored.deviation)) == (10, 2)  # for this is no training


def test_adaface_lowers_good_images_as_their_angle_asks() -> None:
    """Quality 1: cos(angle - m) - 2 m; -1: ArcFace's cos(angle + m); 0: CosFace's cos - m."""
    cosines, margin = torch.tensor([0.3, 0.3, 0.3]), AdaFaceMargin(0.4, 1.0)
    angle = math.acos(0.3)
    expected = [math.cos(angle - 0.4) - 0.8, math.cos(angle + 0.4), 0.3 - 0.4]
    assert margin(cosines, torch.tensor([1.0, -1.0, 0.0])).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "magface"}, "unknown head: magface; use one of softmax, sphereface, cosface, arcface, adaface"),
        ({"kind": "adaface", "margin": 1.1}, "margin of adaface must be in 0..1: 1.1"),
        ({"centres": 0}, "cosface with 0 centres: head.centres; give 1, or more for cosface or arcface"),
        ({"kind": "adaface", "centres": 2}, "adaface with 2 centres"),
        ({"kind": "softmax", "centres": 3}, "softmax with 3 centres"),
        ({"kind": "softmax", "margin": 0.1}, "no margin and no scale"),
        ({"kind": "softmax", "scale": 2.0}, "no margin and no scale"),
        ({"kind": "cosface", "margin": -0.1}, "must be in 0..1: -0.1"),
        ({"kind": "arcface", "margin": 28.6}, "must be in 0..1.571: 28.6"),
        ({"kind": "sphereface", "margin": 1.5}, "whole number"),
        ({"kind": "sphereface", "margin": 0}, "whole number"),
        ({"kind": "cosface", "margin": math.nan}, "must be in"),
        ({"scale": 0.0}, "scale of a head must be positive"),
        ({"scale": math.inf}, "scale of a head must be positive"),
        ({"kind": "softmax", "filter": 0.4}, "the softmax head has no cosines to filter by: head.filter"),
        ({"filter": 0.0}, "head.filter is 0.0"),
        ({"filter": 1.0}, "head.filter is 1.0"),
        ({"filter": math.nan}, "head.filter is nan"),
        ({"filter": 0.4, "filter_from": -1}, "head.filter_from is -1"),
        ({"filter_from": 100}, "head.filter_from is 100: head; give 0 or more steps, with --head.filter"),
        ({"smoothing": 1.0}, "head.smoothing is 1.0"),
        ({"smoothing": -0.1}, "head.smoothing is -0.1"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeadConfig(**fields)


def test_the_scale_follows_the_number_of_identities() -> None:
    assert HeadConfig("cosface").resolved(183) == pytest.approx((0.35, 7.359), abs=1e-3)  # sqrt 2 x ln 182
    assert HeadConfig("arcface").resolved(100_001) == pytest.approx((0.5, 16.28), abs=1e-2)
    assert HeadConfig("arcface").resolved(2) == (0.5, 1.0)
    assert HeadConfig("cosface", scale=64).resolved(183) == (0.35, 64)
    assert HeadConfig("sphereface").resolved(183) == (4.0, 1.0)


def test_one_identity_is_no_classification() -> None:
    with pytest.raises(InputError, match="at least two identities: 1"):
        build_head(HeadConfig(), 1, 4)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_filter_begins_at_its_step_and_takes_the_gradient_of_near_identities(kind: Any, parallel: bool) -> None:
    """Of three rows, the second is near the sample and the third is not; the first is the sample's own."""
    task = ReidTask(ModelConfig(embedding=2), HeadConfig(kind, filter=0.5, filter_from=2, parallel=parallel), 3)
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]])
    weight = next(task.head.parameters())
    with torch.no_grad():
        (weight.T if isinstance(task.head, Margin) else weight).copy_(rows)

    def gradients(step: int) -> list[bool]:
        task.prepare(step)
        task.zero_grad()
        task.head(torch.tensor([[2.0, 0.2], [2.0, 0.1]]), torch.tensor([0, 0]))[0].backward()
        assert weight.grad is not None
        found = weight.grad.T if isinstance(task.head, Margin) else weight.grad
        return (found.abs().sum(dim=1) > 0).tolist()

    assert gradients(0) == gradients(1) == [True, True, True]
    assert gradients(2) == gradients(3) == [True, False, True]
