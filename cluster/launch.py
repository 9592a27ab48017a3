"""Starts a run's workers: under Ray Train on a cluster, or one worker in this process without Ray (``--cluster.local``).

A run is a name and a storage folder, which holds its checkpoints. A run that is started again resumes from the latest one, under
Ray or locally, whichever it was before. Ray is imported only when it is used: that takes seconds.
"""

from collections.abc import Callable
from typing import Any

from cluster.config import ClusterConfig
from cluster.local_worker import train_here

Show = Callable[[list[dict[str, Any]], list[str]], None]


def connect(config: ClusterConfig) -> None:
    """Join the cluster, or start one on this machine (`cluster.connection.connect`); does nothing for a local run.

    Raises:
        ClusterError: the cluster is unreachable, or can never have enough CPUs or GPUs for the workers.
    """
    if not config.local:
        from cluster.connection import connect

        connect(config)


def launch(
    work: Callable[[Any, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, *,
    name: str, runs: str, show: Show,
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` on every worker; returns what rank 0 returns.

    ``worker``: a `cluster.ray_worker.RayWorker` or a `cluster.local_worker.LocalWorker`. ``show`` gets new records and notices.

    Raises:
        ClusterError: the run is running already, started by another driver.
        Exception: an error of a worker whose ``exit_code`` is 2 (wrong input), as it was raised there; locally, any error.
        TrainingFailedError: the workers failed more often than ``max_failures``.
    """
    if config.local:
        return train_here(work, settings, config, name=name, runs=runs, show=show)
    from cluster.ray_train import launch

    return launch(work, settings, config, name=name, runs=runs, show=show)
