"""Losses of action sequences. B batch, T frames, U actions, C classes; log-probabilities [B, T, C + 1], output 0 the blank."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainers.engine.distributed import means_over_ranks


def ctc(log_probs: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al., ICML 2006): -log of the sum over all alignments, by action.

    ``lengths`` [B] of the videos, ``targets`` [B, U] classes padded with -1. The mean over the videos of each one's loss by its
    number of actions (at least 1). What no alignment can reach adds nothing, and counts as a video.
    """
    counts = (targets >= 0).sum(dim=1)
    return F.ctc_loss(log_probs.transpose(0, 1), targets + 1, lengths, counts, blank=0, zero_infinity=True)


def frame_wise(log_probs: Tensor, lengths: Tensor, frame_targets: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Cross-entropy of each frame's class, ``frame_targets`` [B, T], -1 for none; the mean over the videos' own frames, of all
    ranks (`means_over_ranks`)."""
    there = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    total = F.nll_loss(log_probs[there], frame_targets[there] + 1, reduction="sum")
    return means_over_ranks({"frames": (total, there.sum())}, group)["frames"]


def even_targets(lengths: Tensor, targets: Tensor) -> Tensor:
    """Each frame's class [B, T] as if the actions of a video took turns of the same length: a guess, for want of frame labels.

    -1 for the frames of a video without actions, and after a video's end.
    """
    out = lengths.new_full((len(lengths), int(lengths.max())), -1)
    for row, (length, own) in enumerate(zip(lengths.tolist(), targets, strict=True)):
        actions = own[own >= 0]
        if len(actions):
            out[row, :length] = actions[torch.arange(length, device=out.device) * len(actions) // length]
    return out


def feasible(frames: int, actions: Sequence[int]) -> bool:
    """Whether so many frames can tell these actions: one each, and a blank between two that are the same."""
    return frames >= len(actions) + sum(a == b for a, b in pairwise(actions))
