"""The optimiser's settings, its learning-rate schedule, how it is built, and what is done to gradients before its steps."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from datasets.errors import InputError
from trainers.engine.config import ALLOWED
from trainers.engine.distributed import sum_over_ranks


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser of all stages."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum of 0.9."""
    weight_decay: float = 5e-4
    """Weight decay: decoupled in AdamW, an L2 penalty in SGD."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, as a multiple of that of the other weights."""
    freeze: int = 0
    """First steps (in face attributes: of each stage) in which the backbone's weights are not trained."""
    clip: float = 0.0
    """Largest norm of all gradients together; longer ones are shortened to it. 0: no limit."""
    accumulate: int = 1
    """Parts in which a worker's samples of a step go through the model, one after another; the gradients are averaged. More
    parts need less memory. Batch norm and pair losses see the samples of one part at a time."""
    amp: bool = field(default=True, metadata=ALLOWED)
    """bfloat16 autocast on GPUs that have it."""
    sync_batch_norm: bool | None = None
    """Compute batch norm's statistics over the samples of all workers, so that the number of workers changes results only by
    rounding. Off: over each worker's own samples, which saves two messages a layer and step. If not given: off where there are
    several workers, their number is fixed, and each has 32 samples or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optim.weight_decay is {self.weight_decay}", "optim", "give 0 or more")
        if not 0 < self.backbone_lr < math.inf:
            raise InputError(f"optim.backbone_lr is {self.backbone_lr}", "optim", "give a factor above 0, such as 0.1")
        if self.freeze < 0 or not 0 <= self.clip < math.inf:
            raise InputError("optim.freeze and optim.clip must not be negative", "optim")
        if self.accumulate < 1:
            raise InputError(f"optim.accumulate is {self.accumulate}", "optim", "give a number of parts of at least 1")

    def check_parts(self, batch: int, workers: Iterable[int], unit: int = 1) -> None:
        """Check that each worker's samples of a step divide into ``accumulate`` equal parts.

        ``workers``: all numbers of workers that the run may have. ``unit``: samples drawn together, which no part splits.

        Raises:
            InputError: they do not.
        """
        for count in workers if self.accumulate > 1 else ():
            each = batch // count
            if each % (self.accumulate * unit):
                together = f", {unit} drawn together" if unit > 1 else ""
                what = f"the {each} samples of a worker{together}, cannot be divided into {self.accumulate} equal parts"
                raise InputError(what, "optim.accumulate", f"make them a multiple of {self.accumulate * unit}")


@dataclass(frozen=True)
class OptimConfig(OptimiserConfig):
    """How the weights are trained."""

    steps: int = 1000
    """Optimiser steps of the run."""
    lr: float = 2e-3
    """Highest learning rate, reached after the warm-up; then it falls to zero along half a cosine."""
    warmup: int = 50
    """Steps in which the learning rate rises linearly."""
    ema: float = 0.0
    """Evaluate and store an exponential moving average of the weights with this decay, such as 0.999; 0: the weights
    themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.warmup < 0:
            raise InputError("optim.steps must be at least 1, optim.warmup at least 0", "optim")
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}", "optim", "give a learning rate above 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"optim.ema is {self.ema}", "optim", "give a decay from 0 to below 1, such as 0.999")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step. It depends on the step alone, so that a resumed run has no schedule to restore."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


def build_optimiser(config: OptimConfig, task: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a task's trainable parameters. Those of its backbone are a group of their own if their rate is another.

    Raises:
        InputError: the backbone is to be trained in another way than the rest, and the task has none.
    """
    parameters: Any = [p for p in task.parameters() if p.requires_grad]
    if config.freeze or config.backbone_lr != 1:
        backbone = backbone_parameters(task)
        if not backbone:
            raise InputError("this model has no backbone", "optim.freeze, optim.backbone_lr", "leave them out")
        if config.backbone_lr != 1:
            rest = [p for p in parameters if all(p is not other for other in backbone)]
            parameters = [{"params": rest}, {"params": backbone, "factor": config.backbone_lr}]
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)


def moving_average(model: nn.Module, decay: float) -> Any:
    """torch's AveragedModel: a copy of the model for evaluation, whose ``module`` holds the moving average of its weights and
    of batch norm's statistics."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # here: it is seldom needed

    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).eval()


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; a group with a "factor" gets that multiple of it."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def backbone_parameters(task: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the task's modules that are called ``backbone``."""
    return [p for name, p in task.named_parameters() if "backbone" in name.split(".") and p.requires_grad]


def finish_gradients(
    task: nn.Module, config: OptimiserConfig, step: int, alone: Sequence[str] = (), group: dist.ProcessGroup | None = None
) -> None:
    """Between the backward pass and the optimiser's step: drop the gradients of a frozen backbone, and shorten long gradients.

    ``step``: from the beginning of training or of its stage. ``alone``: names of parameters that this rank alone holds, of whose
    gradients the norm is taken over all ranks of ``group``; every rank must get the same norm, for the others stay equal.
    """
    if step < config.freeze:
        for parameter in backbone_parameters(task):
            parameter.grad = None  # an optimiser leaves such weights, their momentum and decay alone
    if config.clip:
        gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
        own, shared = ([g for name, g in gradients.items() if (name in alone) == here] for here in (True, False))
        squares = sum_over_ranks(nn.utils.get_total_norm(own) ** 2, group) if alone else 0.0
        norm = (nn.utils.get_total_norm(shared) ** 2 + squares) ** 0.5
        nn.utils.clip_grads_with_norm_(task.parameters(), config.clip, norm)
