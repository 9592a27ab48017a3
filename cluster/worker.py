"""A worker of a run under Ray Train: which one it is, what it reports, and its checkpoints."""

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

from cluster.checkpoints import RunFolder, fetch, step_of
from cluster.prometheus import Figures

SCRATCH = "hardshard-checkpoint-"  # how temporary folders' names begin
LEFT_OVER_S = 60.0  # seconds after which one that nobody holds is taken for a dead worker's


class RayWorker(NamedTuple):
    """This process among the run's workers. `cluster.local.LocalWorker` offers the same without Ray."""

    rank: int
    world: int
    device: torch.device
    progress: Any  # the Progress actor
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
        self,
        name: str,
        write: Callable[[Path], None],
        figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:
        """Store a checkpoint: every rank calls this at the same step, rank 0 writes its files into the folder that it is given.

        ``figures``: what a sweep compares runs by. ``write_own``: what every rank writes besides, under names that differ; all
        files come to lie in one folder.
        """
        writers = ([write] if self.rank == 0 else []) + ([write_own] if write_own else [])
        figures = dict(figures or {}) if self.rank == 0 else {}
        if not writers:
            ray.train.report(figures, checkpoint=None)
            return
        if write_own:  # else files of a save that another number of workers began and did not end would lie among these
            name = f"{name}-of-{self.world}"
        with scratch() as folder:
            for writer in writers:
                writer(folder)
            ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """``read`` of the folder of the run's latest checkpoint; None when there is no checkpoint yet.

        ``wanted``: picks the files that are fetched from their names; None: all.
        """
        checkpoint, local = ray.train.get_checkpoint(), self.folder.latest_local()
        if checkpoint is None and not local:
            return None
        if checkpoint is None or step_of(local) > step_of(checkpoint.path.rpartition("/")[2]):  # it went on without Ray since
            filesystem, path = self.folder.filesystem, f"{self.folder.path}/{local}"
        else:
            filesystem, path = checkpoint.filesystem, checkpoint.path
        # Into a folder of our own: as_directory() shares one among a node's ranks, and one that comes later downloads over the
        # file that another is reading (seen with Ray 2.60 and S3).
        with scratch() as folder:
            fetch(filesystem, path, folder, wanted)
            return read(folder)


def this_worker(settings: dict[str, Any]) -> RayWorker:
    """The worker that this process is, under Ray Train. ``settings``: what `cluster.ray_train.launch` started it with."""
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    name = context.get_experiment_name()
    return RayWorker(rank, world, device, settings["progress"], Figures(name, rank), RunFolder(settings["runs"], name))


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder. Those of workers that were killed while they had one, whom nobody else tidies up after, are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_OVER_S and _alone(old):
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)  # lifted by the kernel when the process dies
        try:
            yield Path(folder)
        finally:
            os.close(held)


def _alone(folder: Path) -> bool:
    """Whether no process holds the folder."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
