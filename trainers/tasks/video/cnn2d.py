"""The nets of two-stream networks (Simonyan and Zisserman, NeurIPS 2014): 2D backbones on RGB or flow, in the registry."""

from typing import cast

import torch
from torch import Tensor, nn

from trainers.tasks.backbones import build_backbone
from trainers.tasks.small_net import SMALL
from trainers.tasks.timm_models import Size
from trainers.torch_compat import register_model

FLOW = 2  # channels of a frame of flow


class CNN2D(nn.Module):
    """Clips [B, C, T, H, W], float, normalised for the backbone -> logits [B, classes].

    The spatial net (C = 3) takes each frame as an image, and returns the mean of the frames' logits. The temporal net (C = 2)
    takes the flow of all frames as the channels of one image. Raises InputError as `build_backbone` does.
    """

    def __init__(
        self, num_classes: int, *, channels: int, frames: int, backbone: str, weights: str, dropout: float,
        size: Size | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stacked = channels == FLOW
        self.backbone, features = build_backbone(backbone, weights, size=size)
        if self.stacked:
            widen_first(self.backbone, channels * frames, keep=bool(weights))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        if self.stacked:
            images = clips.transpose(1, 2).flatten(1, 2)  # [B, T C, H, W]: x and y of each frame in turn
            return cast(Tensor, self.fc(self.dropout(self.backbone(images))))
        features = self.backbone(clips.transpose(1, 2).flatten(0, 1))  # [B T, F]
        return cast(Tensor, self.fc(self.dropout(features)).unflatten(0, (len(clips), -1)).mean(dim=1))


def widen_first(backbone: nn.Module, channels: int, *, keep: bool) -> None:
    """Replace the first convolution by one of so many channels, with random weights.

    ``keep``: instead each with the mean of the old kernel over its channels, scaled so that an input of equal channels gives the
    same output (Wang et al., "Temporal Segment Networks", ECCV 2016).
    """
    name, first = next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    wide = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )  # fmt: skip
    if keep:
        mean = first.weight.mean(dim=1, keepdim=True) * (first.weight.shape[1] / channels)
        with torch.no_grad():
            wide.weight.copy_(mean.expand(-1, channels, -1, -1))
            if first.bias is not None:
                wide.bias.copy_(first.bias)  # type: ignore[union-attr]
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, wide)


@register_model
def cnn2d(
    *, weights: str | None = None, num_classes: int = 101, channels: int = 3, frames: int = 16, backbone: str = SMALL,
    dropout: float = 0.5, size: Size | None = None,
) -> CNN2D:  # fmt: skip
    """Build the spatial or the temporal net; ``weights`` and ``size``: the backbone's, as of `build_backbone`."""
    return CNN2D(
        num_classes, channels=channels, frames=frames, backbone=backbone, weights=weights or "", dropout=dropout, size=size
    )
