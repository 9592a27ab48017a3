"""C3D (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015), alone and with an LSTM over
the features of several clips, in torchvision's registry."""

from torch import Tensor, nn

from datasets.errors import InputError
from trainers.torch_compat import register_model

WIDTH = 64  # channels of the paper's first convolution
STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # widths of the convolutions before each pooling, as multiples of the first


class C3D(nn.Module):
    """Clips [B, C, T, H, W], float -> logits [B, classes]. At the paper's width, 3x16x112x112: 78.4M parameters for 101 classes.

    ``batch_norm``: after each convolution; the paper has none, and without it a network from random weights hardly learns.
    Raises InputError when ``frames`` or ``size`` are too small for five poolings.
    """

    def __init__(
        self, num_classes: int = 487, *, width: int = WIDTH, channels: int = 3, frames: int = 16,
        size: tuple[int, int] = (112, 112), dropout: float = 0.5, batch_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        stages: list[nn.Module] = []
        time, (height, wide), inputs = frames, size, channels
        for number, factors in enumerate(STAGES):
            layers: list[nn.Module] = []
            for factor in factors:
                norm = [nn.BatchNorm3d(factor * width)] if batch_norm else []
                layers += [nn.Conv3d(inputs, factor * width, 3, padding=1), *norm, nn.ReLU(inplace=True)]
                inputs = factor * width
            stride, last = 1 if number == 0 else 2, int(number == len(STAGES) - 1)
            layers.append(nn.MaxPool3d((stride, 2, 2), padding=(0, last, last)))
            time, height, wide = time // stride, (height + 2 * last) // 2, (wide + 2 * last) // 2
            stages.append(nn.Sequential(*layers))
        if min(time, height, wide) < 1:
            what = f"clips of {frames} frames of {size[0]}x{size[1]} are too small for C3D"
            raise InputError(what, "clip", "give 16 frames or more, of 16 pixels or more")
        self.stages = nn.Sequential(*stages)
        self.features = 64 * width

        def hidden(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, self.features), nn.ReLU(inplace=True), nn.Dropout(dropout)]

        self.head = nn.Sequential(
            *hidden(inputs * time * height * wide), *hidden(self.features), nn.Linear(self.features, num_classes)
        )
        for module in self.modules():  # without batch norm the signal would vanish with torch's default initialisation
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head[-1].weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(clips).flatten(1))
        return logits


class C3DLSTM(nn.Module):
    """Clips [B, C, T, H, W], float -> logits [B, classes] of the mean over the outputs of an LSTM, which runs over C3D's features
    of parts of `PART` frames, one every `STEP` frames. Raises InputError as `C3D` does, or where T is below `PART`."""

    PART, STEP = 16, 8

    def __init__(
        self, num_classes: int, *, width: int, channels: int, size: tuple[int, int], hidden: int, dropout: float, batch_norm: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.c3d = C3D(1, width=width, channels=channels, frames=self.PART, size=size, dropout=dropout, batch_norm=batch_norm)
        self.c3d.head = self.c3d.head[: len(self.c3d.head) // 2]  # up to the first hidden layer's dropout
        self.lstm = nn.LSTM(self.c3d.features, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        parts = clips.unfold(2, self.PART, self.STEP).movedim(-1, 3)  # [B, C, N, PART, H, W]
        features = self.c3d(parts.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1))  # [B, N, F]
        outputs, _ = self.lstm(features)
        logits: Tensor = self.fc(outputs.mean(dim=1))
        return logits


@register_model
def c3d(
    *, weights: None = None, num_classes: int = 487, width: int = WIDTH, channels: int = 3, frames: int = 16,
    size: tuple[int, int] = (112, 112), dropout: float = 0.5, batch_norm: bool = False,
) -> C3D:  # fmt: skip
    """Build a C3D; raises InputError for any ``weights``: the registry passes the argument, but there are none."""
    _no_weights("c3d", weights)
    return C3D(num_classes, width=width, channels=channels, frames=frames, size=size, dropout=dropout, batch_norm=batch_norm)


@register_model
def c3d_lstm(
    *, weights: None = None, num_classes: int = 101, width: int = WIDTH, channels: int = 3, size: tuple[int, int] = (112, 112),
    hidden: int = 256, dropout: float = 0.5, batch_norm: bool = False,
) -> C3DLSTM:  # fmt: skip
    """Build a C3D with an LSTM; raises InputError for any ``weights``."""
    _no_weights("c3d_lstm", weights)
    return C3DLSTM(num_classes, width=width, channels=channels, size=size, hidden=hidden, dropout=dropout, batch_norm=batch_norm)


def _no_weights(name: str, weights: None) -> None:
    if weights is not None:
        raise InputError(f"model {name} has no weights of this name", str(weights))
