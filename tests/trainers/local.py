"""A run's one worker in this process, in the place of Ray Train's: seconds instead of a quarter of a minute a run."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.worker import Worker


class KilledError(Exception):
    """What ends a worker that is killed."""


class LocalRay:
    """Stands for `cluster.launch` and `cluster.worker` in a job's module: the job's own code does all the rest.

    ``dies_after``: the name of a checkpoint after which the worker is killed, once; the next launch resumes from it.
    """

    def __init__(self, module: ModuleType, patch: pytest.MonkeyPatch, dies_after: str = "") -> None:
        self.dies_after = dies_after
        self.folder = Path()
        for name in ("launch", "this_worker", "save_checkpoint", "restore_checkpoint"):
            patch.setattr(module, name, getattr(self, name))
        patch.setattr(module, "connect", lambda config: None)

    def launch(
        self, work: Callable[[dict[str, Any]], Any], settings: dict[str, Any], *_: Any, name: str, runs: str, **__: Any
    ) -> Any:
        """Run the worker, again if it is killed."""
        self.folder = Path(runs) / name
        try:
            return work(settings)
        except KilledError:
            return work(settings)

    def this_worker(self, _: dict[str, Any]) -> Worker:
        """The only one."""
        remote = SimpleNamespace(remote=lambda _: None)
        figures: Any = SimpleNamespace(tell=lambda record, counts: None)
        return Worker(0, 1, torch.device("cpu"), SimpleNamespace(record=remote, say=remote), figures)

    def save_checkpoint(
        self, _: Worker, name: str, write: Callable[[Path], None], figures: Mapping[str, float] | None = None
    ) -> None:
        """Store a checkpoint in the run's folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir(parents=True)
        write(self.folder / name)
        if name == self.dies_after:
            self.dies_after = ""
            raise KilledError

    def restore_checkpoint(self, read: Callable[[Path], Any]) -> Any:
        """The latest checkpoint; None for none."""
        folders = sorted(self.folder.glob("step-*"))
        return read(folders[-1]) if folders else None
