"""The folder of files that a node keeps between runs: the shipped data as shards, and fetched weights of models."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.errors import InputError


@contextmanager
def locked_home(name: str, what: str) -> Iterator[Path]:
    """The folder $HARDSHARD_HOME, else ~/.cache/hardshard. One process of the node at a time is within, for each ``name``.

    Raises:
        InputError: the folder cannot be written; ``what`` says what cannot be done then.
    """
    home = Path(os.environ.get("HARDSHARD_HOME") or Path.home() / ".cache" / "hardshard")
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / f"{name}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{what} ({error.strerror})", str(home), "set HARDSHARD_HOME") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home
