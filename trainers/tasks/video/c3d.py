"""C3D (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015), in torchvision's registry."""

from torch import Tensor, nn

from datasets.errors import InputError
from trainers.torch_compat import register_model

WIDTH = 64  # channels of the paper's first convolution
STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # widths of the convolutions before each pooling, as multiples of the first


class C3D(nn.Module):
    """Clips [B, C, T, H, W], float -> logits [B, classes]. At the paper's width, 3x16x112x112: 78.4M parameters for 101 classes.

    Raises InputError when ``frames`` or ``size`` are too small for five poolings.
    """

    def __init__(
        self, num_classes: int = 487, *, width: int = WIDTH, channels: int = 3, frames: int = 16,
        size: tuple[int, int] = (112, 112), dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        stages: list[nn.Module] = []
        time, (height, wide), inputs = frames, size, channels
        for number, factors in enumerate(STAGES):
            layers: list[nn.Module] = []
            for factor in factors:
                layers += [nn.Conv3d(inputs, factor * width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = factor * width
            stride, last = 1 if number == 0 else 2, int(number == len(STAGES) - 1)
            layers.append(nn.MaxPool3d((stride, 2, 2), padding=(0, last, last)))
            time, height, wide = time // stride, (height + 2 * last) // 2, (wide + 2 * last) // 2
            stages.append(nn.Sequential(*layers))
        if min(time, height, wide) < 1:
            what = f"clips of {frames} frames of {size[0]}x{size[1]} are too small for C3D"
            raise InputError(what, "clip", "give 16 frames or more, of 16 pixels or more")
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.Linear(inputs * time * height * wide, 64 * width), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(64 * width, 64 * width), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(64 * width, num_classes),
        )  # fmt: skip
        for module in self.modules():  # without batch norm the signal would vanish with torch's default initialisation
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head[-1].weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(clips).flatten(1))
        return logits


@register_model
def c3d(
    *, weights: None = None, num_classes: int = 487, width: int = WIDTH, channels: int = 3, frames: int = 16,
    size: tuple[int, int] = (112, 112), dropout: float = 0.5,
) -> C3D:  # fmt: skip
    """Build a C3D; raises InputError for any ``weights``: the registry passes the argument, but there are none."""
    if weights is not None:
        raise InputError("model c3d has no weights of this name", str(weights))
    return C3D(num_classes, width=width, channels=channels, frames=frames, size=size, dropout=dropout)
