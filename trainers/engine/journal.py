"""How far a run has come and what it has told: a part of its checkpoints, so that a resumed run tells the whole story."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch import nn

from trainers.engine.checkpoint import read_state, write_state
from trainers.engine.loop import Step

STATE = "state.pt"


@dataclass
class Journal:
    """What a run has told. ``draws``: crc32c over this rank's share of all batches drawn: equal for equal runs."""

    step: int = 0
    seconds: float = 0.0
    draws: int = 0
    records: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """What only one kind of job has to tell."""

    def __post_init__(self) -> None:
        self._began = time.perf_counter() - self.seconds

    def note(self, step: Step) -> None:
        """Count a step."""
        self.step, self.seconds = step.done, time.perf_counter() - self._began
        self.draws = google_crc32c.extend(self.draws, step.batch["positions"].numpy().tobytes())

    def record(self, means: Mapping[str, float], steps: int, batch: int) -> dict[str, float]:
        """Keep a record of the last steps' means; returns it with what a live line wants besides: steps and ETA in seconds."""
        entry = {"step": self.step, **means}
        self.records.append(entry)
        return {**entry, "steps": steps, "eta_s": (steps - self.step) * batch / means["samples_per_s"]}

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint or a JSON file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def write_checkpoint(task: nn.Module, optimiser: torch.optim.Optimizer, journal: Journal, folder: Path, **more: Any) -> None:
    """Write a checkpoint's file into a folder; ``more``: tensors and plain data that a job adds."""
    state = {"task": task.state_dict(), "optimiser": optimiser.state_dict(), "journal": journal.state()}
    write_state(folder / STATE, {**state, **more})


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote; raises InputError when it is damaged."""
    return read_state(folder / STATE)


def crc32c_of(task: nn.Module) -> int:
    """A checksum of all weights and buffers: equal for runs that are equal to the bit."""
    checksum = 0
    for tensor in task.state_dict().values():
        checksum = google_crc32c.extend(checksum, tensor.cpu().contiguous().numpy().tobytes())
    return checksum
