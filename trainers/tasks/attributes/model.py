"""The face model: one backbone, a head per task, and a part that decouples the coupled tasks. B images of a batch, C columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.distributed import means_over_ranks
from trainers.tasks.attributes.decouplers import DECOUPLERS, POSE, DecouplingPart
from trainers.tasks.attributes.losses import TASKS, loss_sum, values_of
from trainers.tasks.backbones import Normalise, build_level_backbone, check_backbone
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.timm_models import Size
from trainers.tasks.weights import resolved_weights

COUPLED = ("age", "quality", "attractiveness")
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


class FaceNet(nn.Module):
    """One backbone with heads: RGB images [B, 3, H, W], uint8 or float in 0..255 -> raw outputs by task."""

    def __init__(self, config: FaceModelConfig, tasks: Sequence[str], size: Size | None = None) -> None:
        """``size``: height and width of the images, for backbones that are built for one size."""
        super().__init__()
        self.width = config.width
        self.normalise = Normalise(config.backbone)
        self.backbone, features, self.channels = build_level_backbone(config.backbone, config.weights, size)
        self.heads = nn.ModuleDict({task: nn.Linear(features, len(TASKS[task].columns)) for task in tasks})
        self.decoupler: DecouplingPart | None = None

    def insert_decoupler(self, kind: str) -> None:
        """Add the decoupling part of this kind (a name of `DECOUPLERS`) if there is none yet; the outputs do not change."""
        if self.decoupler is None:
            coupled = [task for task in COUPLED if task in self.heads]
            self.decoupler = DECOUPLERS[kind](self.channels, [*coupled, POSE], self.width).to(next(self.parameters()).device)

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
        self.decoupled = ""  # the kind of the decoupling part
        groups = {task: (task,) for task in self.tasks} if single else {"all": self.tasks}
        self.nets = nn.ModuleDict({name: FaceNet(config, group, size) for name, group in groups.items()})

    @classmethod
    def of_shape(cls, config: FaceModelConfig, shape: Mapping[str, Any], size: Size | None = None) -> Self:
        """A model of the structure that `shape` described."""
        model = cls(config, shape["tasks"], single=shape["single"], size=size)
        if kind := shape["decoupled"]:
            model.insert_decoupler("decoupler" if kind is True else kind)  # True: of a run of an earlier version
        return model

    def shape(self) -> dict[str, Any]:
        """The model's structure as plain data, to store beside its weights."""
        return {"tasks": list(self.tasks), "single": self.single, "decoupled": self.decoupled}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(column for task in self.tasks for column in TASKS[task].columns)

    def insert_decoupler(self, kind: str = "decoupler") -> None:
        """Add the decoupling part of this kind (a name of `DECOUPLERS`) to every net."""
        self.decoupled = kind
        for net in self.nets.values():
            net.insert_decoupler(kind)  # type: ignore[operator]

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
    the gradient does not depend on the number of ranks, except through batch norm. Of models for one task each, each gets the
    images that have a label of its task, as if it were trained alone.

    ``uncertainty``: learn the tasks' weights, as factors of the given ones (`weighed`).
    """

    def __init__(self, model: Attributes, group: dist.ProcessGroup | None = None, *, uncertainty: bool = False) -> None:
        super().__init__()
        self.model, self.group = model, group
        self.log_variances = nn.ParameterDict({task: torch.zeros(()) for task in model.tasks} if uncertainty else {})
        self.weights: dict[str, float] = {}
        self.frozen: list[nn.Module] = []

    def enter(self, weights: Mapping[str, float], freeze: Sequence[str] = ()) -> None:
        """Train these tasks from now on. All others, and the tasks or the backbone named in ``freeze``, stay as they are."""
        self.weights = {task: weights[task] for task in self.model.tasks if task in weights}
        self.frozen = []
        self.requires_grad_(True)
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
        for task, log_variance in self.log_variances.items():
            log_variance.requires_grad_(task in self.weights)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode as usual, but keep frozen parts in evaluation mode: their batch norm statistics stay."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for net in self.model.nets.values():
            images, targets = self._own(batch, tuple(net.heads))  # type: ignore[arg-type]
            raw = net(images)
            sums |= {
                task: loss_sum(TASKS[task], raw[task].float(), targets[:, self._places(task)])
                for task in raw
                if task in self.weights
            }
        means = means_over_ranks({task: sums[task] for task in self.weights}, self.group)
        parts = {task: self.weighed(task, mean) * self.weights[task] for task, mean in means.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **{f"loss_{t}": mean.detach() for t, mean in means.items()}}

    def weighed(self, task: str, loss: Tensor) -> Tensor:
        """The loss L of a task with its learned weight: exp(-s) L + s / 2 for a class, exp(-s) L / 2 + s / 2 for a regression.
        s is the logarithm of the variance of the task's labels (Kendall et al., CVPR 2018, eq. 7 and 10)."""
        if task not in self.log_variances:
            return loss
        s: Tensor = self.log_variances[task]
        return torch.exp(-s) * (loss if TASKS[task].loss == "cross_entropy" else loss / 2) + s / 2

    def _own(self, batch: dict[str, Tensor], tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The images and targets that a net of these tasks is trained on: all, or of a net for one task those with its label,
        with at least two for batch norm."""
        images, targets = batch["images"], batch["targets"]
        if not self.model.single:
            return images, targets
        labelled = ~torch.isnan(targets[:, [place for task in tasks for place in self._places(task)]]).all(dim=1)
        if int(labelled.sum()) < 2:
            labelled[:2] = True
        return images[labelled], targets[labelled]

    def _places(self, task: str) -> list[int]:
        return [self.model.columns.index(column) for column in TASKS[task].columns]
