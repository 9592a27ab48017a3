"""A classification head whose rows are divided among the ranks, so that the memory of all ranks together limits the identities.

Each of R ranks holds N / R rows and scores the features of the global batch against them. The softmax over all N is exact: it is
combined from the maxima and sums of the ranks. Partial FC (An et al., CVPR 2022, arXiv 2203.15565) divides the rows in the same
way but uses only some of them in each step; this head uses all. B global batch, b = B / R a rank's, N identities, n a rank's,
K centres of each, D features.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.difficulty.vector import slice_of
from trainers.engine.distributed import gather, gathered
from trainers.tasks.reid.class_filter import filtered
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig

BLOCK = 1024  # initial rows are drawn in blocks of this size, whichever rank holds them


class ShardedHead(nn.Module):
    """The losses of `build_head` with rows divided among the ranks.

    forward(features [b, D], labels [b] in 0..N-1) -> (mean loss over the *global* batch, predicted identities [b]). Its gradients
    are those of the replicated head if DistributedDataParallel ignores ``weight`` and averages all others over the ranks. Without
    a group there is one rank. ``threshold``: as in `trainers.tasks.reid.margins.Margin`.

    Raises:
        InputError: fewer identities than ranks, or than two.
    """

    threshold: float | None

    def __init__(self, config: HeadConfig, identities: int, dim: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.threshold = config.filter
        self.identities, self.group, self.smoothing = identities, group, config.smoothing
        self.rank, self.world = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
        if identities < max(self.world, 2):
            raise InputError(f"{identities} identities cannot be divided among {self.world} workers", "head.parallel")
        self.first, self.end = slice_of(identities, self.rank, self.world)
        seed = int(torch.randint(2**62, ()))  # the same on every rank
        several = config.centres
        rows = INITIAL_STD[config.kind] * random_rows(self.first * several, self.end * several, dim, seed)
        self.weight = nn.Parameter(rows if several == 1 else rows.view(-1, several, dim))
        self.margin: Any = None
        if config.kind != "softmax":
            from trainers.tasks.reid.margins import AdaFaceMargin, margin_loss  # here, as in `build_head`

            margin, scale = config.resolved(identities)
            if config.kind == "adaface":
                self.margin = AdaFaceMargin(margin, scale)
            else:
                self.margin = margin_loss(replace(config, scale=scale, centres=1), 1, dim)
                del self.margin.W  # only its formulas are used
        self.by_quality = config.kind == "adaface"

    @property
    def rows(self) -> Tensor:
        """This rank's rows of W0 [n, D], from identity ``first`` on; the sum of an identity's centres."""
        return self.weight if self.weight.ndim == 2 else self.weight.sum(dim=1)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mine = slice(self.rank * len(labels), (self.rank + 1) * len(labels))  # of the global batch
        with torch.autocast(features.device.type, enabled=False):
            features, labels = gather(features.float(), self.group, partial=True), gathered(labels, self.group)
            own = torch.nonzero((labels >= self.first) & (labels < self.end)).squeeze(1)  # the samples whose row this rank holds
            targets = (own, labels[own] - self.first)
            scores = F.linear(features, self.weight) if self.margin is None else self._cosines(features)
            logits = scores
            if self.margin is not None:
                if self.by_quality:
                    lowered = self.margin(scores[targets], self.margin.quality(features)[own])
                else:
                    lowered = self.margin.modify_cosine_of_target_classes(scores[targets]).float()
                kept = filtered(scores, targets, self.threshold)
                logits = self.margin.scale_logits(kept.index_put(targets, lowered), features)
            loss: Tensor = _CrossEntropy.apply(logits, targets, self.group, self.smoothing, self.identities)
        return loss, self._best(scores.detach())[mine]

    def _cosines(self, features: Tensor) -> Tensor:
        """Cosines of features [B, D] to this rank's identities [B, n]: of several centres, to the nearest one."""
        cosines = F.linear(F.normalize(features), F.normalize(self.weight, dim=-1).flatten(0, -2))
        return cosines if self.weight.ndim == 2 else cosines.view(-1, *self.weight.shape[:2]).amax(dim=2)

    def _best(self, scores: Tensor) -> Tensor:
        """The identity with the highest score over all ranks, for each sample of the global batch [B]."""
        score, row = scores.max(dim=1)
        top = score.clone()
        _reduce(top, dist.ReduceOp.MAX, self.group)
        best = torch.where(score == top, -(row + self.first), -(2**62))  # the smallest of equal ones
        _reduce(best, dist.ReduceOp.MAX, self.group)
        return -best


def random_rows(first: int, end: int, dim: int, seed: int) -> Tensor:
    """Rows ``first`` .. ``end`` - 1 of a standard normal matrix that is the same for any number of ranks; [end - first, dim]."""
    blocks = range(first // BLOCK, -(-end // BLOCK))
    rows = [torch.randn(BLOCK, dim, generator=torch.Generator().manual_seed(seed + block)) for block in blocks]
    start = first - first // BLOCK * BLOCK
    return torch.cat(rows)[start : start + end - first]


def _reduce(values: Tensor, how: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.all_reduce(values, how, group=group)


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over the logits [B, n] of all ranks; ``targets``: (samples, columns) of the true rows on this rank.

    With label smoothing s the target is 1 - s + s / N for the true row, and s / N for each other one of the N rows.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: tuple[Tensor, Tensor], group: dist.ProcessGroup | None, smoothing: float, rows: int
    ) -> Tensor:
        top = logits.amax(dim=1)
        _reduce(top, dist.ReduceOp.MAX, group)
        exps = (logits - top[:, None]).exp_()
        wanted = logits.sum(dim=1) * (smoothing / rows) if smoothing else torch.zeros_like(top)  # the targets' logits
        sums = torch.stack([exps.sum(dim=1), wanted])
        sums[1, targets[0]] += (1 - smoothing) * logits[targets]
        _reduce(sums, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(exps.div_(sums[0, :, None]), *targets)
        ctx.smoothing, ctx.rows = smoothing, rows
        return (sums[0].log() + top - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax, *targets = ctx.saved_tensors
        each = gradients[0] / len(softmax)
        gradient = softmax * each
        gradient[tuple(targets)] -= (1 - ctx.smoothing) * each
        if ctx.smoothing:
            gradient -= ctx.smoothing / ctx.rows * each
        return gradient, None, None, None, None
