"""The re-identification model: images -> features -> identities. Shapes: B batch, N identities, D features."""

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.difficulty.best import Neighbours
from trainers.difficulty.vector import neighbours, neighbours_of_slice
from trainers.tasks.backbones import Normalise, check_backbone
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.heads import Softmax, build_head
from trainers.tasks.reid.pooling import Pooling, build_pooled
from trainers.tasks.reid.sharded_head import ShardedHead
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.timm_models import Size
from trainers.tasks.weights import resolved_weights


@dataclass(frozen=True)
class ModelConfig:
    """The embedder: backbone, projection, neck."""

    backbone: str = SMALL
    """The default is a small network for small images. Also: torchvision's names (resnet50, mobilenet_v3_large, ...), timm's
    (timm/vit_small_patch16_224, ...), and your own models as package.module:function."""
    embedding: int = 128
    """D, the features of an image."""
    dropout: float = 0.0
    """Fraction of the backbone's features dropped in training."""
    weights: str = ""
    """Pretrained weights: torchvision's name, such as DEFAULT; "timm" for timm's own; a file, s3://bucket/key or https://...;
    empty: random ones."""
    last_stride: Literal[1, 2] = 2
    """Stride of the last stage of torchvision's resnets and of timm's CNNs; 1 doubles the last feature map's height and width."""
    pooling: Pooling = "own"
    """How the last feature map becomes one vector. own: as the backbone does it (CNNs: the average; vision transformers: mostly
    the class token); average; gem: generalised mean with a learned power; stripes: the averages of horizontal stripes; token: the
    class token."""
    parts: int = 6
    """Stripes of pooling by stripes."""

    upgraded = staticmethod(with_full_name)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights and for values out of range."""
        object.__setattr__(self, "backbone", check_backbone(self.backbone, self.weights, self.last_stride))
        object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        if self.parts < 1:
            raise InputError("stripes must be at least one", str(self.parts), "give --model.parts of 1 or more")
        if self.embedding < 1:
            raise InputError("the embedding needs at least one feature", str(self.embedding))
        if not 0 <= self.dropout < 1:
            raise InputError("dropout must be in 0..1, below 1", str(self.dropout))


class Embedder(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> features [B, D]; normalises the pixels itself.

    Backbone, linear layer, and a batch norm without bias, the neck: Luo et al., "Bag of Tricks and a Strong Baseline for Deep
    Person Re-identification", CVPRW 2019. Heads and retrieval use the features after the neck.
    """

    def __init__(self, config: ModelConfig, size: Size | None = None) -> None:
        """``size``: height and width of the images, for backbones that are built for one size."""
        super().__init__()
        self.normalise = Normalise(config.backbone)
        self.backbone, width = build_pooled(
            config.backbone, config.weights, config.last_stride, size, config.pooling, config.parts
        )
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(width, config.embedding, bias=False)
        self.neck = nn.BatchNorm1d(config.embedding)
        self.neck.bias.requires_grad_(False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before and after the neck, [B, D] each. B must be at least 2 in training (batch norm)."""
        before: Tensor = self.project(self.dropout(self.backbone(self.normalise(images))))
        after: Tensor = self.neck(before)
        return before, after

    def forward(self, images: Tensor) -> Tensor:
        """Return the features after the neck [B, D], not normalised; retrieval compares them by cosine."""
        return self.features(images)[1]


NO_PAIRS = PairConfig()


class ReidTask(nn.Module):
    """What a run trains: embedder, head and pair loss.

    A batch holds "images" uint8 [B, 3, H, W] and "labels" int64 [B] in 0..N-1. forward returns "loss" and, detached, "accuracy"
    (the fraction of samples whose true row scores highest), "head_loss" and, with a pair loss, "pair_loss" and "hard"
    (`trainers.tasks.reid.pair_losses.hard_share`). ``group``: the ranks among which a parallel head is divided, and whose samples
    the pair loss compares. The gradient does not depend on the number of ranks, except through batch norm and dropout
    (`trainers.engine.distributed`).
    """

    def __init__(
        self, model: ModelConfig, head: HeadConfig, identities: int, group: dist.ProcessGroup | None = None,
        pair: PairConfig = NO_PAIRS, size: Size | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.identities = identities
        self.embedder = Embedder(model, size)
        self.head = (
            ShardedHead(head, identities, model.embedding, group) if head.parallel
            else build_head(head, identities, model.embedding, group)
        )  # fmt: skip
        self.filter, self.filter_from = head.filter, head.filter_from
        self.pair: nn.Module | None = None
        if pair.kind != "none":
            from trainers.tasks.reid.pair_losses import PairLoss  # here, as in `build_head`

            self.pair = PairLoss(pair, group)
        self.pair_weight = pair.weight_beside(head, identities)

    def prepare(self, step: int) -> None:
        """To be called before each training step, with its number: the head's filter begins at one of them."""
        if not isinstance(self.head, Softmax):
            self.head.threshold = self.filter if step >= self.filter_from else None

    @property
    def alone(self) -> list[str]:
        """Names of the parameters that differ between ranks, which DistributedDataParallel must leave alone."""
        return ["head.weight"] if isinstance(self.head, ShardedHead) else []

    @property
    def classifier(self) -> Tensor:
        """The rows W0 [N, D], or this rank's of a parallel head: a detached view, which changes with training."""
        return self.head.rows.detach()

    def neighbours(self, k: int, group: dist.ProcessGroup | None) -> Neighbours:
        """The k nearest identities of each, computed with all ranks; the first of them are the difficulty vector."""
        if isinstance(self.head, ShardedHead):
            return neighbours_of_slice(self.classifier, self.identities, k, group=group)
        return neighbours(self.classifier, k, group=group)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = batch["labels"]
        before, after = self.embedder.features(batch["images"])
        loss, best = self.head(after, labels)
        accuracy = (best == labels).float().mean()
        result = {"loss": loss, "accuracy": accuracy, "head_loss": loss.detach()}
        if self.pair is not None:
            pair, hard = self.pair(before, after, labels)
            result |= {"loss": loss + self.pair_weight * pair, "pair_loss": pair.detach(), "hard": hard}
        return result
