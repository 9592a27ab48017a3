"""The errors of `cluster` that a command shows in one line, and the exit codes of commands."""

import sys
from collections.abc import Callable
from typing import NoReturn


class ClusterError(Exception):
    """A wrong setting, or a cluster that cannot do what was asked: what, where and a remedy in one line. Exit code 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three as args: Ray pickles errors by these

    def __str__(self) -> str:
        what, where, remedy = (" ".join(str(part).split()) for part in self.args)
        return what + (f": {where}" if where else "") + (f"; {remedy}" if remedy else "")


class UnreachableError(ClusterError):
    """A storage fails or does not answer. That may be temporary, so a run tries again."""

    transient = True


class RunFailedError(Exception):
    """The workers have failed too often: how each of them did, and how to continue the run. Exit code 1."""

    exit_code = 1

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)

    def __str__(self) -> str:
        return "; ".join(self.args)


class StoppedError(Exception):
    """The run was asked to end, and has stored a checkpoint of its last step. Exit code 143, as after SIGTERM in a shell."""

    exit_code = 143

    def __init__(self, step: int, remedy: str = "") -> None:
        super().__init__(step, remedy)

    @property
    def step(self) -> int:
        """The steps that the run has made; 0: it has not begun, and there may be no checkpoint."""
        step: int = self.args[0]
        return step

    def __str__(self) -> str:
        return f"stopped{f' at step {self.step:,}' if self.step else ''}; {self.args[1]}"


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: with 0 when it is done, 2 at a ClusterError (one line on stderr), 130 at Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
