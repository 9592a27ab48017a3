"""Motion: frames shown with their difference from those before, which differs less from person to person than the picture.

B videos, T frames.
"""

import torch
from torch import Tensor, nn

MIDDLE = 128.0  # a difference of zero, as a grey level
CONTRAST = 2.0  # by which differences are enlarged, as they are small


class Motion(nn.Module):
    """Frames uint8 RGB [B, T, H, W, 3] -> float [B, T, H, W, 3]: brightness, its change since the frame before, its difference
    from the mean of the frames so far. The state, with which a video may come in chunks: the last frame, the sum of the frames,
    and their number."""

    def forward(self, frames: Tensor, state: tuple[Tensor, Tensor, int] | None) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
        grey = frames.float().mean(dim=4)
        last, total, count = state or (grey[:, :1], torch.zeros_like(grey[:, :1]), 0)
        totals = total + grey.cumsum(dim=1)
        numbers = torch.arange(count + 1, count + 1 + grey.shape[1], device=grey.device)
        change = grey - torch.cat([last, grey[:, :-1]], dim=1)
        off = grey - totals / numbers[:, None, None]
        shown = torch.stack([grey, MIDDLE + CONTRAST * change, MIDDLE + CONTRAST * off], dim=4)
        return shown, (grey[:, -1:], totals[:, -1:], count + grey.shape[1])
