"""Margin heads, from pytorch-metric-learning. B batch, N identities, D features.

Sources: SphereFace (Liu et al., CVPR 2017); CosFace (Wang et al., CVPR 2018); ArcFace (Deng et al., CVPR 2019).
"""

import math
import warnings

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

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
        self.loss.cross_entropy.label_smoothing = config.smoothing
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
