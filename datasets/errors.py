"""Errors of user input: one line that says what is wrong, where, and what to do; and a command's exit codes."""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn


def printable(text: str) -> str:
    """Return the text with control characters and invalid UTF-8 written as escapes, so that any terminal can print it."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair of surrogates, as in a JSON
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(Exception):
    """The user's input is wrong. The message says what, where and the remedy on one line. A command ends with exit code 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three as args, so that it pickles whole across Ray

    def __str__(self) -> str:
        what, where, remedy = (printable(" ".join(str(part).split())) for part in self.args)
        return what + (f": {where}" if where else "") + (f"; {remedy}" if remedy else "")


class UnreachableError(InputError):
    """A storage or service does not answer. The address may be wrong, or the outage temporary, so a run tries again."""

    transient = True


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 done, 2 wrong input (one line on stderr), 130 by Ctrl-C, 143 by SIGTERM, 141 if nobody reads what
    it prints any more (as in ``... | head``), else 1 with a traceback.

    An exception with an attribute ``exit_code`` ends in its text and that code, whichever package defines it.
    SIGTERM raises KeyboardInterrupt, so that what is open is closed; training answers it otherwise (`cluster.stopping`).
    """
    ended: list[int] = []
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, partial(_end, os.getpid(), ended))
    try:
        main()
    except KeyboardInterrupt:
        print("ended by SIGTERM" if ended else "interrupted", file=sys.stderr)
        sys.exit(143 if ended else 130)
    except BrokenPipeError:
        if not _unread():
            raise
        sys.exit(141)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"error: {error}" if code < 128 else error, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _unread() -> bool:
    """Whether stdout is a pipe whose reader has gone; then Python must not try to write there at its end."""
    polled = select.poll()
    polled.register(sys.stdout.fileno(), 0)  # errors are always reported
    gone = any(event & select.POLLERR for _, event in polled.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _end(process: int, ended: list[int], number: int, frame: FrameType | None) -> None:
    """Interrupt `run_main` in its process; in a forked one, which has inherited this handler, do what is usual."""
    if os.getpid() != process:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    ended.append(number)
    raise KeyboardInterrupt  # Ray passes no other exception of a signal's handler on
