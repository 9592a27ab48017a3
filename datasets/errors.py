"""What is said, and how a command ends, when the user's input is wrong."""

import sys
from collections.abc import Callable
from typing import NoReturn


def printable(text: str) -> str:
    """A text that any terminal and any file takes: control characters and bytes that are no UTF-8 are written as escapes."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair of surrogates, as in a JSON
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(Exception):
    """The user's input is wrong: says what, where and what to do, on one line. Ends a command with exit code 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three as args, so that it pickles whole across Ray

    def __str__(self) -> str:
        what, where, remedy = (printable(" ".join(str(part).split())) for part in self.args)
        return what + (f": {where}" if where else "") + (f"; {remedy}" if remedy else "")


class UnreachableError(InputError):
    """Storage or service that does not answer: the address may be wrong, or it is away for a while, so that a run tries again."""

    transient = True


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a command to its exit code: 0 done, 2 the input is wrong (one line on stderr), 130 interrupted, else a traceback and 1.

    An exception says that the input is wrong by an attribute ``exit_code`` equal to 2, whichever package defines it.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if getattr(error, "exit_code", 1) != 2:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
