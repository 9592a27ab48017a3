"""A worker of a run under Ray Train: its rank, its reports and its checkpoints."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster.checkpoint_folder import RunFolder, fetch, step_of
from cluster.prometheus import Figures

SCRATCH = "hardshard-checkpoint-"  # the prefix of temporary folders' names
LEFT_OVER_S = 60.0  # age in seconds from which a folder that no process has locked is taken for a dead worker's


class RayWorker(NamedTuple):
    """This process as one of the run's workers. `cluster.local_worker.LocalWorker` has the same methods without Ray."""

    rank: int
    world: int
    device: torch.device
    progress: Any  # the actor `cluster.progress.Progress`
    figures: Figures
    folder: RunFolder

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group, when there is more than one worker."""
        return dist.group.WORLD if self.world > 1 else None

    def record(self, record: dict[str, Any], counts: Mapping[str, float] = MappingProxyType({})) -> None:
        """Report figures of a step and this worker's counters so far. Every rank calls it; rank 0's also reach the driver."""
        self.figures.report(record, counts)
        if self.rank == 0:
            self.progress.record.remote(record)

    def say(self, notice: str) -> None:
        """Print a sentence on the driver's console, from any rank."""
        self.progress.say.remote(notice)

    def save(
        self, name: str, write: Callable[[Path], None], figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """Store a checkpoint; every rank calls this at the same step.

        ``write`` puts files into the folder that it gets, on rank 0 only; ``write_own`` does so on every rank, under names that
        differ between ranks. All files are stored in one folder. ``figures``: the score and the step, for sweeps.
        """
        writers = ([write] if self.rank == 0 else []) + ([write_own] if write_own else [])
        figures = dict(figures or {}) if self.rank == 0 else {}
        if not writers:
            ray.train.report(figures, checkpoint=None)
            return
        if write_own:  # a folder of its own for each number of workers: an interrupted save may have left other ranks' files
            name = f"{name}-of-{self.world}"
        with scratch() as folder:
            for writer in writers:
                writer(folder)
            ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """What ``read`` returns for a folder with the files of the run's latest checkpoint; None when there is no checkpoint yet.

        ``wanted``: picks the files that are fetched from their names; None: all.
        """
        checkpoint, local = ray.train.get_checkpoint(), self.folder.latest_local()
        if checkpoint is None and not local:
            return None
        if checkpoint is None or step_of(local) > step_of(checkpoint.path.rpartition("/")[2]):  # trained locally since
            filesystem, path = self.folder.filesystem, f"{self.folder.path}/{local}"
        else:
            filesystem, path = checkpoint.filesystem, checkpoint.path
        # Each rank uses a folder of its own: Ray's as_directory() gives a node's ranks one together, and a rank that comes later
        # overwrites the file that another is reading (seen with Ray 2.60 and S3).
        with scratch() as folder:
            fetch(filesystem, path, folder, wanted)
            return read(folder)


def this_worker(settings: dict[str, Any]) -> RayWorker:
    """This process's worker under Ray Train. ``settings``: as `cluster.ray_train.launch` passed them."""
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    name = context.get_experiment_name()
    return RayWorker(rank, world, device, settings["progress"], Figures(name, rank), RunFolder(settings["runs"], name))


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder; also removes those that killed workers left."""
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_OVER_S and _unlocked(old):
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)  # the kernel releases it when the process dies
        try:
            yield Path(folder)
        finally:
            os.close(held)


def _unlocked(folder: Path) -> bool:
    """Whether no process has the folder locked."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
