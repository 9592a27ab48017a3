"""Inception-I3D (Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017), in torchvision's registry, and inflation.

Clips [B, C, T, H, W], float in -1..1. The channels are GoogLeNet's, the layers 3D, the padding TensorFlow's "SAME", as published.
A model that is inflated from torchvision's GoogLeNet pads height and width as GoogLeNet does ("flat"): at 224 pixels "SAME" would
shift the image by one pixel, and the features of a still video would differ from those of its frame (by 32% of their norm, for
noise and random weights).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.googlenet import BasicConv2d

from datasets.errors import InputError
from trainers.torch_compat import register_model

WIDTH = 64  # channels of the paper's first convolution
Plan = tuple[int, int, int, int, int, int]  # [1^3 a] || [1^3 b -> 3^3 c] || [1^3 d -> 3^3 e] || [max 3^3 -> 1^3 f]
PLANS: dict[str, Plan] = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
Three = tuple[int, int, int]


def same_padding(size: tuple[int, ...], kernel: Three, stride: Three) -> list[int]:
    """TensorFlow's "SAME" padding for `torch.nn.functional.pad`: ceil(size / stride) outputs; an odd pixel goes to the end."""
    pads: list[int] = []
    for length, k, s in zip(reversed(size), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        pads += [total // 2, total - total // 2]
    return pads


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU: [B, inputs, T, H, W] -> [B, outputs, T/s, H/s, W/s], rounded up.

    Pads by "SAME"; ``flat``: height and width by half the kernel on both sides.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, flat: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.flat = (kernel,) * 3, (stride,) * 3, flat
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        pads = same_padding(tuple(x.shape[2:]), self.kernel, self.stride)
        if self.flat:
            pads[:4] = [self.kernel[1] // 2] * 4
        return F.relu(self.bn(self.conv(F.pad(x, pads))), inplace=True)


class Pool(nn.Module):
    """Max pooling with "SAME" padding; ``flat``: height and width are padded at the end only, to fill the last window."""

    def __init__(self, kernel: Three, stride: Three, *, flat: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.flat = kernel, stride, flat

    def forward(self, x: Tensor) -> Tensor:
        pads, k, s = same_padding(tuple(x.shape[2:]), self.kernel, self.stride), self.kernel[1], self.stride[1]
        if self.flat:
            ends = [-(length - k) % s if length > k else k - length for length in (x.shape[4], x.shape[3])]
            pads[:4] = [0, ends[0], 0, ends[1]]
        # Padding with 0 does not change a maximum: inputs are outputs of ReLUs.
        return F.max_pool3d(F.pad(x, pads), self.kernel, self.stride)


class Block(nn.Module):
    """An Inception block: four parallel branches, concatenated."""

    def __init__(self, inputs: int, plan: Plan) -> None:
        super().__init__()
        a, b, c, d, e, f = plan
        self.branches = nn.ModuleList([
            Unit(inputs, a, 1),
            nn.Sequential(Unit(inputs, b, 1), Unit(b, c, 3)),
            nn.Sequential(Unit(inputs, d, 1), Unit(d, e, 3)),
            nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, f, 1)),
        ])  # fmt: skip
        self.outputs = a + c + e + f

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class I3D(nn.Module):
    """Clips [B, C, T, H, W] -> logits [B, classes], averaged over time. 12.7M parameters for 400 classes at the paper's width.

    ``flat``: pad as torchvision's GoogLeNet does, which `inflate` needs.
    """

    def __init__(
        self, num_classes: int = 400, *, width: int = WIDTH, channels: int = 3, dropout: float = 0.5, flat: bool = False
    ) -> None:
        super().__init__()

        def scaled(count: int) -> int:
            return max(count * width // WIDTH, 1)

        stages: dict[str, nn.Module] = {
            "1a": Unit(channels, scaled(64), 7, 2, flat=flat), "pool2": Pool((1, 3, 3), (1, 2, 2), flat=flat),
            "2b": Unit(scaled(64), scaled(64), 1), "2c": Unit(scaled(64), scaled(192), 3),
            "pool3": Pool((1, 3, 3), (1, 2, 2), flat=flat),
        }  # fmt: skip
        inputs = scaled(192)
        pools = {"4b": Pool((3, 3, 3), (2, 2, 2), flat=flat), "5b": Pool((2, 2, 2), (2, 2, 2), flat=flat)}
        for name, (a, b, c, d, e, f) in PLANS.items():
            if name in pools:
                stages[f"pool{name[0]}"] = pools[name]
            block = Block(inputs, (scaled(a), scaled(b), scaled(c), scaled(d), scaled(e), scaled(f)))
            stages[name], inputs = block, block.outputs
        self.stages = nn.ModuleDict(stages)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv3d(inputs, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)

    def features(self, clips: Tensor) -> Tensor:
        """The last feature map [B, F, T/8, H/32, W/32], sides rounded up."""
        for stage in self.stages.values():
            clips = stage(clips)
        return clips

    def forward(self, clips: Tensor) -> Tensor:
        maps = self.features(clips)
        pooled = F.avg_pool3d(maps, (min(2, maps.shape[2]), maps.shape[3], maps.shape[4]), 1)  # 2x7x7 for clips of 224x224
        return self.classify(self.dropout(pooled)).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]


def inflate(flat: nn.Module, deep: I3D) -> None:
    """Initialise an I3D with torchvision's GoogLeNet: each 2D kernel is repeated N times along time and divided by N.

    So a video of one repeated frame has the features of that frame if the I3D pads ``flat``, except near the video's ends, which
    are padded with zeros. If the number of input channels is not 3 (flow), the first kernel is the mean over the colours.
    Raises InputError when the widths differ.
    """
    flats = [unit for name, unit in flat.named_modules() if isinstance(unit, BasicConv2d) and not name.startswith("aux")]
    units = [module for module in deep.modules() if isinstance(module, Unit)]
    for two, three in zip(flats, units, strict=True):
        kernel = two.conv.weight.detach()
        if kernel.shape[1] != three.conv.in_channels and two is flats[0]:
            kernel = kernel.mean(dim=1, keepdim=True).expand(-1, three.conv.in_channels, -1, -1) * 3 / three.conv.in_channels
        if kernel.shape[:2] != three.conv.weight.shape[:2]:
            what = f"a kernel of {list(kernel.shape)} cannot start one of {list(three.conv.weight.shape)}"
            raise InputError(what, "model.weights", f"pretrained weights need --model.width {WIDTH}")
        depth = three.kernel[0]
        three.conv.weight.data.copy_(kernel[:, :, None].expand(-1, -1, depth, -1, -1) / depth)
        three.bn.load_state_dict(two.bn.state_dict())


@register_model
def i3d(
    *, weights: str | None = None, num_classes: int = 400, width: int = WIDTH, channels: int = 3, dropout: float = 0.5,
    flat: bool = False,
) -> I3D:  # fmt: skip
    """Build an I3D; ``weights``: of torchvision's GoogLeNet, to inflate, such as "IMAGENET1K_V1"; ``flat``: pad as with such
    weights, without loading them."""
    model = I3D(num_classes, width=width, channels=channels, dropout=dropout, flat=flat or weights is not None)
    if weights is not None:
        inflate(models.get_model("googlenet", weights=weights), model)
    return model
