"""1D convolutions over the distances between joints and over the joints' motion at two speeds: DD-Net (Yang et al., "Make
Skeleton-based Action Recognition Model Smaller, Faster and Better", ACM Multimedia Asia 2019), in torchvision's registry."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.torch_compat import register_model

FILTERS = 64  # of the paper's first layers


class SkeletonCNN(nn.Module):
    """Joints [B, T, J, D], float -> logits [B, classes]. T must be at least 8, since time is halved three times.

    What is computed of the joints does not depend on their place; distances are divided by their mean over the clip.
    """

    def __init__(self, num_classes: int, joints: tuple[int, int], *, width: int = FILTERS, dropout: float = 0.5) -> None:
        super().__init__()
        count, dimensions = joints
        self.register_buffer("pairs", torch.triu_indices(count, count, offset=1), persistent=False)
        self.pairs: Tensor
        self.distances = _branch(self.pairs.shape[1], width, halve=True)
        self.slow = _branch(count * dimensions, width, halve=True)
        self.fast = _branch(count * dimensions, width, halve=False)
        layers: list[nn.Module] = []
        inputs = 3 * width
        for number, factor in enumerate((2, 4, 8)):
            layers += [nn.MaxPool1d(2)] if number else []
            layers += [*_block(inputs, factor * width, 3), *_block(factor * width, factor * width, 3), nn.Dropout1d(0.1)]
            inputs = factor * width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(*_hidden(inputs, 128, dropout), *_hidden(128, 128, dropout), nn.Linear(128, num_classes))

    def forward(self, joints: Tensor) -> Tensor:
        time = joints.shape[1]
        between = torch.linalg.vector_norm(joints[:, :, self.pairs[0]] - joints[:, :, self.pairs[1]], dim=3)  # [B, T, P]
        scale = between.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        places = joints.flatten(2) / scale
        slow = F.pad((places[:, 1:] - places[:, :-1]).transpose(1, 2), (0, 1))  # [B, J D, T]
        every = places[:, ::2]
        fast = F.pad((every[:, 1:] - every[:, :-1]).transpose(1, 2), (0, 1))[..., : time // 2]
        found = [self.distances((between / scale - 1).transpose(1, 2)), self.slow(slow), self.fast(fast)]  # [B, W, T / 2] each
        logits: Tensor = self.head(self.layers(torch.cat(found, dim=1)).amax(dim=2))
        return logits


def _block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.2)]


def _branch(inputs: int, width: int, *, halve: bool) -> nn.Sequential:
    """Features of each frame with its neighbours; ``halve``: of two frames together."""
    layers = [*_block(inputs, 2 * width, 1), nn.Dropout1d(0.1), *_block(2 * width, width, 3), nn.Dropout1d(0.1)]
    layers += _block(width, width, 1)
    return nn.Sequential(*layers, *([nn.MaxPool1d(2)] if halve else []), nn.Dropout1d(0.1))


def _hidden(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.2), nn.Dropout(dropout)]


@register_model
def skeleton_cnn(
    *, weights: None = None, num_classes: int = 14, joints: tuple[int, int] = (15, 2), width: int = FILTERS, dropout: float = 0.5
) -> SkeletonCNN:  # fmt: skip
    """Build a network for skeletons of (J, D) ``joints``; raises InputError for any ``weights``."""
    if weights is not None:
        raise InputError("model skeleton_cnn has no weights of this name", str(weights))
    return SkeletonCNN(num_classes, joints, width=width, dropout=dropout)
