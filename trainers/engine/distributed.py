"""What the ranks of a run do together, so that R ranks of B / R samples each learn what one rank of all B does.

DistributedDataParallel gives each parameter the mean over the ranks of its gradients. That is the gradient of the whole batch
where each rank's loss is a mean over as many things as every other's. Where the numbers differ (labels, frames, sampled regions)
`means_over_ranks` divides by the count of all ranks; a loss that compares samples with each other takes them from all ranks by
`gather`; batch norm takes its statistics from all ranks (`trainers.engine.batch_norm`). What a rank draws at random for itself
(dropout, strong views, the regions that a detector samples) is another draw on another number of ranks.
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
    """The task on all ranks, with gradients that are the mean of the ranks'; without a group the task itself.

    ``sync_batch_norm``: the task's batch norms take their statistics from the batches of all ranks from now on. ``alone``: names
    of parameters that a rank alone holds, and whose gradients are left to it.
    """
    if sync_batch_norm:
        synchronise_batch_norm(task, group)
    if group is None:
        return task
    leave_to_ranks(task, alone)
    # Statistics of all ranks' batches are the same on every rank; others are rank 0's.
    return DistributedDataParallel(task, process_group=group, forward_sync_buffers=not sync_batch_norm)


def means_over_ranks(sums: Mapping[str, tuple[Tensor, Tensor | int]], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Losses from sums and the counts of what was summed on this rank: R times the sum by the count of all ranks.

    So their mean over the ranks, and that of their gradients, is the mean over all that the ranks count together; 0 where they
    count nothing. All ranks pass the same names.
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
    """The same with a gradient, scaled for DistributedDataParallel, for a loss that is that of the whole batch on every rank.

    ``partial``: a rank knows only its part of the loss's gradient, as with rows that are shared out; else all ranks compute the
    same.
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
        # This rank goes on with its own samples; DistributedDataParallel will take the mean over ranks.
        return gradient[rank * ctx.own : (rank + 1) * ctx.own] * world, None, None


def allreduce_s(model: nn.Module) -> float:
    """Seconds a step during which gradients were under way between workers; 0 for one worker."""
    return gradient_exchange_s(model) if isinstance(model, DistributedDataParallel) else 0.0


def broadcast_buffers(task: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Give all ranks the buffers of rank 0: its statistics of batch norm are the model's, where ranks don't share them."""
    if group is not None:
        for buffer in task.buffers():
            dist.broadcast(buffer, 0, group=group)


def gather_items(own: list[Any], group: dist.ProcessGroup | None) -> Iterator[Any]:
    """The items of all ranks, on each, in the order of the ranks; they must be such as can be pickled."""
    parts: list[list[Any]] = [own]
    if group is not None:
        parts = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(parts, own, group=group)
    for part in parts:
        yield from part
