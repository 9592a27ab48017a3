"""A worker of a run under Ray Train: its rank, its reports and its checkpoints."""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist

from cluster.checkpoint_folder import RunFolder
from cluster.errors import StoppedError
from cluster.prometheus import Figures
from cluster.ray_compat import withdrawal

Asked = Literal["", "store", "stop"]
ASKED: tuple[Asked, ...] = get_args(Asked)
LAST_S = 30.0  # time before a node's withdrawal in which the second checkpoint is stored


class RayWorker(NamedTuple):
    """This process as one of the run's workers. `cluster.local_worker.LocalWorker` has the same methods without Ray."""

    rank: int
    world: int
    device: torch.device
    progress: Any  # the actor `cluster.progress.Progress`
    figures: Figures
    folder: RunFolder
    requests: "Requests"

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

    def asked(self) -> Asked:
        """What the run is asked to do. Every rank calls this at the same step and gets rank 0's answer."""
        number = torch.tensor(ASKED.index(self.requests.newest() if self.rank == 0 else ""), device=self.device)
        if self.group:
            dist.broadcast(number, 0, group=self.group)
        return ASKED[int(number)]

    def stuck(self, what: str) -> None:
        """Say that a step does not end, and end this process: Ray Train then restarts the workers."""
        with suppress(ray.exceptions.RayError):
            said = self.progress.say.remote(f"rank {self.rank} on {socket.gethostname()} is stuck and is restarted: {what}")
            ray.get(said, timeout=10)
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, step: int) -> NoReturn:
        """End this worker's part in a run that was asked to end; every rank calls this."""
        raise StoppedError(step)

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
        differ between ranks. All files are stored in one folder. ``figures``: the score and the step, for sweeps. Ray is not told
        of the checkpoint: it would keep a list of its own, and end the run when it cannot store that.
        """
        self.folder.save(self, name, write, write_own, lambda: ray.train.report(dict(figures or {})))

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


class Requests:
    """What a run is asked to do: to end (`cluster.progress.Progress.stop`), or to store a checkpoint before Ray withdraws a node.

    Of the latter there are two: at the notice, and when the node's time is nearly over, so that the steps between are not lost.
    """

    def __init__(self, progress: Any) -> None:
        self._stopped = progress.until_stopped.remote()
        self._stored = set[tuple[float, bool]]()

    def newest(self) -> "Asked":
        """What is asked for now; each checkpoint is asked for once."""
        if ray.wait([self._stopped], timeout=0)[0]:
            return "stop"
        deadline = withdrawal()
        if deadline is None:
            return ""
        request = (deadline, deadline - time.time() < LAST_S)
        known = request in self._stored
        self._stored.add(request)
        return "" if known else "store"


def this_worker(settings: dict[str, Any]) -> RayWorker:
    """This process's worker under Ray Train. ``settings``: as `cluster.ray_train.launch` passed them."""
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    folder: RunFolder = settings["folder"]
    progress = settings["progress"]
    progress.begin.remote()
    return RayWorker(rank, world, device, progress, Figures(folder.name, rank), folder, Requests(progress))
