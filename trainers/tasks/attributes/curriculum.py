"""The stages of a curriculum: the settings of each, and which stage a run is in.

A stage ends when its smoothed loss is below a threshold, or after ``most`` steps. The loss is the mean over all ranks, so every
rank ends the stage at the same step. The state is plain data in the run's `TrainingLog`, so a resumed run ends it there, too.
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

DECAY = 0.95  # of the smoothed loss, per step
CHECK = 10  # steps between two checks: reading the loss makes the device wait


@dataclass(frozen=True)
class StageConfig:
    """How a stage is trained, and when it ends."""

    threshold: float = field(default=0.0, metadata=ALLOWED)
    """The stage ends when its smoothed loss is below this; 0: never."""
    least: int = field(default=50, metadata=ALLOWED)
    """Minimum number of steps."""
    most: int = field(default=300, metadata=ALLOWED)
    """Maximum number of steps; the report says when the threshold was not reached by then."""
    lr: float = field(default=2e-3, metadata=ALLOWED)
    """Peak learning rate, reached after the warm-up; it then falls to zero along half a cosine."""
    warmup: int = field(default=20, metadata=ALLOWED)
    """Steps over which the learning rate rises linearly."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"a stage of {self.least} to {self.most} steps", "stage", "give 1 <= least <= most")
        if not 0 < self.lr < math.inf or self.warmup < 0:
            what = f"a learning rate of {self.lr} with a warm-up of {self.warmup} steps"
            raise InputError(what, "stage", "give a rate above 0 and a warm-up of at least 0")
        if not 0 <= self.threshold < math.inf:
            raise InputError(f"a threshold of {self.threshold}", "stage", "give 0 (never) or more")

    def optim(self, base: OptimiserConfig) -> OptimConfig:
        """The optimiser settings of this stage."""
        return OptimConfig(**asdict(base), steps=self.most, lr=self.lr, warmup=self.warmup)


class StageLog:
    """The stages that a run has entered, as entries of its `TrainingLog`; the last entry is the current stage."""

    def __init__(self, notes: dict[str, Any], group: dist.ProcessGroup | None) -> None:
        self.entries: list[dict[str, Any]] = notes.setdefault("stages", [])
        self.group = group
        self._unread: list[Tensor] = []

    @property
    def now(self) -> int:
        """The current stage, counted from 0; -1 before the first."""
        return len(self.entries) - 1

    @property
    def over(self) -> bool:
        """Whether the current stage has ended."""
        return bool(self.entries[-1]["ended"])

    @property
    def first(self) -> int:
        """The step at which the current stage began."""
        return int(self.entries[-1]["first"])

    @property
    def smoothed(self) -> float:
        """The smoothed loss at the last `settle`: an exponential mean, corrected for its start at 0; infinite before any."""
        entry = self.entries[-1]
        return float(entry["mean"]) / (1 - DECAY ** entry["steps"]) if entry["steps"] else math.inf

    def enter(self, step: int) -> None:
        """Begin the next stage."""
        self.entries.append({"first": step, "steps": 0, "mean": 0.0, "ended": ""})

    def cut(self, stage: StageConfig) -> None:
        """End the current stage if it has made ``most`` steps already: a resumed run may lower ``most``."""
        if not self.over and self.entries[-1]["steps"] >= stage.most:
            self.entries[-1]["ended"] = f"it had {self.entries[-1]['steps']} steps when its most became {stage.most}"

    def add(self, loss: Tensor, stage: StageConfig) -> bool:
        """Add a step's loss; returns whether the stage has ended with this step."""
        self._unread.append(loss)
        steps = self.entries[-1]["steps"] + len(self._unread)
        if steps % CHECK == 0 or steps == stage.most:
            self.settle()
            if stage.threshold and steps >= stage.least and self.smoothed < stage.threshold:
                self.entries[-1]["ended"] = f"its smoothed loss of {self.smoothed:.4f} is under {stage.threshold:g}"
            elif steps == stage.most:
                aim = f", without its smoothed loss of {self.smoothed:.4f} coming under {stage.threshold:g}"
                self.entries[-1]["ended"] = f"it reached its {steps} steps{aim if stage.threshold else ''}"
        return self.over

    def settle(self) -> None:
        """Include all losses added so far in the entry. Every rank calls this at the same step, before a checkpoint."""
        if not self._unread:
            return
        losses = torch.stack(self._unread).double()
        if self.group is not None:
            dist.all_reduce(losses, group=self.group)
            losses /= dist.get_world_size(self.group)
        entry = self.entries[-1]
        for loss in losses.tolist():
            entry["mean"] = DECAY * entry["mean"] + (1 - DECAY) * loss
        entry["steps"] += len(self._unread)
        self._unread.clear()
