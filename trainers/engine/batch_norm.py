"""Batch norm whose statistics cover the batches of all ranks, so that they don't depend on the number of ranks.

torch's SyncBatchNorm works on GPUs only; `SyncBatchNorm` here works on CPUs. Batch norms of timm, which contain the activation,
keep it. On CPUs a single rank uses it, too: for images in
channels-last order torch's own batch norm adds a channel's float32 values one after another. For 64 images with even backgrounds
the result is off by a thousandth, and with another number of ranks by another thousandth.

C channels, n values of a channel on a rank.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.errors import InputError

Group = dist.ProcessGroup | None


def synchronise_batch_norm(task: nn.Module, group: Group) -> None:
    """Have every batch norm of a task take its statistics from all ranks of a group. Every rank calls this before training.

    Parameters, buffers and their names stay, so checkpoints and exports are the same. Only training changes: layers in eval
    mode, frozen ones included, use their running statistics as before, which are now equal on all ranks.

    Raises:
        InputError: a batch norm computes something else besides, which a synchronised one would leave out.
    """
    if not any(parameter.is_cuda for parameter in task.parameters()):
        convert(task, group, SyncBatchNorm, SyncBatchNormAct)
    elif group is not None:
        convert(task, group, nn.SyncBatchNorm, TorchsSyncBatchNormAct)


def convert(task: nn.Module, group: Group, plain: type[_BatchNorm], fused: type[_BatchNorm]) -> None:
    """Make every batch norm a ``plain`` one, and each of timm's a ``fused`` one; raises as `synchronise_batch_norm`."""
    for name, module in task.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        is_plain = type(module).forward in (_BatchNorm.forward, plain.forward)
        is_fused = type(module).__name__ == "BatchNormAct2d" or isinstance(module, fused)  # timm is imported only when it is used
        if is_plain or is_fused:
            module.__class__ = plain if is_plain else fused  # in place, so that references to the layer stay valid
            module.process_group = group  # type: ignore[assignment]
        elif group is not None:
            what = f"the batch norm '{name}' of the model is a {type(module).__name__}, whose own forward would be lost"
            raise InputError(what, "--optim.sync-batch-norm", "give --optim.no-sync-batch-norm, or train with one worker")


class SyncBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...] on CPUs; in training over all ranks of ``process_group``. A rank's batch may have one sample."""

    process_group: Group

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm needs at least 2 dimensions, not {x.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalised.apply(x, self.weight, self.bias, self.eps, self.process_group)
        if count < 2:
            raise ValueError(f"batch norm needs more than one value of a channel in training: {list(x.shape)}")
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * count / (count - 1), weight)
        return y  # type: ignore[no-any-return]


class _WithActivation:
    """What timm's BatchNormAct2d computes after the batch norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[misc, no-any-return]


class SyncBatchNormAct(_WithActivation, SyncBatchNorm):
    """`SyncBatchNorm`, dropout and activation."""


class TorchsSyncBatchNormAct(_WithActivation, nn.SyncBatchNorm):
    """torch's SyncBatchNorm, dropout and activation."""


class _Normalised(torch.autograd.Function):
    """x [B, C, ...] normalised, and the mean [C], variance [C] (divided by n) and n [] of all ranks together."""

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
    """Mean [C], variance [C] and count [] over all ranks, combined from each rank's own, so that nothing cancels out."""
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
