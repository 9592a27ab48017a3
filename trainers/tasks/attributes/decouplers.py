"""Parts that decouple the coupled face tasks: each corrects the raw outputs of a task by features of its own.

A part gets levels of the backbone, [B, channels, h, w] each, and returns for each task a correction [B, columns] of its raw
outputs. Its last layers start at zero, so adding it does not change the model's outputs. At the same width the parts have about
as many weights. B images, L levels, each pooled to G x G, T tasks, Q queries of each, W the width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.attributes.losses import TASKS

POSE = "pose"


class QueryDecoupler(nn.Module):
    """Corrects the raw outputs of the coupled tasks by attention over several levels of the backbone.

    Levels [B, channels, h, w] become L * G * G tokens. A few learned queries per task attend over them by content and position;
    the pooled features of the backbone have lost the position. A linear layer maps what the task's and the pose's queries
    returned to a correction of the task's raw outputs. The layer starts at zero, so adding this part does not change the model's
    outputs. Our own design: the source of the method does not publish its own.
    """

    GRID, QUERIES = 4, 4

    def __init__(self, channels: Sequence[int], tasks: Sequence[str], width: int) -> None:
        super().__init__()
        check_levels(channels)
        self.tasks = tuple(tasks)  # POSE last
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.norm = nn.LayerNorm(width)
        # Of unit variance, so that the queries attend to different places from the start.
        self.places = nn.Parameter(torch.randn(len(channels) * self.GRID**2, width))
        self.queries = nn.Parameter(torch.randn(len(self.tasks) * self.QUERIES, width) * 2)
        # Without it the corrections learned the mean only: what the queries return is nearly the same for all images.
        self.centre = nn.BatchNorm1d(len(self.tasks) * self.QUERIES * width)
        self.corrections = nn.ModuleDict({t: _zero_linear(2 * self.QUERIES * width, t) for t in self.tasks})

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Corrections of the tasks' raw outputs, [B, columns] each; B must be at least 2 in training (batch norm)."""
        pooled = [F.adaptive_avg_pool2d(p(level), self.GRID) for p, level in zip(self.project, levels, strict=True)]
        tokens = self.norm(torch.cat([level.flatten(2).transpose(1, 2) for level in pooled], dim=1))  # [B, L G G, W]
        scores = self.queries @ (tokens + self.places).transpose(1, 2) / math.sqrt(tokens.shape[-1])  # [B, T Q, L G G]
        found = self.centre((scores.softmax(dim=-1) @ tokens).flatten(1)).unflatten(1, (len(self.tasks), -1))  # [B, T, Q W]
        pose = found[:, -1]
        return {task: self.corrections[task](torch.cat([found[:, i], pose], dim=1)) for i, task in enumerate(self.tasks)}


class CrossStitch(nn.Module):
    """Cross-stitch units (Misra et al., CVPR 2016): each task has features of its own of each level, and learns how much of every
    task's to use, at first nine tenths of its own."""

    OWN = 0.9

    def __init__(self, channels: Sequence[int], tasks: Sequence[str], width: int) -> None:
        super().__init__()
        check_levels(channels)
        self.tasks = tuple(tasks)
        count, own = len(self.tasks), max(width // 4, 1)
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.branches = nn.ModuleList(nn.Linear(width, count * own) for _ in channels)
        others = (1 - self.OWN) / max(count - 1, 1)
        stitch = torch.full((count, count), others) + torch.eye(count) * (self.OWN - others)
        self.stitches = nn.ParameterList(stitch.clone() for _ in channels)
        self.centre = nn.BatchNorm1d(count * len(channels) * own)
        self.corrections = nn.ModuleDict({t: _zero_linear(len(channels) * own, t) for t in self.tasks})

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Corrections of the tasks' raw outputs, [B, columns] each; B must be at least 2 in training (batch norm)."""
        found = []
        for level, project, branch, stitch in zip(levels, self.project, self.branches, self.stitches, strict=True):
            features = branch(F.relu(project(level)).mean(dim=(2, 3))).unflatten(1, (len(self.tasks), -1))  # [B, T, W']
            found.append(stitch @ features)
        each = self.centre(torch.cat(found, dim=2).flatten(1)).unflatten(1, (len(self.tasks), -1))
        return {task: self.corrections[task](each[:, i]) for i, task in enumerate(self.tasks)}


class AttentionMasks(nn.Module):
    """Masks of each task over the shared features of each level, as in MTAN (Liu et al., CVPR 2019): the features of a level that
    pass a task's mask go on to its mask of the next level."""

    def __init__(self, channels: Sequence[int], tasks: Sequence[str], width: int) -> None:
        super().__init__()
        check_levels(channels)
        self.tasks = tuple(tasks)
        count, own = len(self.tasks), max(5 * width // 8, 1)
        self.project = nn.ModuleList(nn.Conv2d(c, own, 1) for c in channels)
        entering = [own] + [2 * own] * (len(channels) - 1)  # from the second level on also what passed the level before
        self.masks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count * size, count * own, 1, groups=count), nn.BatchNorm2d(count * own), nn.Sigmoid())
            for size in entering
        )
        self.centre = nn.BatchNorm1d(count * len(channels) * own)
        self.corrections = nn.ModuleDict({t: _zero_linear(len(channels) * own, t) for t in self.tasks})

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Corrections of the tasks' raw outputs, [B, columns] each; B must be at least 2 in training (batch norm)."""
        count, passed, found = len(self.tasks), None, []
        for level, project, mask in zip(levels, self.project, self.masks, strict=True):
            shared = project(level)[:, None].expand(-1, count, -1, -1, -1)  # [B, T, W', h, w]
            entering = shared
            if passed is not None:
                before = F.adaptive_avg_pool2d(passed.flatten(1, 2), shared.shape[-2:])
                entering = torch.cat([shared, before.reshape(shared.shape)], dim=2)
            passed = shared * mask(entering.flatten(1, 2)).reshape(shared.shape)
            found.append(passed.mean(dim=(3, 4)))
        each = self.centre(torch.cat(found, dim=2).flatten(1)).unflatten(1, (count, -1))
        return {task: self.corrections[task](each[:, i]) for i, task in enumerate(self.tasks)}


def check_levels(channels: Sequence[int]) -> None:
    """Raises InputError where the backbone has no levels."""
    if not channels:
        remedy = "choose another backbone, or an arm without the decoupling part: --arm staged"
        raise InputError("the backbone's modules return no feature maps [B, C, h, w]", "--model.backbone", remedy)


def _zero_linear(features: int, task: str) -> nn.Linear:
    layer = nn.Linear(features, len(TASKS[task].columns))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


DecouplingPart = QueryDecoupler | CrossStitch | AttentionMasks
DECOUPLERS: dict[str, type[DecouplingPart]] = {
    "decoupler": QueryDecoupler, "cross-stitch": CrossStitch, "mtan": AttentionMasks,
}  # fmt: skip
