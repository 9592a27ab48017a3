"""What the ranks of a run compute together, so that R ranks with B / R samples each learn what one rank with all B learns.

DistributedDataParallel averages each parameter's gradient over the ranks. That is the gradient of the whole batch if every rank's
loss is a mean over the same number of things. Where the numbers differ (labels, frames, sampled regions), `means_over_ranks`
divides by the count of all ranks. A loss that compares samples with each other collects them from all ranks by `gather`. Batch
norm takes its statistics from all ranks (`trainers.engine.batch_norm`). What each rank draws at random (dropout, strong
augmentation, the regions that a detector samples) still depends on the number of ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.engine.batch_norm import synchronise_batch_norm
from trainers.torch_compat import gradient_exchange_s, leave_to_ranks


def distribute(
    task: nn.Module, group: dist.ProcessGroup | None, *, sync_batch_norm: bool, alone: Sequence[str] = ()
) -> nn.Module:
    """The task in DistributedDataParallel, which averages gradients over the ranks; without a group the task itself.

    ``sync_batch_norm``: from now on batch norms take their statistics from the batches of all ranks. ``alone``: names of
    parameters that this rank alone holds; their gradients are not averaged.
    """
    if sync_batch_norm:
        synchronise_batch_norm(task, group)
    if group is None:
        return task
    leave_to_ranks(task, alone)
    # Synchronised statistics are equal on every rank already; others are copied from rank 0.
    return DistributedDataParallel(task, process_group=group, forward_sync_buffers=not sync_batch_norm)


def means_over_ranks(sums: Mapping[str, tuple[Tensor, Tensor | int]], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Losses from this rank's sums and the counts of what it summed: R times the sum, divided by the count of all ranks.

    Their mean over the ranks, and that of their gradients, is then the mean over everything that the ranks counted; 0 if they
    counted nothing. All ranks pass the same names.
    """
    device = next(total.device for total, _ in sums.values())
    counts = sum_over_ranks(torch.stack([torch.as_tensor(count, device=device) for _, count in sums.values()]), group)
    world = 1 if group is None else dist.get_world_size(group)
    return {name: total * world / count for (name, (total, _)), count in zip(sums.items(), counts.clamp(min=1), strict=True)}


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of all ranks' values, in place; without gradient."""
    if group is not None:
        dist.all_reduce(values, group=group)
    return values


def gathered(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' values [b, ...], in the order of the ranks, [R b, ...]; without gradient."""
    if group is None:
        return values
    whole = values.new_empty(dist.get_world_size(group) * len(values), *values.shape[1:])
    dist.all_gather_single(whole, values.contiguous(), group=group)
    return whole


def gather(values: Tensor, group: dist.ProcessGroup | None, *, partial: bool) -> Tensor:
    """As `gathered`, with a gradient. For a loss that every rank computes over the whole batch; scaled for
    DistributedDataParallel's averaging.

    ``partial``: each rank computes only a part of the loss's gradient, such as that of its rows of a sharded classifier; else all
    ranks compute the same gradient.
    """
    whole: Tensor = _Gather.apply(values, group, partial)
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup | None, partial: bool) -> Tensor:
        ctx.group, ctx.partial, ctx.own = group, partial, len(values)
        return gathered(values, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        if ctx.group is None:
            return gradient, None, None
        if ctx.partial:
            dist.all_reduce(gradient, group=ctx.group)
        rank, world = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        # Only the gradient of this rank's samples is passed on; DistributedDataParallel will average over ranks.
        return gradient[rank * ctx.own : (rank + 1) * ctx.own] * world, None, None


def allreduce_s(model: nn.Module) -> float:
    """Mean seconds of a step in which gradients were in transit between workers; 0 for one worker."""
    return gradient_exchange_s(model) if isinstance(model, DistributedDataParallel) else 0.0


def broadcast_buffers(task: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Copy rank 0's buffers to all ranks. Where ranks keep batch-norm statistics of their own, rank 0's are the model's."""
    if group is not None:
        for buffer in task.buffers():
            dist.broadcast(buffer, 0, group=group)


def gather_items(own: list[Any], group: dist.ProcessGroup | None) -> Iterator[Any]:
    """The items of all ranks, on each, in the order of the ranks; they must be picklable."""
    parts: list[list[Any]] = [own]
    if group is not None:
        parts = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(parts, own, group=group)
    for part in parts:
        yield from part
