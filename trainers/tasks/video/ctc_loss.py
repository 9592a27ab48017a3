"""Losses of action sequences. B batch, T frames, U actions, C classes; log-probabilities [B, T, C + 1], output 0 the blank."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainers.engine.distributed import means_over_ranks


def ctc(log_probs: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al., ICML 2006): -log of the summed probability of all alignments.

    ``lengths`` [B]: frames of the videos; ``targets`` [B, U]: classes, padded with -1. A video's loss is divided by its number of
    actions (at least 1), and the result is the mean over videos. A video without a possible alignment has the loss 0.
    """
    counts = (targets >= 0).sum(dim=1)
    return F.ctc_loss(log_probs.transpose(0, 1), targets + 1, lengths, counts, blank=0, zero_infinity=True)


def frame_wise(log_probs: Tensor, lengths: Tensor, frame_targets: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Cross-entropy of each frame's class ``frame_targets`` [B, T], -1 for no action: the mean over the videos' frames, without
    padding, of all ranks of ``group`` (`means_over_ranks`)."""
    real = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    total = F.nll_loss(log_probs[real], frame_targets[real] + 1, reduction="sum")
    return means_over_ranks({"frames": (total, real.sum())}, group)["frames"]


def even_targets(lengths: Tensor, targets: Tensor) -> Tensor:
    """A guess at each frame's class [B, T] without frame labels: the actions of a video get equal parts of it, in order.

    -1 for the frames of a video without actions, and after a video's end.
    """
    out = lengths.new_full((len(lengths), int(lengths.max())), -1)
    for row, (length, own) in enumerate(zip(lengths.tolist(), targets, strict=True)):
        actions = own[own >= 0]
        if len(actions):
            out[row, :length] = actions[torch.arange(length, device=out.device) * len(actions) // length]
    return out


def feasible(frames: int, actions: Sequence[int]) -> bool:
    """Whether CTC can align the actions to so many frames: it needs a frame for each, and a blank between two equal ones."""
    return frames >= len(actions) + sum(a == b for a, b in pairwise(actions))
