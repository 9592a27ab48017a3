"""Builds the classification head over identities, and the softmax head; those with a margin are in `trainers.tasks.reid.margins`.

Shapes: B batch, N identities, D features. A head holds one row per identity, W0 [N, D]; difficulty is computed from these rows.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig

if TYPE_CHECKING:
    from trainers.tasks.reid.margins import AdaFace, Margin


class Softmax(nn.Module):
    """Cross-entropy of W0 x. It has no bias, so the row alone represents its identity."""

    def __init__(self, identities: int, dim: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.weight = nn.Parameter(torch.empty(identities, dim))
        nn.init.normal_(self.weight, std=INITIAL_STD["softmax"])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D]."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            logits = F.linear(features.float(), self.weight)
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing), logits.detach().argmax(dim=1)


def build_head(
    config: HeadConfig, identities: int, dim: int, group: dist.ProcessGroup | None = None
) -> "Softmax | Margin | AdaFace":
    """Build a head. Its ``rows`` are W0 [N, D]; raises InputError for fewer than two identities.

    ``group``: the ranks whose features AdaFace takes its mean and deviation from.
    forward(features [B, D], labels [B]) -> (mean loss, predicted identities [B]: those with the highest score without margin).
    """
    if identities < 2:
        raise InputError("a classifier needs at least two identities", str(identities))
    if config.kind == "softmax":
        return Softmax(identities, dim, config.smoothing)
    from trainers.tasks.reid.margins import AdaFace, Margin  # here: it imports SciPy, which takes 0.6 s

    return AdaFace(config, identities, dim, group) if config.kind == "adaface" else Margin(config, identities, dim)
