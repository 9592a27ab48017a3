"""Margin heads and the batch-hard triplet loss, by pytorch-metric-learning. B batch, N identities, D features.

Sources: SphereFace (Liu et al., CVPR 2017); CosFace (Wang et al., CVPR 2018); ArcFace (Deng et al., CVPR 2019); batch-hard
triplets (Hermans et al., arXiv 1703.07737).
"""

import math
import warnings

import torch
import torch.distributed as dist
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn

from trainers.engine.distributed import gather, gathered
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig


class _SafeArcFaceLoss(losses.ArcFaceLoss):
    def get_angles(self, cosine: Tensor) -> Tensor:
        # The library clamps at 1 and -1 themselves, where acos is infinitely steep; PyTorch before 2.15 lets that through.
        step = torch.finfo(torch.float32).eps
        return torch.acos(cosine.clamp(-1 + step, 1 - step))


class Margin(nn.Module):
    """SphereFace, CosFace or ArcFace: cross-entropy of scaled cosines, the right one lowered by a margin.

    Computed in float32 whatever autocast says. That isn't only for precision: the losses of pytorch-metric-learning
    turn their own parameter, for good, into the type of the features that they are given.
    """

    def __init__(self, config: HeadConfig, identities: int, dim: int) -> None:
        super().__init__()
        self.loss = margin_loss(config, identities, dim)
        nn.init.normal_(self.loss.W, std=INITIAL_STD[config.kind])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D], not normalised; a view of the parameter, which is held as [D, N]."""
        rows: Tensor = self.loss.W.T
        return rows

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            loss: Tensor = self.loss(features, labels)
            with torch.no_grad():
                best: Tensor = self.loss.get_cosine(features).argmax(dim=1)
            return loss, best


def margin_loss(config: HeadConfig, identities: int, dim: int) -> losses.LargeMarginSoftmaxLoss:
    """The library's loss of a head that has a margin."""
    margin, scale = config.resolved(identities)
    common = {"num_classes": identities, "embedding_size": dim, "scale": scale}
    if config.kind == "cosface":
        return losses.CosFaceLoss(margin=margin, **common)
    if config.kind == "arcface":
        return _SafeArcFaceLoss(margin=math.degrees(margin), **common)
    with warnings.catch_warnings():
        # It gives Tensors to a SciPy ufunc, which NumPy 2 dislikes.
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        return losses.SphereFaceLoss(margin=margin, **common)


class BatchHardTriplet(nn.Module):
    """Mean over anchors of max(0, margin + d(anchor, farthest positive) - d(anchor, nearest negative)).

    d is Euclidean, of features that are not normalised. Anchors without a positive or a negative in the batch are
    left out of the mean; with none left the loss is 0. With a group the batch is that of all ranks together, whose features
    [b, D] are gathered; every rank gets the same loss.
    """

    def __init__(self, margin: float, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group
        distance = distances.LpDistance(normalize_embeddings=False)
        self.miner = miners.BatchHardMiner(distance=distance)
        self.loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=reducers.MeanReducer())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features, labels = gather(features.float(), self.group, partial=False), gathered(labels, self.group)
            loss: Tensor = self.loss(features, labels, self.miner(features, labels))
            return loss
