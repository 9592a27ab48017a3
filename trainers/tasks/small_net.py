"""Our own small CNNs, for small images on a CPU: the default backbone, and the one before it, which older runs have."""

from typing import Any

from torch import Tensor, nn

OLD, SMALL = "hardshard_small", "hardshard_small_v2"


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class _Stage(nn.Module):
    """A convolution of stride 2, then residual ones: [B, inputs, H, W] -> [B, outputs, H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int, residuals: int) -> None:
        super().__init__()
        self.halve = _conv(inputs, outputs, stride=2)
        self.residuals = nn.ModuleList(_conv(outputs, outputs, stride=1) for _ in range(residuals))

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x).relu_()
        for residual in self.residuals:
            x = (residual(x) + x).relu_()
        return x


class SmallNet(nn.Module):
    """A four-stage residual network of about 0.3M parameters, for glyphs and small person crops on a CPU.

    Images [B, 3, H, W], H and W at least 16 -> scores [B, classes], or features [B, 128 * grid * grid] if ``num_classes`` is 0.
    The last map is 1/16 of the image's height and width, with 128 channels; it is averaged in a grid of ``grid`` x ``grid``
    cells. The grid keeps where a feature lies: with it, 4,355 kanji end at 85.0% mAP instead of 78.1% (docs/claims.md).
    ``residuals``: convolutions of each stage after its first.
    """

    def __init__(self, num_classes: int = 1000, *, residuals: tuple[int, ...] = (0, 0, 1, 1), grid: int = 3) -> None:
        super().__init__()
        channels = (3, 16, 32, 64, 128)
        self.stages = nn.Sequential(*map(_Stage, channels[:-1], channels[1:], residuals))
        self.pool = nn.AdaptiveAvgPool2d(grid)
        features = channels[-1] * grid**2
        self.fc = nn.Linear(features, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.stages(x)).flatten(1)
        scores: Tensor = self.fc(pooled)
        return scores


def small_net(name: str, num_classes: int = 1000) -> SmallNet:
    """The network of a name: `SMALL`, or `OLD`, which has both residual convolutions in its last stage and averages its map."""
    return SmallNet(num_classes) if name == SMALL else SmallNet(num_classes, residuals=(0, 0, 0, 2), grid=1)


def with_full_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings of a model in today's form: in those of earlier versions, "small" was the old network."""
    return {**settings, "backbone": OLD} if settings.get("backbone") == "small" else settings
