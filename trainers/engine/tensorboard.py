"""TensorBoard scalars of a run, in its folder or in S3."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from datasets.errors import InputError
from datasets.object_storage import Folder
from trainers.engine.run import Run

GROUPS = {"loss": "train", "accuracy": "train", "lr": "train", "stage": "train", "samples_per_s": "speed", "wait": "speed"}
STORE_EVERY_S = 30.0  # seconds between two uploads
SHOWN_WITHIN_S = 1.0  # seconds from a worker's record until it is here

_open: "list[Scalars]" = []  # of this process


def close_scalars() -> None:
    """Store the scalars of the runs that this process is showing, before it is ended in the middle of them; raises InputError."""
    if _open:
        time.sleep(SHOWN_WITHIN_S)
    for scalars in list(_open):
        scalars.close()


class Scalars:
    """Writes records into ``tensorboard/`` of the run's folder as they come; into S3 as one file, every 30 s and when closed.

    A full disk ends this, and not the run: ``say`` gets a sentence.
    """

    def __init__(self, run: Run, say: Callable[[str], None] = print) -> None:
        self._run, self._say = run, say
        self._spool = None if isinstance(run.objects, Folder) else tempfile.TemporaryDirectory()
        self._folder = Path(self._spool.name if self._spool else f"{run.url}/tensorboard")
        self._last, self._stored = 0.0, time.monotonic()
        self._writer = SummaryWriter(self._folder)
        _open.append(self)

    def __enter__(self) -> Self:
        return self

    def add(self, record: Mapping[str, float]) -> None:
        """Write a record's figures at its "step"."""
        if record["step"] <= self._last or self not in _open:  # repeated after a restart; or of a trial that is being stopped
            return
        self._last = record["step"]
        try:
            self._write(record)
        except OSError as error:
            _open.remove(self)
            self._say(f"no more scalars are written for TensorBoard ({error.strerror or error}): {self._folder}")

    def _write(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            group = "losses" if name.startswith("loss_") else GROUPS.get(name)  # the parts of a loss
            if group:
                self._writer.add_scalar(f"{group}/{name}", value, record["step"])
        if time.monotonic() - self._stored > STORE_EVERY_S:
            self._writer.flush()
            with suppress(InputError):  # it is stored again later
                self._store()

    def _store(self) -> None:
        self._stored = time.monotonic()
        if self._spool:
            for file in self._folder.iterdir():
                self._run.objects.put_file(f"tensorboard/{file.name}", file)

    def close(self) -> None:
        """Store what was written; raises InputError where S3 refuses it."""
        if self in _open:
            _open.remove(self)
            with suppress(OSError):  # a full disk
                self._writer.close()
            self._store()
        if self._spool:
            self._spool.cleanup()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
