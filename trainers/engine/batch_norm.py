"""Batch norm whose statistics are those of the batches of all ranks together, so that they don't depend on the number of ranks.

torch's SyncBatchNorm does it on GPUs alone; `SyncBatchNorm` here does it on CPUs. There one rank takes it too: torch's own sums a
channel's float32 values one after another where images lie channels last, and 64 images with even backgrounds are then off by a
thousandth, which another number of ranks would be by another thousandth. C channels, n values of a channel on a rank.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Group = dist.ProcessGroup | None


def synchronise_batch_norm(task: nn.Module, group: Group) -> None:
    """Let every batch norm within a task take its statistics from all ranks of a group; before training, on each of them.

    Parameters, buffers and their names stay, so a checkpoint or an export does not tell. Only training changes: what is in
    eval mode, frozen layers among them, goes by its running statistics as before, which are equal on all ranks now.
    """
    if any(parameter.is_cuda for parameter in task.parameters()):
        if group is not None:
            nn.SyncBatchNorm.convert_sync_batchnorm(task, group)  # type: ignore[no-untyped-call]
        return
    for module in task.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm  # in place: whoever holds the layer holds the same one afterwards
            module.group = group  # type: ignore[assignment]


class SyncBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...] on CPUs, in training over all ranks of ``group``; a rank's batch may be of one sample."""

    group: Group

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm needs at least 2 dimensions, not {x.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalised.apply(x, self.weight, self.bias, self.eps, self.group)
        if count < 2:
            raise ValueError(f"batch norm needs more than one value of a channel in training: {list(x.shape)}")
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        return y  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    """x [B, C, ...] normalised, and of all ranks together mean [C], variance [C] (by n) and n []."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(x, group)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        gradient, scale, shape, axes = gradients[0], (variance + ctx.eps).rsqrt(), _shape(x), _axes(x)
        from_mean = x - mean.view(shape)
        of_weight, of_bias = (gradient * from_mean).sum(axes) * scale, gradient.sum(axes)
        sums = torch.stack([of_weight, of_bias])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        by_weight, by_bias = sums / count
        slope = scale if weight is None else scale * weight
        along = from_mean.mul_((by_weight * scale).view(shape)).add_(by_bias.view(shape))
        of_x = (gradient - along).mul_(slope.view(shape))
        return of_x, *((None, None) if weight is None else (of_weight, of_bias)), None, None


def _statistics(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], variance [C] and count [] of all ranks' values: their own ones put together, so that nothing cancels out."""
    mean = x.mean(_axes(x))
    variance = (x - mean.view(_shape(x))).square_().mean(_axes(x))
    count = mean.new_tensor(x.numel() / x.shape[1])
    if group is None:
        return mean, variance, count
    mine = torch.cat([mean, variance, count[None]]).double()
    every = mine.new_empty(dist.get_world_size(group) * len(mine))
    dist.all_gather_single(every, mine, group=group)
    means, variances, counts = torch.split(every.view(-1, len(mine)), [x.shape[1], x.shape[1], 1], dim=1)
    total = counts.sum()
    whole = (counts * means).sum(dim=0) / total
    spread = (counts * (variances + (means - whole).square())).sum(dim=0) / total
    return whole.to(x.dtype), spread.to(x.dtype), total.to(x.dtype)


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _shape(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.ndim - 2)]
