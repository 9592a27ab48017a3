"""Temporary folders for checkpoints, which do not stay when a process that has one is killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH = "hardshard-checkpoint-"  # the prefix of their names
LEFT_OVER_S = 60.0  # age in seconds from which a folder that no process has locked is taken for a dead worker's


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
