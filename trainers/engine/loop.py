"""The training loop as a generator: one optimiser step per batch. Its caller evaluates and stores between two steps."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from datasets.seeding import generator
from trainers.engine.distributed import sum_over_ranks
from trainers.engine.optim import OptimConfig, finish_gradients, set_lr

Batch = dict[str, Any]


class Step(NamedTuple):
    """What one step did."""

    done: int  # steps so far, this one included
    batch: Batch
    results: dict[str, Tensor]  # the task's outputs, detached; means over the parts of a batch
    waited: float  # seconds of waiting for the batch
    took: float  # seconds in all


def steps(
    task: nn.Module, optimiser: torch.optim.Optimizer, config: OptimConfig, batches: Iterable[Batch], device: torch.device,
    seed: int, rank: int = 0, first: int = 0, beside: Sequence[tuple[torch.optim.Optimizer, OptimConfig]] = (),
    alone: Sequence[str] = (), group: dist.ProcessGroup | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Train on each batch in turn; a batch holds tensors for the task, and its number under "step".

    ``first``: the step with which this stage of the run began; its learning rate counts from there. ``beside``: optimisers of
    other parameters, each with its own config; one backward pass serves all. ``alone``, ``group``: as in `finish_gradients`.
    With ``config.accumulate`` above 1 all of a batch's tensors have the samples in their first dimension.

    Raises:
        InputError: some weights take no part in the loss; DistributedDataParallel would wait for their gradients forever.
    """
    task.train()
    amp = config.amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    pairs = ((optimiser, config), *beside)
    distributed = isinstance(task, DistributedDataParallel)
    inner: Any = task.module if distributed else task
    began, checked = time.perf_counter(), not distributed
    for batch in batches:
        waited = time.perf_counter() - began
        inputs = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
        # For dropout: a step that is repeated after a restart drops the same values.
        torch.manual_seed(int(generator(seed, "dropout", batch["step"], rank).integers(2**63)))
        for each, how in pairs:
            set_lr(each, how.lr_at(batch["step"] - first))
        for each, _ in pairs:
            each.zero_grad(set_to_none=True)
        results = _backward(task, inputs, config.accumulate, device, amp=amp)
        if not checked:
            _check_used(task)
            checked = True
        finish_gradients(inner, config, batch["step"] - first, alone, group)
        for each, _ in pairs:
            each.step()
        now = time.perf_counter()
        yield Step(batch["step"] + 1, batch, results, waited, now - began)
        began = time.perf_counter()


def _backward(task: nn.Module, inputs: dict[str, Tensor], parts: int, device: torch.device, *, amp: bool) -> dict[str, Tensor]:
    """Add the mean gradient of a batch's parts to the weights; returns the means of the task's outputs, detached.

    Ranks exchange gradients once, in the last part.
    """
    found = []
    for number in range(parts):
        part = {k: v.chunk(parts)[number] for k, v in inputs.items()} if parts > 1 else inputs
        alone = isinstance(task, DistributedDataParallel) and number < parts - 1
        with task.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                results = task(part)
            (results["loss"] / parts).backward()
        found.append({k: v.detach() for k, v in results.items()})
    return {k: torch.stack([each[k] for each in found]).mean(dim=0) for k in found[0]} if parts > 1 else found[0]


def _check_used(task: nn.Module) -> None:
    idle = [name for name, parameter in task.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle:
        what = f"{len(idle)} of the model's weights take no part in its output, so that several workers cannot train it"
        raise InputError(what, ", ".join(idle[:3]), "leave these layers out of the model, or freeze them: requires_grad_(False)")


class Meter:
    """Means over the steps since the last `read`, and over the ranks of ``group``, which read at the same steps."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._steps: list[Step] = []
        self._group = group

    def add(self, step: Step) -> None:
        """Add a step; nothing is copied from the device."""
        self._steps.append(step._replace(batch={}))  # its pixels would stay in (shared) memory until `read`

    def read(self, samples: int) -> dict[str, float]:
        """Means over the steps added since the last call: every result of the task (the loss, ...); ``step_s``, seconds of a
        step, which is ``wait_s`` (waiting for data) plus ``compute_s``; ``samples_per_s``, for steps of that many samples; and
        ``wait``, the fraction ``wait_s / step_s``.

        Raises:
            InputError: the loss is no longer finite.
        """
        began = time.perf_counter()
        results = torch.stack([torch.stack([s.results[k].float() for s in self._steps]).mean() for k in self._steps[0].results])
        world = 1 if self._group is None else dist.get_world_size(self._group)
        means = dict(zip(self._steps[0].results, (sum_over_ranks(results, self._group) / world).tolist(), strict=True))
        took = sum(step.took for step in self._steps) + time.perf_counter() - began  # reading the results waits for the GPU
        if not math.isfinite(means["loss"]):
            where = f"steps {self._steps[0].done}-{self._steps[-1].done}"
            raise InputError(
                f"the loss is {means['loss']}: training has diverged", where, "lower --optim.lr, or give more --optim.warmup"
            )
        count, waited = len(self._steps), sum(step.waited for step in self._steps)
        means |= {"samples_per_s": samples * count / took, "wait": waited / took}
        means |= {"step_s": took / count, "wait_s": waited / count, "compute_s": (took - waited) / count}
        self._steps.clear()
        return means
