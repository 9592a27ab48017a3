"""A head whose rows are shared out over the ranks, so that as many identities fit as all ranks together hold.

Each of R ranks holds N / R rows and scores the features of the whole batch against them; the softmax over all N is exact, put
together from the ranks' maxima and sums. Partial FC (An et al., CVPR 2022, arXiv 2203.15565) shares rows out the same way and
leaves most of them out of each step; here none is. B global batch, b = B / R a rank's, N identities, n a rank's, D features.
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
from trainers.tasks.reid.head_config import INITIAL_STD, HeadConfig

BLOCK = 1024  # rows that are drawn together at the start, whoever owns them


class ShardedHead(nn.Module):
    """The losses of `trainers.tasks.reid.heads`, by the rows of all ranks.

    forward(features [b, D], labels [b] of 0..N-1) -> (mean loss over the *global* batch, the identity whose row scores highest
    [b]). Its gradients are those of the replicated head under DistributedDataParallel, which takes the mean over ranks for
    all parameters but this one: leave ``weight`` out of it. Without a group there is one rank.

    Raises:
        InputError: fewer identities than ranks, or than two.
    """

    def __init__(self, config: HeadConfig, identities: int, dim: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.identities, self.group = identities, group
        self.rank, self.world = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
        if identities < max(self.world, 2):
            raise InputError(f"{identities} identities cannot be shared out over {self.world} workers", "head.parallel")
        self.first, self.end = slice_of(identities, self.rank, self.world)
        seed = int(torch.randint(2**62, ()))  # the same on every rank
        self.weight = nn.Parameter(INITIAL_STD[config.kind] * random_rows(self.first, self.end, dim, seed))
        self.margin: Any = None
        if config.kind != "softmax":
            from trainers.tasks.reid.margins import margin_loss  # here, as in `build_head`

            _, scale = config.resolved(identities)
            self.margin = margin_loss(replace(config, scale=scale), 1, dim)
            del self.margin.W  # only its formulas are wanted

    @property
    def rows(self) -> Tensor:
        """This rank's rows of W0 [n, D], from identity ``first`` on."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mine = slice(self.rank * len(labels), (self.rank + 1) * len(labels))  # of the global batch
        with torch.autocast(features.device.type, enabled=False):
            features, labels = gather(features.float(), self.group, partial=True), gathered(labels, self.group)
            own = torch.nonzero((labels >= self.first) & (labels < self.end)).squeeze(1)  # the samples whose row is here
            targets = (own, labels[own] - self.first)
            scores = F.linear(features, self.weight) if self.margin is None else F.linear(_unit(features), _unit(self.weight))
            logits = scores
            if self.margin is not None:
                lowered = self.margin.modify_cosine_of_target_classes(scores[targets]).float()
                logits = self.margin.scale_logits(scores.index_put(targets, lowered), features)
            loss: Tensor = _CrossEntropy.apply(logits, targets, self.group)
        return loss, self._best(scores.detach())[mine]

    def _best(self, scores: Tensor) -> Tensor:
        """The identity, of all ranks', that scores highest for each sample of the batch, [B]."""
        score, place = scores.max(dim=1)
        top = score.clone()
        _reduce(top, dist.ReduceOp.MAX, self.group)
        best = torch.where(score == top, -(place + self.first), -(2**62))  # the smallest of those that are equal
        _reduce(best, dist.ReduceOp.MAX, self.group)
        return -best


def random_rows(first: int, end: int, dim: int, seed: int) -> Tensor:
    """Rows ``first`` .. ``end`` of a normal matrix that does not depend on how rows are shared out; [end - first, dim]."""
    blocks = range(first // BLOCK, -(-end // BLOCK))
    rows = [torch.randn(BLOCK, dim, generator=torch.Generator().manual_seed(seed + block)) for block in blocks]
    start = first - first // BLOCK * BLOCK
    return torch.cat(rows)[start : start + end - first]


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def _reduce(values: Tensor, how: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.all_reduce(values, how, group=group)


class _CrossEntropy(torch.autograd.Function):
    """Mean of -log softmax over all ranks' logits [B, n] at the targets: (samples, columns) of those that stand on this rank."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: tuple[Tensor, Tensor], group: dist.ProcessGroup | None) -> Tensor:
        top = logits.amax(dim=1)
        _reduce(top, dist.ReduceOp.MAX, group)
        shares = (logits - top[:, None]).exp_()
        sums = torch.stack([shares.sum(dim=1), torch.zeros_like(top)])
        sums[1, targets[0]] = logits[targets]
        _reduce(sums, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(shares.div_(sums[0, :, None]), *targets)
        return (sums[0].log() + top - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        shares, *targets = ctx.saved_tensors
        each = gradients[0] / len(shares)
        gradient = shares * each
        gradient[tuple(targets)] -= each
        return gradient, None, None
