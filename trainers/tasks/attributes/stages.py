"""A curriculum's stages: frozen settings of each, and where a run stands in them.

A stage ends when its smoothed loss is under a threshold, or at its most steps. What ends it is the mean of all ranks' losses, so
that every rank ends it at the same step; and the state is plain data in the run's journal, so that a resumed run does too.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from datasets.errors import InputError
from trainers.engine.config import ALLOWED
from trainers.engine.optim import OptimConfig, OptimiserConfig

DECAY = 0.95  # of the smoothed loss, a step
CHECK = 10  # steps between two looks at it: reading the loss makes the device wait


@dataclass(frozen=True)
class StageConfig:
    """How one stage is trained, and when it ends."""

    threshold: float = field(default=0.0, metadata=ALLOWED)
    """T: the stage ends when its smoothed loss is under this."""
    least: int = field(default=50, metadata=ALLOWED)
    """Steps that it trains at least."""
    most: int = field(default=300, metadata=ALLOWED)
    """Steps after which it ends all the same, and says so."""
    lr: float = field(default=2e-3, metadata=ALLOWED)
    """Highest learning rate, reached after the warm-up; half a cosine leads it to zero."""
    warmup: int = field(default=20, metadata=ALLOWED)
    """Steps in which the learning rate rises linearly."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"a stage of {self.least} to {self.most} steps", "stage", "give 1 <= least <= most")
        if not 0 < self.lr < math.inf or self.warmup < 0:
            what = f"a learning rate of {self.lr} with a warm-up of {self.warmup} steps"
            raise InputError(what, "stage", "give a rate above 0 and a warm-up of at least 0")
        if not 0 <= self.threshold < math.inf:
            raise InputError(f"a threshold of {self.threshold}", "stage", "give 0 (never) or more")

    def optim(self, base: OptimiserConfig) -> OptimConfig:
        """How the loop trains this stage."""
        return OptimConfig(**asdict(base), steps=self.most, lr=self.lr, warmup=self.warmup)


class StageLog:
    """The stages that a run has entered: a list in its journal, the last entry being the one that it is in."""

    def __init__(self, notes: dict[str, Any], group: dist.ProcessGroup | None) -> None:
        self.entries: list[dict[str, Any]] = notes.setdefault("stages", [])
        self.group = group
        self._fresh: list[Tensor] = []

    @property
    def now(self) -> int:
        """The number of the stage that the run is in; -1 before the first."""
        return len(self.entries) - 1

    @property
    def over(self) -> bool:
        """Whether that stage has ended."""
        return bool(self.entries[-1]["ended"])

    @property
    def first(self) -> int:
        """The step that it began with."""
        return int(self.entries[-1]["first"])

    @property
    def smoothed(self) -> float:
        """Its smoothed loss, as far as it was read: an exponential mean, corrected for its short past."""
        entry = self.entries[-1]
        return float(entry["mean"]) / (1 - DECAY ** entry["steps"]) if entry["steps"] else math.inf

    def enter(self, step: int) -> None:
        """Begin the next stage."""
        self.entries.append({"first": step, "steps": 0, "mean": 0.0, "ended": ""})

    def cut(self, stage: StageConfig) -> None:
        """End the stage if it has had its most steps already: a resumed run may have fewer of them than before."""
        if not self.over and self.entries[-1]["steps"] >= stage.most:
            self.entries[-1]["ended"] = f"it had {self.entries[-1]['steps']} steps when its most became {stage.most}"

    def add(self, loss: Tensor, stage: StageConfig) -> bool:
        """Take a step's loss in; tells whether the stage is over."""
        self._fresh.append(loss)
        steps = self.entries[-1]["steps"] + len(self._fresh)
        if steps % CHECK == 0 or steps == stage.most:
            self.settle()
            if steps >= stage.least and self.smoothed < stage.threshold:
                self.entries[-1]["ended"] = f"its smoothed loss of {self.smoothed:.4f} is under {stage.threshold:g}"
            elif steps == stage.most:
                aim = f", without its smoothed loss of {self.smoothed:.4f} coming under {stage.threshold:g}"
                self.entries[-1]["ended"] = f"it reached its {steps} steps{aim if stage.threshold else ''}"
        return self.over

    def settle(self) -> None:
        """Bring the entry up to date: every rank calls this at the same step, before the journal is stored."""
        if not self._fresh:
            return
        losses = torch.stack(self._fresh).double()
        if self.group is not None:
            dist.all_reduce(losses, group=self.group)
            losses /= dist.get_world_size(self.group)
        entry = self.entries[-1]
        for loss in losses.tolist():
            entry["mean"] = DECAY * entry["mean"] + (1 - DECAY) * loss
        entry["steps"] += len(self._fresh)
        self._fresh.clear()
