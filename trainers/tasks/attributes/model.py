"""The face model: one backbone, a head per task, and the part that decouples the coupled tasks.

Shapes: B batch, C columns, L levels of the backbone, G x G places a level is pooled to, T decoupled tasks, Q queries of each,
W their width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.distributed import means_over_ranks
from trainers.tasks.attributes.losses import TASKS, loss_sum, values_of
from trainers.tasks.backbones import SMALL, Normalise, build_level_backbone, check_backbone

COUPLED = ("age", "quality", "attractiveness")
POSE = "pose"
BACKBONE = "backbone"


@dataclass(frozen=True)
class FaceModelConfig:
    """The face model."""

    backbone: str = SMALL
    """A small network for small images, or a name of torchvision's: resnet18, mobilenet_v3_small, ...; or your own:
    package.module:function"""
    weights: str = ""
    """torchvision's name of trained weights, such as DEFAULT; empty begins at random."""
    width: int = 64
    """Width of the decoupling part's tokens."""

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights."""
        check_backbone(self.backbone, self.weights)
        if self.width < 1:
            raise InputError("the decoupling part needs a width of at least 1", str(self.width))


class Decoupler(nn.Module):
    """What each coupled task finds for itself in the features of several levels, joined by what the pose finds.

    Levels [B, channels, h, w] become L * G * G tokens. A few learned queries per task attend over them, by what is there and by
    where it is: the backbone's pooled features have lost the place. From the task's findings and the pose's, side by side, a
    layer that begins at zero makes a correction of the task's raw outputs: so whatever the model does at the moment when this is
    added stays as it is. Our own design: the source does not publish its part's structure.
    """

    GRID, QUERIES = 4, 4

    def __init__(self, channels: Sequence[int], tasks: Sequence[str], width: int) -> None:
        super().__init__()
        if not channels:
            remedy = "choose another backbone, or an arm without the decoupling part: --arm staged"
            raise InputError(
                "the backbone has no feature maps [B, C, h, w] on the way to its features", "--model.backbone", remedy
            )
        self.tasks = tuple(tasks)  # POSE last
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.norm = nn.LayerNorm(width)
        # So far apart that the queries look at different places from the start.
        self.places = nn.Parameter(torch.randn(len(channels) * self.GRID**2, width))
        self.queries = nn.Parameter(torch.randn(len(self.tasks) * self.QUERIES, width) * 2)
        # What is alike in all images would drown the rest: a layer that begins at zero learns from differences.
        self.centre = nn.BatchNorm1d(len(self.tasks) * self.QUERIES * width)
        self.corrections = nn.ModuleDict({t: nn.Linear(2 * self.QUERIES * width, len(TASKS[t].columns)) for t in self.tasks})
        for parameter in self.corrections.parameters():
            nn.init.zeros_(parameter)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Corrections of the tasks' raw outputs, [B, columns] each; in training B must be at least 2 (batch norm)."""
        pooled = [F.adaptive_avg_pool2d(p(level), self.GRID) for p, level in zip(self.project, levels, strict=True)]
        tokens = self.norm(torch.cat([level.flatten(2).transpose(1, 2) for level in pooled], dim=1))  # [B, L G G, W]
        scores = self.queries @ (tokens + self.places).transpose(1, 2) / math.sqrt(tokens.shape[-1])  # [B, T Q, L G G]
        found = self.centre((scores.softmax(dim=-1) @ tokens).flatten(1)).unflatten(1, (len(self.tasks), -1))  # [B, T, Q W]
        pose = found[:, -1]
        return {task: self.corrections[task](torch.cat([found[:, i], pose], dim=1)) for i, task in enumerate(self.tasks)}


class FaceNet(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> raw outputs of each of its tasks."""

    def __init__(self, config: FaceModelConfig, tasks: Sequence[str]) -> None:
        super().__init__()
        self.width = config.width
        self.normalise = Normalise()
        self.backbone, features, self.channels = build_level_backbone(config.backbone, config.weights)
        self.heads = nn.ModuleDict({task: nn.Linear(features, len(TASKS[task].columns)) for task in tasks})
        self.decoupler: Decoupler | None = None

    def insert_decoupler(self) -> None:
        """Add the decoupling part, once; the outputs stay what they are."""
        if self.decoupler is None:
            coupled = [task for task in COUPLED if task in self.heads]
            self.decoupler = Decoupler(self.channels, [*coupled, POSE], self.width).to(next(self.parameters()).device)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs by task, [B, columns] each."""
        features = self.backbone(self.normalise(images))
        raw = {task: head(features["pooled"]) for task, head in self.heads.items()}
        if self.decoupler is not None:
            levels = [features[str(level)] for level in range(len(self.channels))]
            corrections = self.decoupler(levels)
            raw |= {task: raw[task] + corrections[task] for task in corrections if task in raw}
        return raw


class Attributes(nn.Module):
    """Images [B, 3, H, W] -> labels [B, C], the columns of all tasks in order: what is used, and exported.

    One net for all tasks, or (``single``) one for each.
    """

    def __init__(self, config: FaceModelConfig, tasks: Sequence[str], *, single: bool) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        groups = {task: (task,) for task in self.tasks} if single else {"all": self.tasks}
        self.nets = nn.ModuleDict({name: FaceNet(config, group) for name, group in groups.items()})

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(column for task in self.tasks for column in TASKS[task].columns)

    def insert_decoupler(self) -> None:
        """Add the decoupling part to every net."""
        for net in self.nets.values():
            net.insert_decoupler()  # type: ignore[operator]

    def raw(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs by task."""
        return {task: raw for net in self.nets.values() for task, raw in net(images).items()}

    def forward(self, images: Tensor) -> Tensor:
        """Labels [B, C] in the units of their columns; of a class the probability that it is 1."""
        raw = self.raw(images)
        return torch.cat([values_of(TASKS[task], raw[task]) for task in self.tasks], dim=1)


class AttributesTask(nn.Module):
    """What a run trains: the model and, of the tasks that the stage trains, the weighted sum of losses.

    A batch holds "images" [B, 3, H, W] uint8 and "targets" float32 [B, C] in the model's columns, NaN where absent; forward
    returns "loss" and, detached, "loss_<task>". Each task's mean is over the labels of the batches of all ranks together
    (`means_over_ranks`), so the gradient of R ranks is that of one with all samples, but for batch norm.
    """

    def __init__(self, model: Attributes, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self.group = model, group
        self.weights: dict[str, float] = {}
        self.frozen: list[nn.Module] = []

    def enter(self, weights: Mapping[str, float], freeze: Sequence[str] = ()) -> None:
        """Train these tasks from now on; all others, and what ``freeze`` names (tasks, the backbone), stay as they are."""
        self.weights = {task: weights[task] for task in self.model.tasks if task in weights}
        self.frozen = []
        self.model.requires_grad_(True)
        idle = {task for task in self.model.tasks if task not in self.weights or task in freeze}
        for net in self.model.nets.values():
            assert isinstance(net, FaceNet)
            self.frozen += [head for task, head in net.heads.items() if task in idle]
            if BACKBONE in freeze:
                self.frozen.append(net.backbone)
            if net.decoupler is not None:
                corrections = {
                    task: part for task, part in net.decoupler.corrections.items() if task in idle or task not in net.heads
                }
                whole = len(corrections) == len(net.decoupler.corrections)
                self.frozen += [net.decoupler] if whole else corrections.values()
        for module in self.frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As of any module, but what is frozen keeps its statistics too."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raw, columns = self.model.raw(batch["images"]), self.model.columns
        places = {task: [columns.index(column) for column in TASKS[task].columns] for task in self.weights}
        sums = {task: loss_sum(TASKS[task], raw[task].float(), batch["targets"][:, places[task]]) for task in self.weights}
        means = means_over_ranks(sums, self.group)
        loss = torch.stack([mean * self.weights[task] for task, mean in means.items()]).sum()
        return {"loss": loss, **{f"loss_{task}": mean.detach() for task, mean in means.items()}}
