"""The face tasks: their columns, their losses, and the conversion of a head's raw outputs to label values. B batch, C columns.

An absent label is NaN. It adds nothing to a loss, nor to the count that the loss is divided by.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.errors import InputError
from datasets.shards.labels import KEYPOINTS

WING_W, WING_EPS = 10.0, 2.0


@dataclass(frozen=True)
class Task:
    """One task of a head. A raw output stands for the value ``centre + scale * raw``, or sigmoid(raw) for a class."""

    columns: tuple[str, ...]
    loss: Literal["wing", "smooth_l1", "cross_entropy"]
    figure: Literal["class", "mae", "nme", "correlation"]
    """Which figures evaluate it (`trainers.tasks.attributes.metrics`)."""
    centre: float = 0.0
    scale: float = 1.0
    unit: float = 1.0
    """A regression error is divided by this before the loss. Keypoints are then in pixels of a 64 px image, as in the wing loss's
    paper; for years and degrees, smooth L1 becomes linear where an error starts to be large."""


TASKS: dict[str, Task] = {
    "keypoints": Task(KEYPOINTS, "wing", "nme", 0.5, 0.25, 1 / 64),
    "gender": Task(("gender",), "cross_entropy", "class"),
    "glasses": Task(("glasses",), "cross_entropy", "class"),
    "mask": Task(("mask",), "cross_entropy", "class"),
    "smile": Task(("smile",), "smooth_l1", "class", 0.5, 0.5, 0.5),
    "age": Task(("age",), "smooth_l1", "mae", 35, 20, 10),
    "quality": Task(("quality",), "smooth_l1", "correlation", 0.5, 0.5, 0.5),
    "attractiveness": Task(("attractiveness",), "smooth_l1", "correlation", 0.5, 0.5, 0.5),
    "pose": Task(("yaw", "pitch", "roll"), "smooth_l1", "mae", 0, 30, 15),
}


@dataclass(frozen=True)
class Weights:
    """The weight of each task's loss in the sum."""

    keypoints: float = 0.05
    gender: float = 1.0
    glasses: float = 1.0
    mask: float = 1.0
    smile: float = 1.0
    age: float = 1.0
    quality: float = 1.0
    attractiveness: float = 1.0
    pose: float = 1.0

    def __post_init__(self) -> None:
        """Raises InputError for a weight that is negative or not finite."""
        for name in TASKS:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"the weight of {name} is {getattr(self, name)}", "weights", "give 0 or more")


def wing(error: Tensor, w: float = WING_W, eps: float = WING_EPS) -> Tensor:
    """Wing loss of errors x: w ln(1 + |x| / eps) for |x| < w, else |x| - C, continuous at w. Feng et al., CVPR 2018, eq. 5."""
    x = error.abs()
    return torch.where(x < w, w * torch.log1p(x / eps), x - w + w * math.log1p(w / eps))


def values_of(task: Task, raw: Tensor) -> Tensor:
    """Label values of raw outputs [B, C], in the units of the columns; for a class the probability of 1."""
    return torch.sigmoid(raw) if task.loss == "cross_entropy" else task.centre + task.scale * raw


def loss_sum(task: Task, raw: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a task's losses over the labels [B, C] that are not NaN, and their number."""
    present = ~torch.isnan(labels)
    known = torch.where(present, labels, 0.0)
    if task.loss == "cross_entropy":
        losses = F.binary_cross_entropy_with_logits(raw, known, reduction="none")
    else:
        error = (values_of(task, raw) - known) / task.unit
        losses = wing(error) if task.loss == "wing" else F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
    return torch.where(present, losses, 0.0).sum(), present.sum()
