"""Alignment of whole images and of regions by domain classifiers (Chen et al., "Domain Adaptive Faster R-CNN", CVPR 2018).

One classifier distinguishes the domains by each position of the feature maps, another one by the features of each region. The
detector gets their gradient with the opposite sign, so its features become those that the classifiers cannot distinguish. A third
loss makes both say the same of a region and of its image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.tasks.detection.detector import Regions

SOURCE, TARGET = 1.0, 0.0  # labels


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None


def scaled_gradient(features: Tensor, factor: Tensor) -> Tensor:
    """The features; their gradient is multiplied by ``factor``. Below 0 it is the gradient reversal layer (Ganin and Lempitsky,
    "Unsupervised Domain Adaptation by Backpropagation", ICML 2015)."""
    scaled: Tensor = _ScaledGradient.apply(features, factor)
    return scaled


class DomainClassifiers(nn.Module):
    """``of_position``: maps [B, C, h, w] -> logits [B, 1, h, w]; ``of_region``: features [R, F] -> logits [R, 1]. A logit above 0
    means the source.

    All levels of a feature pyramid share one classifier.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.of_position = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1))
        layers = [nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 1)]
        self.of_region = nn.Sequential(*layers)


def domain_terms(classifiers: DomainClassifiers, source: Regions, target: Regions, strength: Tensor) -> dict[str, Tensor]:
    """The losses "domain_image", "domain_region" and "domain_consistency", each a mean over the images of both domains.

    The classifiers learn from them as they are. What the detector gets is ``strength`` times their gradient: reversed for the
    first two, as it is for the consistency.
    """
    parts = [_losses(classifiers, regions, label, strength) for regions, label in ((source, SOURCE), (target, TARGET))]
    names = ("domain_image", "domain_region", "domain_consistency")
    return {name: torch.cat(losses).mean() for name, losses in zip(names, zip(*parts, strict=True), strict=True)}


def _losses(
    classifiers: DomainClassifiers, regions: Regions, label: float, strength: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The three losses of B images of a domain, each [B]."""
    counts = [len(boxes) for boxes in regions.boxes]

    def logits(factor: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = [classifiers.of_position(scaled_gradient(level, factor)).flatten(1) for level in regions.maps]
        return maps, classifiers.of_region(scaled_gradient(regions.features, factor))[:, 0]

    of_positions, of_regions = logits(-strength)
    of_image = torch.stack([_cross_entropy(level, label).mean(dim=1) for level in of_positions]).mean(dim=0)
    of_region = _means(_cross_entropy(of_regions, label), counts)

    of_positions, of_regions = logits(strength)
    image = torch.stack([torch.sigmoid(level).mean(dim=1) for level in of_positions]).mean(dim=0)
    each = image.repeat_interleave(torch.tensor(counts, device=image.device))
    return of_image, of_region, _means((each - torch.sigmoid(of_regions)).abs(), counts)


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def _means(values: Tensor, counts: list[int]) -> Tensor:
    """The mean of each image's values: [sum of counts] -> [B]; 0 for an image without any."""
    return torch.stack([own.sum() / max(len(own), 1) for own in torch.split(values, counts)])
