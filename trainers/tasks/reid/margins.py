"""Margin heads and the batch-hard triplet loss, from pytorch-metric-learning. B batch, N identities, D features.

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
        # The library clamps to -1..1, where acos has an infinite slope; before PyTorch 2.15 clamp passes that gradient on.
        step = torch.finfo(torch.float32).eps
        return torch.acos(cosine.clamp(-1 + step, 1 - step))


class Margin(nn.Module):
    """SphereFace, CosFace or ArcFace: cross-entropy of scaled cosines, that of the true identity lowered by a margin.

    Always computed in float32, also under autocast: pytorch-metric-learning's losses convert their own parameter, permanently, to
    the dtype of the features that they get.
    """

    def __init__(self, config: HeadConfig, identities: int, dim: int) -> None:
        super().__init__()
        self.loss = margin_loss(config, identities, dim)
        nn.init.normal_(self.loss.W, std=INITIAL_STD[config.kind])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D], not normalised: a view of the parameter, which is stored as [D, N]."""
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
    """pytorch-metric-learning's loss for a head with a margin."""
    margin, scale = config.resolved(identities)
    common = {"num_classes": identities, "embedding_size": dim, "scale": scale}
    if config.kind == "cosface":
        return losses.CosFaceLoss(margin=margin, **common)
    if config.kind == "arcface":
        return _SafeArcFaceLoss(margin=math.degrees(margin), **common)
    with warnings.catch_warnings():
        # It passes Tensors to a SciPy ufunc, which NumPy 2 warns of.
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        return losses.SphereFaceLoss(margin=margin, **common)


class BatchHardTriplet(nn.Module):
    """Mean over anchors of max(0, margin + d(anchor, farthest positive) - d(anchor, nearest negative)).

    d is the Euclidean distance of features that are not normalised. The mean leaves out anchors without a positive or a negative;
    without any anchor the loss is 0. With a group, the features [b, D] of all ranks are gathered to one batch, and every rank
    gets the same loss.
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
