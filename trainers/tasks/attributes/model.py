"""The face model: one backbone, a head per task, and a part that decouples the coupled tasks.

Shapes: B batch, C columns, L levels of the backbone, each pooled to G x G, T decoupled tasks, Q queries of each, W their width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.distributed import means_over_ranks
from trainers.tasks.attributes.losses import TASKS, loss_sum, values_of
from trainers.tasks.backbones import Normalise, build_level_backbone, check_backbone
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.timm_models import Size
from trainers.tasks.weights import resolved_weights

COUPLED = ("age", "quality", "attractiveness")
POSE = "pose"
BACKBONE = "backbone"


@dataclass(frozen=True)
class FaceModelConfig:
    """The face model."""

    backbone: str = SMALL
    """The default is a small network for small images. Also: torchvision's names (resnet18, mobilenet_v3_small, ...), timm's
    (timm/convnext_atto, ...), and your own models as package.module:function."""
    weights: str = ""
    """Pretrained weights: torchvision's name, such as DEFAULT; "timm" for timm's own; a file, s3://bucket/key or https://...;
    empty: random ones."""
    width: int = 64
    """Width of the decoupling part's tokens."""

    upgraded = staticmethod(with_full_name)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights."""
        object.__setattr__(self, "backbone", check_backbone(self.backbone, self.weights))
        object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        if self.width < 1:
            raise InputError("the decoupling part needs a width of at least 1", str(self.width))


class Decoupler(nn.Module):
    """Corrects the raw outputs of the coupled tasks by attention over several levels of the backbone.

    Levels [B, channels, h, w] become L * G * G tokens. A few learned queries per task attend over them by content and position;
    the pooled features of the backbone have lost the position. A linear layer maps what the task's and the pose's queries
    returned to a correction of the task's raw outputs. The layer starts at zero, so adding this part does not change the model's
    outputs. Our own design: the source of the method does not publish its own.
    """

    GRID, QUERIES = 4, 4

    def __init__(self, channels: Sequence[int], tasks: Sequence[str], width: int) -> None:
        super().__init__()
        if not channels:
            remedy = "choose another backbone, or an arm without the decoupling part: --arm staged"
            raise InputError("the backbone's modules return no feature maps [B, C, h, w]", "--model.backbone", remedy)
        self.tasks = tuple(tasks)  # POSE last
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.norm = nn.LayerNorm(width)
        # Of unit variance, so that the queries attend to different places from the start.
        self.places = nn.Parameter(torch.randn(len(channels) * self.GRID**2, width))
        self.queries = nn.Parameter(torch.randn(len(self.tasks) * self.QUERIES, width) * 2)
        # Without it the corrections learned the mean only: what the queries return is nearly the same for all images.
        self.centre = nn.BatchNorm1d(len(self.tasks) * self.QUERIES * width)
        self.corrections = nn.ModuleDict({t: nn.Linear(2 * self.QUERIES * width, len(TASKS[t].columns)) for t in self.tasks})
        for parameter in self.corrections.parameters():
            nn.init.zeros_(parameter)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Corrections of the tasks' raw outputs, [B, columns] each; B must be at least 2 in training (batch norm)."""
        pooled = [F.adaptive_avg_pool2d(p(level), self.GRID) for p, level in zip(self.project, levels, strict=True)]
        tokens = self.norm(torch.cat([level.flatten(2).transpose(1, 2) for level in pooled], dim=1))  # [B, L G G, W]
        scores = self.queries @ (tokens + self.places).transpose(1, 2) / math.sqrt(tokens.shape[-1])  # [B, T Q, L G G]
        found = self.centre((scores.softmax(dim=-1) @ tokens).flatten(1)).unflatten(1, (len(self.tasks), -1))  # [B, T, Q W]
        pose = found[:, -1]
        return {task: self.corrections[task](torch.cat([found[:, i], pose], dim=1)) for i, task in enumerate(self.tasks)}


class FaceNet(nn.Module):
    """One backbone with heads: RGB images [B, 3, H, W], uint8 or float in 0..255 -> raw outputs by task."""

    def __init__(self, config: FaceModelConfig, tasks: Sequence[str], size: Size | None = None) -> None:
        """``size``: height and width of the images, for backbones that are built for one size."""
        super().__init__()
        self.width = config.width
        self.normalise = Normalise(config.backbone)
        self.backbone, features, self.channels = build_level_backbone(config.backbone, config.weights, size)
        self.heads = nn.ModuleDict({task: nn.Linear(features, len(TASKS[task].columns)) for task in tasks})
        self.decoupler: Decoupler | None = None

    def insert_decoupler(self) -> None:
        """Add the decoupling part if there is none yet; the outputs do not change."""
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
    """The model that is used and exported: images [B, 3, H, W] -> labels [B, C], the columns of all tasks in order.

    It has one `FaceNet` for all tasks, or one for each if ``single``.
    """

    def __init__(self, config: FaceModelConfig, tasks: Sequence[str], *, single: bool, size: Size | None = None) -> None:
        super().__init__()
        self.tasks, self.single = tuple(tasks), single
        groups = {task: (task,) for task in self.tasks} if single else {"all": self.tasks}
        self.nets = nn.ModuleDict({name: FaceNet(config, group, size) for name, group in groups.items()})

    @classmethod
    def of_shape(cls, config: FaceModelConfig, shape: Mapping[str, Any], size: Size | None = None) -> Self:
        """A model of the structure that `shape` described."""
        model = cls(config, shape["tasks"], single=shape["single"], size=size)
        if shape["decoupled"]:
            model.insert_decoupler()
        return model

    def shape(self) -> dict[str, Any]:
        """The model's structure as plain data, to store beside its weights."""
        decoupled = any(net.decoupler is not None for net in self.nets.values())
        return {"tasks": list(self.tasks), "single": self.single, "decoupled": decoupled}

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
        """Labels [B, C] in the units of their columns; for a class the probability of 1."""
        raw = self.raw(images)
        return torch.cat([values_of(TASKS[task], raw[task]) for task in self.tasks], dim=1)


class AttributesTask(nn.Module):
    """What a run trains: the model, and the weighted sum of the losses of the current stage's tasks.

    A batch holds "images" uint8 [B, 3, H, W] and "targets" float32 [B, C] in the model's columns, NaN where absent. forward
    returns "loss" and, detached, "loss_<task>". Each task's loss is a mean over the labels of all ranks (`means_over_ranks`), so
    the gradient does not depend on the number of ranks, except through batch norm.
    """

    def __init__(self, model: Attributes, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self.group = model, group
        self.weights: dict[str, float] = {}
        self.frozen: list[nn.Module] = []

    def enter(self, weights: Mapping[str, float], freeze: Sequence[str] = ()) -> None:
        """Train these tasks from now on. All others, and the tasks or the backbone named in ``freeze``, stay as they are."""
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
        """Set training mode as usual, but keep frozen parts in evaluation mode: their batch norm statistics stay."""
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
