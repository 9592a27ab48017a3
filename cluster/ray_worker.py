"""A worker of a run under Ray Train: its rank, its reports and its checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from cluster.checkpoint_folder import RunFolder
from cluster.prometheus import Figures


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

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks; every rank calls this."""
        values = [value] * self.world
        if self.group:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def save(
        self, name: str, write: Callable[[Path], None], figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """Store a checkpoint, in a thread (`RunFolder.save`); every rank calls this at the same step.

        ``write`` puts files into the folder that it gets, on rank 0 only; ``write_own`` does so on every rank, under names that
        differ between ranks. All files are stored in one folder. ``figures``: the score and the step, for sweeps.
        """

        def report(name: str) -> None:
            if self.rank:
                ray.train.report({}, checkpoint=None)
                return
            checkpoint = ray.train.Checkpoint(f"{self.folder.path}/{name}", self.folder.filesystem)
            ray.train.report(dict(figures or {}), checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

        self.folder.save(self, name, write, write_own, report)

    def flush(self) -> None:
        """Wait until the last checkpoint is stored (`RunFolder.flush`)."""
        self.folder.flush()

    def meet(self) -> None:
        """Wait in a thread until every rank's thread has called this; training may use the process group meanwhile."""
        ray.train.collective.barrier()

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """What ``read`` returns for a folder with the newest whole checkpoint's files; None for none (`RunFolder.restore`).

        ``wanted``: picks the files that are fetched from their names; None: all. Each rank fetches into a folder of its own:
        Ray's as_directory() gives a node's ranks one together, and a rank that comes later overwrites the file that another is
        reading (seen with Ray 2.60 and S3).
        """
        return self.folder.restore(self, read, wanted)


def this_worker(settings: dict[str, Any]) -> RayWorker:
    """This process's worker under Ray Train. ``settings``: as `cluster.ray_train.launch` passed them."""
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    folder: RunFolder = settings["folder"]
    return RayWorker(rank, world, device, settings["progress"], Figures(folder.name, rank), folder)
