"""The face tasks' losses against their formulas and against PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.shards.labels import COLUMNS
from trainers.tasks.attributes.losses import TASKS, WING_EPS, WING_W, Weights, loss_sum, values_of, wing

NAN = float("nan")


@pytest.mark.parametrize(
    ("x", "value"), [(0, 0), (2, 10 * math.log(2)), (-2, 10 * math.log(2)), (10, 10 * math.log(6)), (15, 5 + 10 * math.log(6))]
)
def test_wing_by_hand(x: float, value: float) -> None:
    assert wing(torch.tensor(float(x))).item() == pytest.approx(value, rel=1e-6)


@given(st.floats(-100, 100))
def test_wing_is_the_papers_formula(x: float) -> None:
    constant = WING_W - WING_W * math.log(1 + WING_W / WING_EPS)
    value = WING_W * math.log(1 + abs(x) / WING_EPS) if abs(x) < WING_W else abs(x) - constant
    assert wing(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_wing_has_no_step_where_its_parts_meet() -> None:
    below, above = wing(torch.tensor([WING_W - 1e-6, WING_W + 1e-6], dtype=torch.float64))
    assert abs(above - below) < 1e-5


def test_cross_entropy_is_that_of_two_classes() -> None:
    raw = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(20) % 2)[:, None]
    two = torch.cat([torch.zeros_like(raw), raw], dim=1)
    total, count = loss_sum(TASKS["gender"], raw, labels.float())
    assert total / count == pytest.approx(F.cross_entropy(two, labels[:, 0]).item(), rel=1e-6)
    assert torch.allclose(values_of(TASKS["gender"], raw)[:, 0], two.softmax(dim=1)[:, 1])


@pytest.mark.parametrize("name", ["age", "quality", "attractiveness", "smile", "pose"])
def test_smooth_l1_of_the_error_in_units(name: str) -> None:
    task, rng = TASKS[name], torch.Generator().manual_seed(1)
    raw, labels = (
        torch.randn(9, len(task.columns), generator=rng),
        torch.rand(9, len(task.columns), generator=rng) * 2 * task.scale,
    )
    total, count = loss_sum(task, raw, labels)
    expected = F.smooth_l1_loss((task.centre + task.scale * raw) / task.unit, labels / task.unit)
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_absent_labels_add_nothing(name: str) -> None:
    task, rng = TASKS[name], torch.Generator().manual_seed(2)
    raw = torch.randn(6, len(task.columns), generator=rng, requires_grad=True)
    labels = (torch.rand(6, len(task.columns), generator=rng) > 0.5).float()
    alone = loss_sum(task, raw[:3], labels[:3])
    with_absent = labels.clone()
    with_absent[3:] = NAN
    total, count = loss_sum(task, raw, with_absent)
    assert (total.item(), count.item()) == (pytest.approx(alone[0].item()), 3 * len(task.columns))
    (gradient,) = torch.autograd.grad(total, raw)
    assert torch.isfinite(gradient).all()
    assert not gradient[3:].any()
    none, count = loss_sum(task, raw, torch.full_like(raw, NAN))
    assert (none.item(), count.item()) == (0, 0)
    assert not torch.autograd.grad(none, raw)[0].any()


def test_one_angle_may_be_absent() -> None:
    raw = torch.zeros(1, 3)
    total, count = loss_sum(TASKS["pose"], raw, torch.tensor([[NAN, NAN, 15.0]]))
    assert (total.item(), count.item()) == (0.5, 1)


def test_every_column_belongs_to_one_task() -> None:
    assert sorted(column for task in TASKS.values() for column in task.columns) == sorted(COLUMNS)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(InputError, match="weight of age is -1"):
        Weights(age=-1)
