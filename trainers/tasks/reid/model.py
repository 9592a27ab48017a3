"""The re-identification model: images -> features -> identities. Shapes: B batch, N identities, D features."""

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.difficulty.tiles import Nearest
from trainers.difficulty.vector import difficulty, difficulty_of_share
from trainers.tasks.backbones import SMALL, Normalise, build_backbone, check_backbone
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.heads import build_head
from trainers.tasks.reid.sharded_head import ShardedHead


@dataclass(frozen=True)
class ModelConfig:
    """The embedder."""

    backbone: str = SMALL
    """A small network for small images, or a name of torchvision's: resnet50, mobilenet_v3_large, ...; or your own:
    package.module:function"""
    embedding: int = 128
    """D, the number of features that an image becomes."""
    dropout: float = 0.0
    """Fraction of the backbone's features dropped in training."""
    weights: str = ""
    """torchvision's name of trained weights, such as DEFAULT; empty begins at random."""
    last_stride: Literal[1, 2] = 2
    """resnets only: 1 doubles the last feature map."""

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights and for values out of range."""
        check_backbone(self.backbone, self.weights, self.last_stride)
        if self.embedding < 1:
            raise InputError("the embedding needs at least one feature", str(self.embedding))
        if not 0 <= self.dropout < 1:
            raise InputError("dropout must be in 0..1, below 1", str(self.dropout))


class Embedder(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> features [B, D]; normalises the pixels itself.

    A linear layer, then a batch norm whose bias stays 0: Luo et al., "Bag of Tricks and a Strong Baseline for Deep
    Person Re-identification", CVPRW 2019. Distances (triplet) are learned before the norm, angles (heads, retrieval)
    after it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.backbone, width = build_backbone(config.backbone, config.weights, config.last_stride)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(width, config.embedding, bias=False)
        self.neck = nn.BatchNorm1d(config.embedding)
        self.neck.bias.requires_grad_(False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before and after the neck, [B, D] each. In training B must be at least 2 (batch norm)."""
        before: Tensor = self.project(self.dropout(self.backbone(self.normalise(images))))
        after: Tensor = self.neck(before)
        return before, after

    def forward(self, images: Tensor) -> Tensor:
        """Return the features after the neck [B, D], which retrieval compares by cosine; they are not normalised."""
        return self.features(images)[1]


class ReidTask(nn.Module):
    """Embedder, head and triplet loss: what a run trains.

    A batch holds "images" [B, 3, H, W] uint8 and "labels" [B] int64 in 0..N-1; forward returns "loss" (scalar,
    differentiable) and, detached, "accuracy" (share of the batch whose own row scores highest), "head_loss" and,
    where used, "triplet_loss". ``group``: the ranks that a parallel head's rows are shared out over, and whose samples the
    triplet loss compares. The gradient of R ranks is that of one with all samples, but for batch norm and dropout
    (`trainers.engine.distributed`).
    """

    def __init__(self, model: ModelConfig, head: HeadConfig, identities: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.embedder = Embedder(model)
        self.head = (
            ShardedHead(head, identities, model.embedding, group) if head.parallel
            else build_head(head, identities, model.embedding)
        )  # fmt: skip
        self.triplet: nn.Module | None = None
        if head.triplet:
            from trainers.tasks.reid.margins import BatchHardTriplet  # here, as in `build_head`

            self.triplet = BatchHardTriplet(head.triplet_margin, group)
        self.triplet_weight = head.triplet

    @property
    def alone(self) -> list[str]:
        """Names of the parameters that a rank alone holds."""
        return ["head.weight"] if isinstance(self.head, ShardedHead) else []

    @property
    def classifier(self) -> Tensor:
        """The identities' rows W0 [N, D], of a parallel head this rank's: a detached view, so it changes with training."""
        return self.head.rows.detach()

    def difficulty(self, group: dist.ProcessGroup | None) -> Nearest:
        """The difficulty vector of the rows, computed by all ranks together."""
        if isinstance(self.head, ShardedHead):
            return difficulty_of_share(self.classifier, self.head.identities, group=group)
        return difficulty(self.classifier, group=group)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = batch["labels"]
        before, after = self.embedder.features(batch["images"])
        loss, best = self.head(after, labels)
        accuracy = (best == labels).float().mean()
        result = {"loss": loss, "accuracy": accuracy, "head_loss": loss.detach()}
        if self.triplet is not None:
            triplet = self.triplet(before, labels)
            result |= {"loss": loss + self.triplet_weight * triplet, "triplet_loss": triplet.detach()}
        return result
