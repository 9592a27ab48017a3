"""Starts a run's workers: under Ray Train on a cluster, or one in this process without Ray (``--cluster.local``).

A run is a name and a storage folder. Checkpoints lie there, and whoever starts the run again goes on from the last of them, here
or on a cluster. Ray is imported only when it is used: it takes seconds.
"""

from collections.abc import Callable
from typing import Any

from cluster.config import ClusterConfig
from cluster.local import train_here

Show = Callable[[list[dict[str, Any]], list[str]], None]


def connect(config: ClusterConfig) -> None:
    """Join the cluster, or start one on this machine (`cluster.connection.connect`); nothing to do for a local run.

    Raises:
        ClusterError: the cluster is unreachable, or can never hold the workers.
    """
    if not config.local:
        from cluster.connection import connect

        connect(config)


def launch(
    work: Callable[[Any, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, *, name: str, runs: str, show: Show
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` on every worker; returns what rank 0 returns.

    ``worker``: a `cluster.worker.RayWorker` or `cluster.local.LocalWorker`. ``show`` is called with new records and notices.

    Raises:
        ClusterError: another driver has the run under way.
        Exception: the first error of a worker that says that the input is wrong, as it was raised there.
        TrainingFailedError: the workers failed more often than ``max_failures``.
    """
    if config.local:
        return train_here(work, settings, config, name=name, runs=runs, show=show)
    from cluster.ray_train import launch

    return launch(work, settings, config, name=name, runs=runs, show=show)
