"""A run's only worker in this process, without Ray: to try a job out and to debug it, and for tests and benchmarks."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch

from cluster.checkpoint_folder import RunFolder
from cluster.config import ClusterConfig
from cluster.errors import StoppedError
from cluster.exporter import exported_run


@dataclass(frozen=True)
class LocalWorker:
    """The only worker; has the methods of `cluster.ray_worker.RayWorker`."""

    device: torch.device
    folder: RunFolder
    show: Callable[[list[dict[str, Any]], list[str]], None]
    report: Callable[[Mapping[str, Any], Mapping[str, float]], None] = lambda record, counts: None
    """Exports a step's record and the counters so far."""
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the run is asked to end."""
    rank: int = 0
    world: int = 1
    group: None = None

    def record(self, record: dict[str, Any], counts: Mapping[str, float] = MappingProxyType({})) -> None:
        """Show figures of a step, and export them with this worker's counters."""
        self.report(record, counts)
        self.show([record], [])

    def say(self, notice: str) -> None:
        """Print a sentence."""
        self.show([], [notice])

    def asked(self) -> Literal["", "stop"]:
        """Whether the run has been asked to end."""
        return "stop" if self.ending.is_set() else ""

    def stuck(self, what: str) -> None:
        """Print that a step does not end."""
        self.say(f"{what}; a local run is not restarted")

    def stop(self, step: int) -> NoReturn:
        """End a run that was asked to end."""
        raise StoppedError(step)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        return [value]

    def save(
        self, name: str, write: Callable[[Path], None], figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """Store a checkpoint of the files that ``write`` and ``write_own`` put into a folder, in a thread (`RunFolder.save`)."""
        self.folder.save(self, name, write, write_own)

    def flush(self) -> None:
        """Wait until the last checkpoint is stored (`RunFolder.flush`)."""
        self.folder.flush()

    def meet(self) -> None:
        """There is no other rank to wait for."""

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """What ``read`` returns for a folder with the newest whole checkpoint's files; None for none (`RunFolder.restore`)."""
        return self.folder.restore(self, read, wanted)


def train_here(
    work: Callable[[LocalWorker, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, folder: RunFolder,
    show: Callable[[list[dict[str, Any]], list[str]], None], asked: threading.Event,
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` here, on the GPU if there is one; returns what it returns, raises what it raises.

    ``asked``: when it is set, the worker stores a checkpoint and ends.

    Raises:
        StoppedError: ``asked`` was set.
        ClusterError: the port for figures is in use, or their file cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and config.gpu is not False else "cpu")
    with exported_run(folder.name, config) as report, folder.flushed():
        return work(LocalWorker(device, folder, show, report, asked), settings)
