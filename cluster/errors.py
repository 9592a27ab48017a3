"""What is said, and how a command ends, when the cluster or what was asked of it is wrong."""

import sys
from collections.abc import Callable
from typing import NoReturn


class ClusterError(Exception):
    """What was asked cannot be had from this cluster: what, where and what to do, on one line. Ends a command with 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three as args, so that it pickles whole across Ray

    def __str__(self) -> str:
        what, where, remedy = (" ".join(str(part).split()) for part in self.args)
        return what + (f": {where}" if where else "") + (f"; {remedy}" if remedy else "")


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a command to its exit code: 0 done, 2 what was asked is wrong (one line on stderr), 130 interrupted."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
