"""Margin heads, from pytorch-metric-learning; it has no AdaFace. B batch, N identities, K centres of each, D features.

Sources: SphereFace (Liu et al., CVPR 2017); CosFace (Wang et al., CVPR 2018); ArcFace (Deng et al., CVPR 2019); Sub-center
ArcFace (Deng et al., ECCV 2020); AdaFace (Kim et al., CVPR 2022).
"""

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_metric_learning import losses
from torch import Tensor, nn

from trainers.engine.distributed import gathered
from trainers.tasks.reid.class_filter import filtered
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig


class _SafeArcFaceLoss(losses.ArcFaceLoss):
    def get_angles(self, cosine: Tensor) -> Tensor:
        # The library clamps to -1..1, where acos has an infinite slope; before PyTorch 2.15 clamp passes that gradient on.
        step = torch.finfo(torch.float32).eps
        return torch.acos(cosine.clamp(-1 + step, 1 - step))


class _SafeSubCentreArcFaceLoss(_SafeArcFaceLoss, losses.SubCenterArcFaceLoss):
    pass


class _SubCentreCosFaceLoss(losses.CosFaceLoss):
    def __init__(self, num_classes: int, sub_centers: int, **how: Any) -> None:
        super().__init__(num_classes=num_classes * sub_centers, **how)
        self.num_classes, self.sub_centers = num_classes, sub_centers

    get_cosine = losses.SubCenterArcFaceLoss.get_cosine


class Margin(nn.Module):
    """SphereFace, CosFace or ArcFace: cross-entropy of scaled cosines, that of the true identity lowered by a margin.

    With several centres an identity's cosine is that of its nearest centre.
    ``threshold``: of `trainers.tasks.reid.class_filter.filtered`; `ReidTask.prepare` sets it.
    Always computed in float32, also under autocast: pytorch-metric-learning's losses convert their own parameter, permanently, to
    the dtype of the features that they get.
    """

    threshold: float | None

    def __init__(self, config: HeadConfig, identities: int, dim: int) -> None:
        super().__init__()
        self.loss, self.centres, self.threshold = margin_loss(config, identities, dim), config.centres, config.filter
        self.loss.cross_entropy.label_smoothing = config.smoothing
        nn.init.normal_(self.loss.W, std=INITIAL_STD[config.kind])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D], not normalised: a view of the parameter, which is stored as [D, N]; the sum of an identity's centres.

        A centre becomes longer with training, so in the sum those of few samples count less.
        """
        rows: Tensor = self.loss.W.T
        return rows if self.centres == 1 else rows.view(-1, self.centres, rows.shape[1]).sum(dim=1)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            loss: Tensor = self.loss(features, labels) if self.threshold is None else self._filtered_loss(features, labels)
            with torch.no_grad():
                best: Tensor = self.loss.get_cosine(features).argmax(dim=1)
            return loss, best

    def _filtered_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        cosines = self.loss.get_cosine(features)
        own = torch.arange(len(labels), device=labels.device), labels
        lowered = self.loss.modify_cosine_of_target_classes(cosines[own]).float()
        logits = self.loss.scale_logits(filtered(cosines, own, self.threshold).index_put(own, lowered), features)
        loss: Tensor = self.loss.cross_entropy(logits, labels).mean()
        return loss


def margin_loss(config: HeadConfig, identities: int, dim: int) -> losses.LargeMarginSoftmaxLoss:
    """pytorch-metric-learning's loss for a head with a margin."""
    margin, scale = config.resolved(identities)
    common: dict[str, Any] = {"num_classes": identities, "embedding_size": dim, "scale": scale}
    several: dict[str, Any] = {"sub_centers": config.centres} if config.centres > 1 else {}
    if config.kind == "cosface":
        cosface = _SubCentreCosFaceLoss if several else losses.CosFaceLoss
        return cosface(margin=margin, **common, **several)
    if config.kind == "arcface":
        arcface = _SafeSubCentreArcFaceLoss if several else _SafeArcFaceLoss
        return arcface(margin=math.degrees(margin), **common, **several)
    with warnings.catch_warnings():
        # It passes Tensors to a SciPy ufunc, which NumPy 2 warns of.
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        return losses.SphereFaceLoss(margin=margin, **common)


class AdaFaceMargin(nn.Module):
    """The margin of AdaFace: how far the cosine of the own identity is lowered depends on the length of a sample's features.

    The length stands for the image's quality. Where it is above the mean, hard samples weigh more; where it is below, easy ones.
    ``mean`` and ``deviation`` of the lengths are moving averages over the batches, and begin at the authors' values.
    """

    RATE, CONCENTRATION, EPS = 0.01, 0.333, 1e-3  # t_alpha, h and eps of the authors' code; h is also the paper's

    mean: Tensor
    deviation: Tensor

    def __init__(self, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def quality(self, features: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The length of each sample's features [b, D] relative to the mean, in -1..1 [b], without gradient.

        In training the lengths on all ranks of ``group`` first enter mean and deviation, which so are equal on all ranks.
        """
        lengths = features.detach().norm(dim=1).clamp(1e-3, 100)
        if self.training:
            every = gathered(lengths, group)
            self.mean.lerp_(every.mean(), self.RATE)
            self.deviation.lerp_(every.std(), self.RATE)
        relative: Tensor = (lengths - self.mean) / (self.deviation + self.EPS)
        return (self.CONCENTRATION * relative).clamp(-1, 1)

    def forward(self, cosines: Tensor, quality: Tensor) -> Tensor:
        """The cosines of samples to their own identities [b], lowered by the margin."""
        angles = torch.acos(cosines.clamp(-1 + self.EPS, 1 - self.EPS)) - self.margin * quality
        return torch.cos(angles.clamp(self.EPS, math.pi - self.EPS)) - self.margin * (1 + quality)

    def scale_logits(self, logits: Tensor, *_: Tensor) -> Tensor:
        """Cosines as logits; called as that of pytorch-metric-learning's losses."""
        return logits * self.scale


class AdaFace(nn.Module):
    """AdaFace: cross-entropy of scaled cosines, that of the true identity lowered by an `AdaFaceMargin`.

    ``group``: the ranks whose features its mean and deviation are taken from. ``threshold``: as in `Margin`.
    """

    threshold: float | None

    def __init__(self, config: HeadConfig, identities: int, dim: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.margin, self.group, self.smoothing = AdaFaceMargin(*config.resolved(identities)), group, config.smoothing
        self.threshold = config.filter
        self.weight = nn.Parameter(torch.empty(identities, dim))
        nn.init.normal_(self.weight, std=INITIAL_STD[config.kind])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D], not normalised."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            cosines = F.linear(F.normalize(features), F.normalize(self.weight))
            own = torch.arange(len(labels), device=labels.device), labels
            lowered = self.margin(cosines[own], self.margin.quality(features, self.group))
            logits = self.margin.scale_logits(filtered(cosines, own, self.threshold).index_put(own, lowered))
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing), cosines.detach().argmax(dim=1)
