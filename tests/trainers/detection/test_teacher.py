"""What the student learns from the teacher: the formulas of soft distillation, and what they reach."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.detection import teacher as teaching
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.teacher import DISTILLED, TeacherConfig, anchor_sums, distillation_sums, region_sums

CONFIDENT = 0.2  # below the scores of untrained detectors of two classes


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_anchors_losses_by_hand() -> None:
    own, taught = (drawn(7, seed=1), drawn(7, 4, seed=2)), (drawn(7, seed=3), drawn(7, 4, seed=4))
    positive, sampled = torch.tensor([0, 1, 0, 0, 1, 0, 0]).bool(), torch.tensor([1, 1, 0, 0, 1, 1, 0]).bool()
    sums = anchor_sums(own, taught, positive, sampled)
    p, q = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (own[0], taught[0]))
    expected = sum(-q[i] * np.log(p[i]) - (1 - q[i]) * np.log(1 - p[i]) for i in (0, 1, 4, 5))
    assert float(sums["objectness"][0]) == pytest.approx(expected, rel=1e-5)
    assert int(sums["objectness"][1]) == 4
    distance = sum(abs(float(own[1][i, k] - taught[1][i, k])) for i in (1, 4) for k in range(4))
    assert float(sums["proposal"][0]) == pytest.approx(distance, rel=1e-5)
    assert int(sums["proposal"][1]) == 8


def test_the_regions_losses_by_hand() -> None:
    """The third region is background to the teacher: its box teaches nothing, but counts in the mean."""
    own, taught = (drawn(4, 3, seed=1), drawn(4, 12, seed=2)), (drawn(4, 3, seed=3), drawn(4, 12, seed=4))
    taught[0][:] += torch.tensor([[0, 9, 0], [0, 0, 9], [9, 0, 0], [0, 9, 0]])
    sums = region_sums(own, taught)
    expected, distance = 0.0, 0.0
    for i, best in enumerate((1, 2, 0, 1)):
        p, q = (np.exp(logits[i].double().numpy()) for logits in (own[0], taught[0]))
        expected -= float((q / q.sum() * np.log(p / p.sum())).sum())
        if best:
            distance += sum(abs(float(own[1][i, 4 * best + k] - taught[1][i, 4 * best + k])) for k in range(4))
    assert float(sums["class"][0]) == pytest.approx(expected, rel=1e-5)
    assert float(sums["box"][0]) == pytest.approx(distance, rel=1e-5)
    assert sums["class"][1] == sums["box"][1] == 4


def two(seed: int = 0) -> tuple[Detector, Detector, Tensor]:
    """A student, another detector as its teacher, and two images."""
    torch.manual_seed(seed)
    student, teacher = (Detector(DetectorConfig(regions=16, anchors=(8, 16)), 2) for _ in range(2))
    return student.train(), teacher.requires_grad_(False).eval(), (128 + 60 * torch.randn(2, 3, 48, 48)).clamp(0, 255).byte()


@pytest.mark.parametrize("name", DISTILLED)
def test_each_loss_reaches_the_students_backbone(name: str) -> None:
    student, teacher, images = two()
    total, count = distillation_sums(student, teacher, images, CONFIDENT)[name]
    assert int(count) > 0
    (total / count).backward()
    gradients = [p.grad for p in student.backbone.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_that_says_the_same_has_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one view, equal weights give no distance of boxes, and a cross-entropy at its minimum."""
    monkeypatch.setattr(teaching, "strong_views", lambda images: images)
    student, _, images = two()
    sums = distillation_sums(student, copy.deepcopy(student).requires_grad_(False).eval(), images, CONFIDENT)
    assert float(sums["proposal"][0].detach()) == float(sums["box"][0].detach()) == 0
    assert float(sums["class"][0].detach()) > 0
    torch.stack([total for total, _ in sums.values()]).sum().backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4


def test_without_confident_boxes_the_probabilities_still_teach() -> None:
    """Background, too, is something that the teacher says; with hard pseudo-labels such images are left out."""
    student, teacher, images = two()
    sums = distillation_sums(student, teacher, images, 0.999)
    assert int(sums["proposal"][1]) == 0
    assert float(sums["objectness"][0].detach()) > 0
    assert float(sums["class"][0].detach()) > 0


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"decay": 1.0}, {"threshold": 0.0}, {"weight": -1.0}):
        with pytest.raises(InputError, match="teacher"):
            TeacherConfig(**wrong)
