"""Runs a function on every worker under Ray Train, and shows the records and notices that the workers report."""

import logging
import secrets
import signal
import threading
from collections.abc import Callable, Mapping
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
from cluster.progress import NAMESPACE, PREFIX, Progress, Record
from cluster.ray_compat import RunTrainer, cause_of, start_autoscaling_coordinator
from cluster.ray_worker import RayWorker, this_worker
from cluster.storage import storage_uri

log = logging.getLogger(__name__)
CALLBACKS: ContextVar[tuple[train.UserCallback, ...]] = ContextVar("callbacks", default=())  # a sweep adds its own


def launch(
    work: Callable[[RayWorker, dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, folder: RunFolder,
    show: Callable[[list[Record], list[str]], None],
) -> Any:  # fmt: skip
    """Run ``work(worker, settings)`` on every worker; returns what rank 0 returns.

    ``show`` is called twice a second, in a thread, with the records and notices that are new. When a worker dies, Ray Train
    restarts all workers, and they resume from the run's newest whole checkpoint. An error with ``exit_code`` 2 says that the
    user's input is wrong: it ends the run at once, since another try would not help.

    Raises:
        Exception: an error of a worker whose ``exit_code`` is 2, as it was raised there.
        TrainingFailedError: the workers failed more often than ``max_failures``.
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
    torch_config = TorchConfig(backend="nccl" if gpu else "gloo")
    trainer = RunTrainer(
        partial(_work, work),
        train_loop_config={**settings, "progress": progress, "folder": folder},
        scaling_config=_scaling(config, gpu),
        torch_config=torch_config,
        run_config=_run_config(config, folder, progress),
    )
    ended = threading.Event()
    shower = threading.Thread(target=_show, args=(progress, show, ended), name="progress", daemon=True)
    shower.start()
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise _cause(error) from error
    except SystemExit as error:  # at Ctrl-C Ray exits with code 0
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        ended.set()
        shower.join()
        ray.kill(progress)


def _work(work: Callable[[RayWorker, dict[str, Any]], Any], settings: dict[str, Any]) -> Any:
    worker = this_worker(settings)
    with worker.folder.flushed():
        return work(worker, settings)


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
        callbacks=[_Failures(progress), *CALLBACKS.get()],
    )


class _Failures(train.UserCallback):
    """Reports workers' failures to the progress actor, and ends the run at an input error instead of restarting the workers."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        errors = [f"rank {rank}: {_last_line(error)}" for rank, error in worker_exceptions.items()]
        self._progress.fail.remote(errors)
        for error in worker_exceptions.values():
            cause = _input_error(error)
            if cause is not None and not getattr(cause, "transient", False):
                raise cause


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _show(progress: Any, show: Callable[[list[Record], list[str]], None], ended: threading.Event) -> None:
    while True:
        last = ended.wait(0.5)
        try:
            records, notices = ray.get(progress.drain.remote())
            if records or notices:
                show(records, notices)
        except Exception as error:  # training goes on without its progress shown
            log.warning("the progress cannot be shown: %s", error)
        if last:
            return


def _cause(error: Exception) -> Exception:
    """The error to show to the user: the input error behind a failed run if there is one, else the failure itself."""
    failures: list[Any] = []
    if isinstance(error, train.ControllerError):
        failures = [error.controller_failure]
    elif isinstance(error, train.WorkerGroupError):
        failures = list(error.worker_failures.values())
    return next((found for failure in failures if (found := _input_error(failure))), error)


def _input_error(error: BaseException | None) -> Exception | None:
    """The error with ``exit_code`` 2 in a chain of causes, if any."""
    while error is not None:
        if isinstance(error, Exception) and getattr(error, "exit_code", 1) == 2:
            return error
        error = cause_of(error)
    return None
