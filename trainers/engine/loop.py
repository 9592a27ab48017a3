"""The training loop, a generator: one optimiser step per batch; whoever drives it does the rest between two steps."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from datasets.sampling import generator
from trainers.engine.config import ALLOWED
from trainers.engine.ranks import sum_over_ranks

Batch = dict[str, Any]


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser of all stages."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum of 0.9."""
    weight_decay: float = 5e-4
    """How strongly weights are drawn to zero."""
    amp: bool = field(default=True, metadata=ALLOWED)
    """bfloat16 autocast on GPUs that have it."""
    sync_batch_norm: bool | None = None
    """Take batch norm's statistics from the samples of all workers, so that their number changes results by rounding alone; off:
    from each worker's own, which saves two messages a layer and step. None: off where several workers, their number fixed, have
    32 samples or more each."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optim.weight_decay is {self.weight_decay}", "optim", "give 0 or more")


@dataclass(frozen=True)
class OptimConfig(OptimiserConfig):
    """How the weights are trained."""

    steps: int = 1000
    """Optimiser steps of the run."""
    lr: float = 2e-3
    """Highest learning rate, reached after the warm-up; half a cosine leads it to zero."""
    warmup: int = 50
    """Steps in which the learning rate rises linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.warmup < 0:
            raise InputError("optim.steps must be at least 1, optim.warmup at least 0", "optim")
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}", "optim", "give a learning rate above 0")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step: a function of the step alone, so that there is no schedule to restore."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


class Step(NamedTuple):
    """What one step did. ``done`` counts steps including this one; ``results`` are the task's detached outputs."""

    done: int
    batch: Batch
    results: dict[str, Tensor]
    waited: float  # seconds for the batch
    took: float  # seconds in all


def build_optimiser(config: OptimConfig, task: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a task's trainable parameters."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)


def steps(
    task: nn.Module, optimiser: torch.optim.Optimizer, config: OptimConfig, batches: Iterable[Batch], device: torch.device,
    seed: int, rank: int = 0, first: int = 0, beside: Sequence[tuple[torch.optim.Optimizer, OptimConfig]] = (),
) -> Iterator[Step]:  # fmt: skip
    """Train on each batch in turn; a batch holds tensors for the task, and its number under "step".

    ``first``: the step with which this stage of the run began, and from which its learning rate is counted. ``beside``: further
    optimisers of other parameters, each with its own config; one backward pass serves all.

    Raises:
        InputError: weights take no part in the loss, for whose gradients DistributedDataParallel would wait in vain.
    """
    task.train()
    amp = config.amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    pairs = ((optimiser, config), *beside)
    began, checked = time.perf_counter(), not isinstance(task, DistributedDataParallel)
    for batch in batches:
        waited = time.perf_counter() - began
        inputs = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
        # Dropout's: a resumed step drops what it would have dropped.
        torch.manual_seed(int(generator(seed, "dropout", batch["step"], rank).integers(2**63)))
        for each, how in pairs:
            for group in each.param_groups:
                group["lr"] = how.lr_at(batch["step"] - first)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            results = task(inputs)
        for each, _ in pairs:
            each.zero_grad(set_to_none=True)
        results["loss"].backward()
        if not checked:
            _check_used(task)
            checked = True
        for each, _ in pairs:
            each.step()
        now = time.perf_counter()
        yield Step(batch["step"] + 1, batch, {k: v.detach() for k, v in results.items()}, waited, now - began)
        began = time.perf_counter()


def _check_used(task: nn.Module) -> None:
    idle = [name for name, parameter in task.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle:
        what = f"{len(idle)} of the model's weights take no part in its output, so that several workers cannot train it"
        raise InputError(what, ", ".join(idle[:3]), "leave these layers out of the model, or freeze them: requires_grad_(False)")


class Meter:
    """Means over the steps since the last reading, and over the ranks of ``group``, which read at the same steps."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._steps: list[Step] = []
        self._group = group

    def add(self, step: Step) -> None:
        """Take a step in; nothing is read from the device."""
        self._steps.append(step._replace(batch={}))  # its pixels would stay in (shared) memory until the reading

    def read(self, samples: int) -> dict[str, float]:
        """Means over the steps: every result, ``step_s`` and of it ``wait_s`` for data and ``compute_s``, all in seconds; also
        ``samples_per_s`` for steps of that many samples, and ``wait``, the share of time spent waiting for data.

        Raises:
            InputError: the loss is not finite any more.
        """
        began = time.perf_counter()
        results = torch.stack([torch.stack([s.results[k].float() for s in self._steps]).mean() for k in self._steps[0].results])
        world = 1 if self._group is None else dist.get_world_size(self._group)
        means = dict(zip(self._steps[0].results, (sum_over_ranks(results, self._group) / world).tolist(), strict=True))
        took = sum(step.took for step in self._steps) + time.perf_counter() - began  # here a GPU is waited for
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


def allreduce_s(model: nn.Module) -> float:
    """Seconds a step during which DDP's gradients were under way between workers: its own mean over the steps that it samples."""
    if not isinstance(model, DistributedDataParallel):
        return 0.0
    told: dict[str, Any] = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return float(told.get("avg_backward_comm_time", 0)) / 1e9


def share_buffers(task: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Give all ranks the buffers of rank 0: its statistics of batch norm are the model's, where ranks don't share them."""
    if group is not None:
        for buffer in task.buffers():
            dist.broadcast(buffer, 0, group=group)
