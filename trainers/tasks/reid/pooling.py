"""How a backbone's last feature map [B, C, h, w] becomes one vector [B, F]."""

from typing import Literal

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.backbones import build_backbone, build_map_backbone
from trainers.tasks.timm_models import Size, class_token, is_timm

Pooling = Literal["own", "average", "gem", "stripes", "token"]


class Average(nn.Module):
    """Maps [B, C, h, w] -> their means [B, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class GeM(nn.Module):
    """Generalised mean [B, C] of maps [B, C, h, w]: the p-th root of the mean of p-th powers, with one learned p.

    p = 1 is the mean, p -> infinity the maximum. Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019, where p starts at 3 and values below 1e-6 are raised to it.
    """

    SMALLEST = 1e-6

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, maps: Tensor) -> Tensor:
        pooled: Tensor = maps.float().clamp(min=self.SMALLEST).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)
        return pooled


class Stripes(nn.Module):
    """Maps [B, C, h, w] -> the means of ``parts`` horizontal stripes, from top to bottom: [B, parts * C].

    The pooling of PCB (Sun et al., "Beyond Part Models", ECCV 2018). PCB has a classifier for each stripe; here one linear layer
    maps all stripes to the features. Where ``parts`` does not divide h, the first stripes are one row higher.
    Raises ValueError if the map has fewer rows than stripes.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[2] < self.parts:
            raise ValueError(f"{self.parts} stripes of a feature map of {maps.shape[2]} rows: lower --model.parts")
        return torch.cat([stripe.mean(dim=(2, 3)) for stripe in maps.tensor_split(self.parts, dim=2)], dim=1)


def build_pooled(
    name: str, weights: str, last_stride: Literal[1, 2], size: Size | None, pooling: Pooling, parts: int
) -> tuple[nn.Module, int]:
    """A module that maps normalised images [B, 3, H, W] to features [B, F], and F.

    Raises:
        InputError: as `build_backbone`, or the backbone has no feature map or no class token to pool.
    """
    if pooling == "own":
        return build_backbone(name, weights, last_stride, size)
    if pooling == "token":
        if not is_timm(name):
            raise InputError("the backbone has no class token", name, "choose a vision transformer of timm, or another pooling")
        backbone, features = build_backbone(name, weights, last_stride, size)
        return class_token(backbone, name), features
    backbone, channels = build_map_backbone(name, weights, last_stride, size)
    pool: nn.Module = Average() if pooling == "average" else GeM() if pooling == "gem" else Stripes(parts)
    return nn.Sequential(backbone, pool), channels * (parts if pooling == "stripes" else 1)
