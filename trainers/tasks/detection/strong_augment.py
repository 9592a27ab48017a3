"""Strong augmentation: changes colours, blurs, and erases parts of images; boxes stay where they are.

Random numbers come from torch's global generator, which the training loop seeds at every step.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.1), ratio=(0.3, 3.3), value=[124, 116, 104]),
    ]
)  # as in Unbiased Teacher (Liu et al., ICLR 2021), with fewer erasures


def strong_views(images: Tensor) -> Tensor:
    """Augment each of the images uint8 [B, 3, H, W] differently."""
    return torch.stack([STRONG(image) for image in images])
