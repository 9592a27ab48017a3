"""Runs a function on every worker under Ray Train, and shows the records and notices that the workers report."""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checkpoint_folder import RunFolder
from cluster.config import ClusterConfig
from cluster.connection import most_resources
from cluster.errors import StoppedError
from cluster.failures import FailureReporter, described, failure_of
from cluster.progress import NAMESPACE, PREFIX, Progress, Record
from cluster.ray_compat import RunTrainer, max_resources, start_autoscaling_coordinator
from cluster.ray_worker import RayWorker, this_worker
from cluster.stopping import how_to_continue
from cluster.storage import storage_uri

log = logging.getLogger(__name__)
CALLBACKS: ContextVar[tuple[train.UserCallback, ...]] = ContextVar("callbacks", default=())  # a sweep adds its own


def launch(
    work: Callable[[RayWorker, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, folder: RunFolder,
    show: Callable[[list[Record], list[str]], None], asked: threading.Event,
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` on every worker; returns what rank 0 returns.

    ``show`` is called twice a second, in a thread, with the records and notices that are new. When a worker dies, Ray Train
    restarts all workers, and they resume from the run's newest whole checkpoint. An error with ``exit_code`` 2 says that the
    user's input is wrong: it ends the run at once, since another try would not help. ``asked``: when it is set, the workers store
    a checkpoint at their next record and end.

    Raises:
        StoppedError: ``asked`` was set.
        Exception: an error of a worker whose ``exit_code`` is 2, as it was raised there.
        RunFailedError: the workers failed more often than ``max_failures``.
    """
    folder.delete_snapshot()
    start_autoscaling_coordinator()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    address = {"name": f"{PREFIX}{folder.name}:{secrets.token_hex(4)}", "namespace": NAMESPACE}  # where `running` finds it
    progress = Progress.options(scheduling_strategy=here, **address).remote(folder.name, folder.runs)  # type: ignore[attr-defined]
    gpu = _on_gpus(config)
    free = ray.available_resources()
    if config.workers * config.cpus > free.get("CPU", 0) or (gpu and config.workers > free.get("GPU", 0)):
        show([], [f"waiting for {config.workers} workers: {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"])
    _set_ray_train(config)
    trainer = RunTrainer(
        partial(_work, work),
        train_loop_config={**settings, "progress": progress, "folder": folder},
        scaling_config=_scaling(config, gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=_run_config(config, folder, progress),
    )
    ended = threading.Event()
    shower = threading.Thread(target=_show, args=(progress, show, asked, ended), name="progress", daemon=True)
    shower.start()
    try:
        result = _fit(trainer, config.max_failures, progress)
    except (train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise failure_of(error, how_to_continue(folder), lambda text: show([], [text])) from error
    finally:  # also at Ctrl-C
        ended.set()
        shower.join()
        for actor in filter(None, (progress, trainer.controller)):
            ray.kill(actor)
    if isinstance(result, StoppedError):
        raise result
    return result


def _set_ray_train(config: ClusterConfig) -> None:
    """Set what Ray Train takes from the environment, which it passes on to its controller."""
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.stuck_s)
    # A process that warns workers of nodes about to be withdrawn: none is withdrawn where there is no other.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(len(ray.nodes()) > 1 or bool(max_resources()))))


def _fit(trainer: RunTrainer, tries: int, progress: Any) -> Any:
    """What rank 0 returns. Ray Train restarts workers, but gives up when its controller fails; then this starts a new one."""
    while True:
        try:
            return trainer.fit().return_value
        except (train.ControllerError, ray.exceptions.RayActorError) as error:
            failure = getattr(error, "controller_failure", error)
            if not tries or not isinstance(failure, ray.exceptions.RayError):
                raise
            tries -= 1
            progress.fail.remote([f"Ray Train's controller: {described(failure)}"])


def _work(work: Callable[[RayWorker, dict[str, Any]], Any], settings: dict[str, Any]) -> Any:
    worker = this_worker(settings)
    try:
        with worker.folder.flushed():
            return work(worker, settings)
    except StoppedError as stopped:  # returned: an error would be a failure, after which Ray Train restarts the workers
        return stopped


def _on_gpus(config: ClusterConfig) -> bool:
    """Whether workers take a GPU each: as configured, else if the cluster has GPUs or its autoscaler can add some."""
    return config.gpu if config.gpu is not None else most_resources().get("GPU", 0) > 0


def _scaling(config: ClusterConfig, gpu: bool) -> train.ScalingConfig:
    """How many workers Ray Train starts, and the resources of each."""
    return train.ScalingConfig(
        num_workers=(config.fewest, config.workers) if config.fewest else config.workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": config.cpus, **({"GPU": 1} if gpu else {})},
    )


def _run_config(config: ClusterConfig, folder: RunFolder, progress: Any) -> train.RunConfig:
    """Where Ray Train stores a run, and how often the run may fail. Old checkpoints are deleted by the workers, not by Ray."""
    return train.RunConfig(
        name=folder.name,
        storage_path=storage_uri(folder.runs),
        failure_config=train.FailureConfig(max_failures=config.max_failures),
        callbacks=[FailureReporter(progress), *CALLBACKS.get()],
    )


def _show(progress: Any, show: Callable[[list[Record], list[str]], None], asked: threading.Event, ended: threading.Event) -> None:
    told = False
    while True:
        last = ended.wait(0.5)
        try:
            if asked.is_set() and not told:
                told = True
                if ray.get(progress.stop.remote()):
                    show([], ["asked to end: the workers store a checkpoint after their current steps"])
                else:  # they have not started yet, or have failed
                    signal.raise_signal(signal.SIGTERM)
            records, notices = ray.get(progress.drain.remote())
            if records or notices:
                show(records, notices)
        except Exception as error:  # training goes on without its progress shown
            log.warning("the progress cannot be shown: %s", error)
        if last:
            return
