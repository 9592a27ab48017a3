"""Failures of a run's workers under Ray Train: each in one line, and which of them end the run."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import train

from cluster.errors import RunFailedError
from cluster.ray_compat import cause_of, health_failure

LEAVE_S = "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"  # of waiting for all ranks to leave the process group: a stuck one does not


class FailureReporter(train.UserCallback):
    """Reports workers' failures to the progress actor, and ends the run at an input error instead of restarting the workers."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train in its controller, before it restarts the workers."""
        os.environ.setdefault(LEAVE_S, "3")
        self._progress.fail.remote([f"rank {rank}: {described(error)}" for rank, error in worker_exceptions.items()])
        for error in worker_exceptions.values():
            cause = input_error(error)
            if cause is not None and not getattr(cause, "transient", False):
                raise cause


def described(error: BaseException) -> str:
    """What went wrong, in a few words for the death of a process; else the last line of the error."""
    lost = health_failure(error)
    if isinstance(lost, TimeoutError):
        return "its process did not answer (--cluster.stuck_s)"
    if isinstance(lost, ray.exceptions.OutOfMemoryError):
        return "its process was ended by Ray: the node's memory was nearly full"
    if isinstance(lost, ray.exceptions.RayActorError):
        if lost.preempted:
            return "its node was withdrawn"
        gone = "node" in str(lost).lower().partition("worker exit type")[0].rpartition("the actor")[2]
        return "its node died" if gone else "its process was killed or crashed"
    lines = [line.strip() for line in str(lost).splitlines() if line.strip()]
    return f"{type(lost).__name__}: {lines[-1][:200]}" if lines else type(lost).__name__


def failure_of(error: Exception, remedy: str, say: Callable[[str], None]) -> Exception:
    """What to raise for a run that Ray Train has given up: the input error behind it, if there is one, else a RunFailedError.

    ``say`` gets the workers' tracebacks, if the failure is an error of their code.
    """
    failures: Mapping[str, Exception] = {"Ray Train's controller": getattr(error, "controller_failure", error)}
    if isinstance(error, train.WorkerGroupError):
        failures = {f"rank {rank}": failure for rank, failure in error.worker_failures.items()}
    for failure in failures.values():
        if found := input_error(failure):
            return found
    if isinstance(error, train.WorkerGroupError) and any(health_failure(failure) is failure for failure in failures.values()):
        say(str(error).rstrip())
    return RunFailedError("; ".join(f"{who}: {described(failure)}" for who, failure in failures.items()), remedy)


def input_error(error: BaseException | None) -> Exception | None:
    """The error with ``exit_code`` 2 in a chain of causes, if any."""
    while error is not None:
        if isinstance(error, Exception) and getattr(error, "exit_code", 1) == 2:
            return error
        error = cause_of(error)
    return None
