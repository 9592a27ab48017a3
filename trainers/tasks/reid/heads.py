"""Classification heads over identities: what they take, softmax, and how one is built; `trainers.tasks.reid.margins` has the others.

Shapes: B batch, N identities, D features. A head holds the rows W0 [N, D] that the difficulty of an identity is read from.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig

if TYPE_CHECKING:
    from trainers.tasks.reid.margins import Margin


class Softmax(nn.Module):
    """Cross-entropy of W0 x, without bias: a row is then all that is known of its identity."""

    def __init__(self, identities: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(identities, dim))
        nn.init.normal_(self.weight, std=INITIAL_STD["softmax"])

    @property
    def rows(self) -> Tensor:
        """W0 [N, D]."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            logits = F.linear(features.float(), self.weight)
            return F.cross_entropy(logits, labels), logits.detach().argmax(dim=1)


def build_head(config: HeadConfig, identities: int, dim: int) -> "Softmax | Margin":
    """Return the head: forward(features [B, D], labels [B]) -> (mean loss, the identity whose row scores highest,
    without a margin, [B]).

    Its ``rows`` are W0 [N, D]. Raises InputError for fewer than two identities.
    """
    if identities < 2:
        raise InputError("a classifier needs at least two identities", str(identities))
    if config.kind == "softmax":
        return Softmax(identities, dim)
    from trainers.tasks.reid.margins import Margin  # here: it brings SciPy, 0.6 s that whoever builds no head need not wait for

    return Margin(config, identities, dim)
