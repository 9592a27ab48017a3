"""Losses over pairs of a batch's images, from pytorch-metric-learning. B batch, D features.

Sources: batch-hard triplets and their soft margin (Hermans et al., arXiv 1703.07737); circle loss (Sun et al., CVPR 2020);
supervised contrastive loss (Khosla et al., NeurIPS 2020).
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn

from trainers.engine.distributed import gather, gathered
from trainers.tasks.reid.head_config import PairConfig


class PairLoss(nn.Module):
    """A loss over pairs: (features before the neck [b, D], after it [b, D], labels [b]) -> the loss, and `hard_share`; scalars.

    With a group, the features of all ranks are gathered to one batch, and every rank gets the same results. The means leave out
    images without a positive or a negative; without any such image they are 0.
    """

    def __init__(self, config: PairConfig, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group
        self.before = config.kind == "triplet"  # of Euclidean distances, which the neck's batch norm would rescale
        self.loss = build_pair_loss(config)

    def forward(self, before: Tensor, after: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = before if self.before else after
        with torch.autocast(features.device.type, enabled=False):
            features, labels = gather(features.float(), self.group, partial=False), gathered(labels, self.group)
            return self.loss(features, labels), hard_share(features.detach(), labels)


def hard_share(features: Tensor, labels: Tensor) -> Tensor:
    """The fraction of images [B] whose nearest negative of the batch is not farther than their farthest positive, by cosine."""
    unit = F.normalize(features, dim=1)
    cosines, same = unit @ unit.T, labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    farthest = cosines.masked_fill(~same | itself, math.inf).amin(dim=1)
    nearest = cosines.masked_fill(same, -math.inf).amax(dim=1)
    counted = farthest.isfinite() & nearest.isfinite()
    return ((nearest >= farthest) & counted).sum() / counted.sum().clamp(min=1)


def build_pair_loss(config: PairConfig) -> nn.Module:
    """The loss of a batch: (features [B, D], labels [B]) -> scalar."""
    margin, scale = config.resolved
    if config.kind == "triplet":
        return BatchHardTriplet(margin)
    if config.kind == "soft_triplet":
        return SoftTriplet(margin, scale)
    if config.kind == "circle":
        circle: nn.Module = losses.CircleLoss(m=margin, gamma=scale)
        return circle
    contrastive: nn.Module = losses.SupConLoss(temperature=1 / scale)
    return contrastive


class BatchHardTriplet(nn.Module):
    """Mean over anchors of max(0, margin + d(anchor, farthest positive) - d(anchor, nearest negative)).

    d is the Euclidean distance of features that are not normalised.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        distance = distances.LpDistance(normalize_embeddings=False)
        self.miner = miners.BatchHardMiner(distance=distance)
        self.loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=reducers.MeanReducer())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(features, labels, self.miner(features, labels))
        return loss


class SoftTriplet(nn.Module):
    """Mean over anchors of softplus(scale (margin + cos(anchor, nearest negative) - cos(anchor, farthest positive)))."""

    def __init__(self, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.miner = miners.BatchHardMiner(distance=distances.CosineSimilarity())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        features = F.normalize(features, dim=1)
        anchors, positives, negatives = self.miner(features, labels)
        if not len(anchors):
            return features.sum() * 0
        nearer = (features[anchors] * (features[negatives] - features[positives])).sum(dim=1)
        return F.softplus(self.scale * (self.margin + nearer)).mean()
