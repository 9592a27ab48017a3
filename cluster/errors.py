"""What is said when the cluster or what was asked of it is wrong."""


class ClusterError(Exception):
    """What was asked cannot be had from this cluster: what, where and what to do, on one line. Ends a command with 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)  # all three as args, so that it pickles whole across Ray

    def __str__(self) -> str:
        what, where, remedy = (" ".join(str(part).split()) for part in self.args)
        return what + (f": {where}" if where else "") + (f"; {remedy}" if remedy else "")
