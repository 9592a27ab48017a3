"""TensorBoard scalars of a run, in its folder or in S3."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from datasets.object_storage import Folder
from trainers.engine.run import Run

GROUPS = {"loss": "train", "accuracy": "train", "lr": "train", "stage": "train", "samples_per_s": "speed", "wait": "speed"}


class Scalars:
    """Writes records into ``tensorboard/`` of the run's folder as they come; into S3 when closed, as one event file."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._spool = None if isinstance(run.objects, Folder) else tempfile.TemporaryDirectory()
        self._folder = Path(self._spool.name if self._spool else f"{run.url}/tensorboard")
        self._last = 0.0
        self._writer = SummaryWriter(self._folder)

    def __enter__(self) -> Self:
        return self

    def add(self, record: Mapping[str, float]) -> None:
        """Write a record's figures at its "step"."""
        if record["step"] <= self._last:  # repeated after a restart
            return
        self._last = record["step"]
        for name, value in record.items():
            group = "losses" if name.startswith("loss_") else GROUPS.get(name)  # the parts of a loss
            if group:
                self._writer.add_scalar(f"{group}/{name}", value, record["step"])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        if self._spool:
            for file in self._folder.iterdir():
                self._run.objects.put_file(f"tensorboard/{file.name}", file)
            self._spool.cleanup()
