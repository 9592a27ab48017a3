"""SIGTERM, by which Kubernetes, a spot withdrawal and `ray job stop` ask a run to end: noted, and answered between two steps."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.checkpoint_folder import RunFolder
from cluster.errors import StoppedError


@contextmanager
def sigterm_noted() -> Iterator[threading.Event]:
    """An event that SIGTERM sets within this context. Outside the main thread, which alone gets signals, it is never set.

    Raises:
        StoppedError: at a second SIGTERM.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt  # Ray passes no other exception of a signal's handler on
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    except KeyboardInterrupt:
        if asked.is_set():
            raise StoppedError(0) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def how_to_continue(folder: RunFolder) -> str:
    """The command that continues a run, with the script that this process runs; as a remedy."""
    command = ["python", sys.argv[0], "--name", folder.name, "--runs", folder.runs, "--resume"]
    return f"continue it with: {shlex.join(command)}"
