"""Models as a user would bring them: package.module:function, found on PYTHONPATH, built of torch alone."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """Images [B, 3, H, W] -> features [B, 12]; nothing in it has the names that torchvision's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e9:  # code that torch.fx cannot trace
            x = x * 0
        return self.two(self.one(x)).mean(dim=(2, 3))  # type: ignore[no-any-return]


class Untraced(Backbone):
    """The same without a branch on data, which no exporter takes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).mean(dim=(2, 3))  # type: ignore[no-any-return]


def backbone(weights: str = "") -> nn.Module:
    """``weights`` "ones": all weights are 1."""
    model = Backbone()
    if weights == "ones":
        for parameter in model.parameters():
            nn.init.ones_(parameter)
    return model


def exportable() -> nn.Module:
    return Untraced()


def one_map() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())


class Pyramid(nn.Module):
    """Images -> maps of 1/4 and 1/8, with 8 channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x).relu()
        return OrderedDict(fine=fine, coarse=self.coarse(fine).relu())


def pyramid() -> nn.Module:
    return Pyramid()


class Clips(nn.Module):
    """Clips [B, 3, L, H, W] -> logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv3d(3, 6, 3, (1, 2, 2), 1), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean(dim=(2, 3, 4)))  # type: ignore[no-any-return]


def clips(num_classes: int) -> nn.Module:
    return Clips(num_classes)


def four_logits(num_classes: int) -> nn.Module:
    """As one who forgot to set the number of classes."""
    return Clips(num_classes + 4)


class Fixed(nn.Module):
    """Takes images of 32x32 alone, and has no feature maps."""

    def __init__(self, features: int | None) -> None:
        super().__init__()
        if features is not None:
            self.num_features = features
        self.fc = nn.Linear(3 * 32 * 32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def fixed() -> nn.Module:
    return Fixed(7)


def fixed_and_silent() -> nn.Module:
    return Fixed(None)


def fixed_and_wrong() -> nn.Module:
    return Fixed(9)


class Idle(Backbone):
    """Holds a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


def idle() -> nn.Module:
    return Idle()


def a_list() -> Any:
    return [1, 2]


def two_outputs() -> nn.Module:
    class Two(Untraced):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), torch.zeros(1)

    return Two()


not_a_function = 3


def fixed_clips(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, num_classes))
