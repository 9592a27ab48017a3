"""What can be done with a trained run: the options that evaluate, predict and export share, and how a run is opened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from trainers.engine.job import JobConfig, absolute, stored_config
from trainers.engine.run import Run

C = TypeVar("C", bound=JobConfig)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class OnRun:
    """Options of every verb that uses a trained run."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""


@dataclass(frozen=True, kw_only=True)
class OnData(OnRun):
    """Options of evaluations."""

    data: str = ""
    """Another shard set than the run's own."""
    workers: int = 1
    """Loader processes."""


@dataclass(frozen=True, kw_only=True)
class OnSets(OnRun):
    """Options of evaluations that take several sets."""

    data: tuple[str, ...] = ()
    """Shard sets to evaluate on; default: the run's own."""
    workers: int = 1
    """Loader processes."""


@dataclass(frozen=True, kw_only=True)
class ToFile(OnRun):
    """Options of exports."""

    to: Path
    """The file: *.onnx or *.pt2."""


class Opened(NamedTuple):
    """A run that has ended: its folder, its config, what `TrainingRun.finish` kept of it, and the device to use the model on."""

    run: Run
    config: Any
    state: dict[str, Any]
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes, where the run kept them."""
        height, width = self.state["size"]
        return height, width

    def loaded(self, model: M, weights: str = "model") -> M:
        """The model with the run's weights, ready to use."""
        model.load_state_dict(self.state[weights])
        return model.to(self.device).eval()


def open_run(kind: type[C], verb: OnRun) -> Opened:
    """The run that a verb names, on the GPU if there is one; raises InputError when there is none, or it has not ended."""
    run = Run(absolute(verb.runs), verb.name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Opened(run, stored_config(kind, run), run.read_model(), device)


def print_unread(bad: Sequence[str]) -> None:
    """Print what could not be read in an evaluation."""
    for failure in bad:
        print(f"could not be read and was left out: {failure}")


def export(
    write: Callable[[nn.Module, tuple[int, ...]], float], model: nn.Module, size: tuple[int, ...], to: Path, what: str,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Write an exported model with ``write`` (`trainers.engine.export.exporter`), and print what it takes and gives.

    ``what``: the inputs in words; ``notes``: what else is worth a line, such as the names of its outputs.
    """
    difference = write(model.cpu(), size)
    print(f"exported {to}: {what}, greatest difference {difference:.1e}")
    for name, values in (notes or {}).items():
        if values:
            print(f"{name}: {', '.join(values)}")
