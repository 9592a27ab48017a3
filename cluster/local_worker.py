"""A run's only worker in this process, without Ray: to try a job out and to debug it, and for tests and benchmarks."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cluster.checkpoint_folder import RunFolder, fetch
from cluster.config import ClusterConfig
from cluster.exporter import exported_run


@dataclass(frozen=True)
class LocalWorker:
    """The only worker; has the methods of `cluster.ray_worker.RayWorker`."""

    device: torch.device
    folder: RunFolder
    keep: int
    """Checkpoints kept."""
    show: Callable[[list[dict[str, Any]], list[str]], None]
    report: Callable[[Mapping[str, Any], Mapping[str, float]], None] = lambda record, counts: None
    """Exports a step's record and the counters so far."""
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

    def save(
        self, name: str, write: Callable[[Path], None], figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """Store a checkpoint of the files that ``write`` and ``write_own`` put into a folder."""
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            if write_own:
                write_own(Path(folder))
                name = f"{name}-of-1"
            self.folder.put(Path(folder), name, self.keep)

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """What ``read`` returns for a folder with the files of the run's latest checkpoint; None when there is no checkpoint yet.

        ``wanted``: picks the files that are fetched from their names; None: all.
        """
        if not (name := self.folder.latest()):
            return None
        with tempfile.TemporaryDirectory() as folder:
            fetch(self.folder.filesystem, f"{self.folder.path}/{name}", Path(folder), wanted)
            return read(Path(folder))


def train_here(
    work: Callable[[LocalWorker, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, *,
    name: str, runs: str, show: Callable[[list[dict[str, Any]], list[str]], None],
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` here, on the GPU if there is one; returns what it returns, raises what it raises.

    Raises:
        ClusterError: the port for figures is in use, or their file cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and config.gpu is not False else "cpu")
    with exported_run(name, config) as report:
        return work(LocalWorker(device, RunFolder(runs, name), config.keep_checkpoints, show, report), settings)
