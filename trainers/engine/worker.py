"""What a job needs of its worker, be it `cluster.ray_worker.RayWorker` or, without Ray, `cluster.local_worker.LocalWorker`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch
import torch.distributed as dist

Asked = Literal["", "store", "stop"]  # nothing; store a checkpoint, since a node is about to be withdrawn; store one and end


class Worker(Protocol):
    """One of the run's ``world`` processes, with its ``rank``; ``group`` is None when it is the only one."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def group(self) -> dist.ProcessGroup | None: ...

    def record(self, record: dict[str, Any], counts: Mapping[str, float] = ...) -> None:
        """Report figures of a step and this worker's counters."""

    def say(self, notice: str) -> None:
        """Print a sentence on the driver's console."""

    def asked(self) -> Asked:
        """What the run is asked to do; every rank calls this at the same step and gets the same answer."""

    def stop(self, step: int) -> NoReturn:
        """End this worker's part in a run that was asked to end, with a checkpoint of this step."""

    def stuck(self, what: str) -> None:
        """Report that a step does not end; called in a thread. On a cluster this ends the process, which is then restarted."""

    def save(
        self,
        name: str,
        write: Callable[[Path], None],
        figures: Mapping[str, float] | None = None,
        write_own: Callable[[Path], None] | None = None,
    ) -> None:
        """Store a checkpoint of what ``write`` (rank 0) and ``write_own`` (every rank) put into a folder, in a thread."""

    def flush(self) -> None:
        """Wait until the last checkpoint is stored; raises its error."""

    def restore(self, read: Callable[[Path], Any], wanted: Callable[[list[str]], Sequence[str]] | None = None) -> Any:
        """``read`` of the newest whole checkpoint's folder, with the files that ``wanted`` picks; None when there is none."""
