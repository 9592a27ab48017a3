"""Starts a run's workers: under Ray Train on a cluster, or one worker in this process without Ray (``--cluster.local``).

A run is a name and a storage folder, which holds its checkpoints. One driver at a time has it (`claimed`). A run that is started
again resumes from the newest whole checkpoint, under Ray or locally, whichever it was before. Ray is imported only when it is
used: that takes seconds.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster import fork_server
from cluster.checkpoint_folder import RunFolder
from cluster.config import ClusterConfig
from cluster.errors import StoppedError
from cluster.lease import held
from cluster.local_worker import train_here
from cluster.stopping import how_to_continue, sigterm_noted

Show = Callable[[list[dict[str, Any]], list[str]], None]


def connect(config: ClusterConfig) -> None:
    """Join the cluster, or start one on this machine (`cluster.connection.connect`); does nothing for a local run.

    Raises:
        ClusterError: the cluster is unreachable, or can never have enough CPUs or GPUs for the workers.
    """
    if not config.local:
        ray = sys.modules.get("ray")
        joined = ray is not None and ray.is_initialized()
        # first: the server imports the job's modules while this process imports Ray
        server = fork_server.start(config.cpus) if not joined and fork_server.wanted() else ""
        from cluster.connection import connect

        connect(config, server)


@contextmanager
def claimed(config: ClusterConfig, name: str, runs: str, resume_from: int | None = None) -> Iterator[RunFolder]:
    """The folder of a run, in which no other driver can write within this context.

    ``resume_from``: the step whose checkpoint the run goes on from; 0: it begins anew; None: the newest whole one.

    Raises:
        ClusterError: the run is under way, started by another driver; there is no such checkpoint; or the storage refuses.
    """
    with held(runs, name) as lease:
        folder = RunFolder(runs, name, config.keep_checkpoints, lease)
        if resume_from is not None:
            folder.go_back(resume_from)
        yield folder


def launch(
    work: Callable[[Any, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, folder: RunFolder, show: Show
) -> Any:
    """Run ``work(worker, settings)`` on every worker; returns what rank 0 returns.

    ``worker``: a `cluster.ray_worker.RayWorker` or a `cluster.local_worker.LocalWorker`. ``show`` gets new records and notices.

    Raises:
        StoppedError: this process got SIGTERM, and the workers have stored a checkpoint.
        Exception: an error of a worker whose ``exit_code`` is 2 (wrong input), as it was raised there; locally, any error.
        RunFailedError: the workers failed more often than ``max_failures``.
    """
    try:
        with sigterm_noted() as asked:
            if config.local:
                return train_here(work, settings, config, folder, show, asked)
            from cluster.ray_train import launch

            return launch(work, settings, config, folder, show, asked)
    except StoppedError as stopped:
        raise StoppedError(stopped.step, how_to_continue(folder)) from None
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a fault in the code, which ends in a traceback
            error.add_note(f"{how_to_continue(folder)}, from its newest checkpoint if it has stored one")
        raise
