"""The optimiser's settings, its learning-rate schedule, and how it is built."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from datasets.errors import InputError
from trainers.engine.config import ALLOWED


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser of all stages."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum of 0.9."""
    weight_decay: float = 5e-4
    """Weight decay: decoupled in AdamW, an L2 penalty in SGD."""
    amp: bool = field(default=True, metadata=ALLOWED)
    """bfloat16 autocast on GPUs that have it."""
    sync_batch_norm: bool | None = None
    """Compute batch norm's statistics over the samples of all workers, so that the number of workers changes results only by
    rounding. Off: over each worker's own samples, which saves two messages a layer and step. If not given: off where there are
    several workers, their number is fixed, and each has 32 samples or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optim.weight_decay is {self.weight_decay}", "optim", "give 0 or more")


@dataclass(frozen=True)
class OptimConfig(OptimiserConfig):
    """How the weights are trained."""

    steps: int = 1000
    """Optimiser steps of the run."""
    lr: float = 2e-3
    """Highest learning rate, reached after the warm-up; then it falls to zero along half a cosine."""
    warmup: int = 50
    """Steps in which the learning rate rises linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.warmup < 0:
            raise InputError("optim.steps must be at least 1, optim.warmup at least 0", "optim")
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}", "optim", "give a learning rate above 0")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step. It depends on the step alone, so that a resumed run has no schedule to restore."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


def build_optimiser(config: OptimConfig, task: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a task's trainable parameters."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
