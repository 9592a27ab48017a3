"""A worker's end of a run: which one it is, what it tells, and its checkpoints."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow.fs
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster.metrics import Figures

SCRATCH = "hardshard-checkpoint-"  # how temporary folders' names begin
LEFT_OVER_S = 60.0  # seconds after which one that nobody holds is taken for a dead worker's


class Worker(NamedTuple):
    """This process among the run's workers."""

    rank: int
    world: int
    device: torch.device
    progress: Any  # the Progress actor
    figures: Figures

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group, when there is more than one worker."""
        return dist.group.WORLD if self.world > 1 else None

    def record(self, record: dict[str, Any], counts: Mapping[str, float] = MappingProxyType({})) -> None:
        """Tell numbers of a step and what this worker has counted so far; all ranks do, and rank 0's reach the driver, too."""
        self.figures.tell(record, counts)
        if self.rank == 0:
            self.progress.record.remote(record)

    def say(self, notice: str) -> None:
        """Tell a sentence; of all ranks."""
        self.progress.say.remote(notice)


def this_worker(settings: dict[str, Any]) -> Worker:
    """The worker that this process is, under Ray Train. ``settings``: what it was started with by `cluster.launch.launch`."""
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    return Worker(rank, world, device, settings["progress"], Figures(context.get_experiment_name(), rank))


def save_checkpoint(
    worker: Worker,
    name: str,
    write: Callable[[Path], None],
    figures: Mapping[str, float] | None = None,
    shared: Callable[[Path], None] | None = None,
) -> None:
    """Store a checkpoint: every rank calls this at the same step, rank 0 writes its files into the folder that it is given.

    ``figures``: what a sweep should know of the run by then. ``shared``: what every rank writes besides, under names that differ;
    it all comes to stand in one folder.
    """
    writers = ([write] if worker.rank == 0 else []) + ([shared] if shared else [])
    told = dict(figures or {}) if worker.rank == 0 else {}
    if not writers:
        ray.train.report(told, checkpoint=None)
        return
    if shared:  # else files of a save that another number of workers did not end would stand among those of this one
        name = f"{name}-of-{worker.world}"
    with _scratch() as folder:
        for writer in writers:
            writer(folder)
        ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def restore_checkpoint(read: Callable[[Path], Any], wanted: Callable[[list[str]], list[str]] | None = None) -> Any:
    """``read`` of the run's latest checkpoint's folder; None when there is no checkpoint yet.

    ``wanted``: of the names of its files those that are fetched; None: all.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with _scratch() as folder:
        # Into a folder of our own: as_directory() shares one among a node's ranks, and one that comes later downloads over the
        # file that another is reading (seen with Ray 2.60 and S3).
        if wanted is None:
            checkpoint.to_directory(folder)
        else:
            found = checkpoint.filesystem.get_file_info(pyarrow.fs.FileSelector(checkpoint.path))
            for name in wanted([file.base_name for file in found if file.type == pyarrow.fs.FileType.File]):
                source, target = f"{checkpoint.path}/{name}", f"{folder}/{name}"
                pyarrow.fs.copy_files(source, target, source_filesystem=checkpoint.filesystem)
        return read(folder)


@contextmanager
def _scratch() -> Iterator[Path]:
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
