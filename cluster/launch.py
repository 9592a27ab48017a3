"""The driver's end of a run: connect to Ray, run a function on every worker under Ray Train, show what it tells.

A run is a name and a storage folder. Ray Train keeps the checkpoints there, and a worker that dies is replaced and goes on
from the last of them. An error that says "the user's input is wrong" (``exit_code`` 2) ends the run at once: trying again
would not help.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import ray
from ray._private import ray_constants, services
from ray._private.state import state as ray_state
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import AuthenticationError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.auth import take_token
from cluster.errors import ClusterError
from cluster.progress import NAMESPACE, PREFIX, Progress, Record, running

log = logging.getLogger(__name__)
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
REFUSALS = (OSError, ValueError, RuntimeError, AuthenticationError)  # what ray.init raises
CALLBACKS: ContextVar[tuple[UserCallback, ...]] = ContextVar("callbacks", default=())  # what a sweep adds to its trials' runs


@dataclass(frozen=True)
class ClusterConfig:
    """What a run takes of the cluster."""

    workers: int = 2
    """Training processes; each takes a GPU if the cluster has any, or can grow to have."""
    fewest: int = 0
    """Workers to go on with while nodes are lost; new ones are taken in again, so that any number from these to all must divide a
    step's samples. Batch norm is over all workers then, if it is not set. 0: all of them, waited for."""
    cpus: int = 1
    """CPU cores reserved for each, its loader processes included."""
    gpu: bool | None = None
    """Train on GPUs; None: if the cluster has any, or can grow to have."""
    max_failures: int = 20
    """Deaths of workers after which the run goes on from its last checkpoint; the next one ends it."""
    keep_checkpoints: int = 2
    """Checkpoints kept in the run's folder."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1 or self.max_failures < 0 or self.keep_checkpoints < 1:
            raise ClusterError(
                "cluster.workers, cpus and keep_checkpoints must be at least 1, max_failures at least 0", "cluster"
            )
        if not 0 <= self.fewest <= self.workers:
            raise ClusterError(f"cluster.fewest is {self.fewest}", "cluster", f"give 0 to {self.workers}, the workers")

    @property
    def sizes(self) -> range:
        """The numbers of workers that the run may have."""
        return range(self.fewest or self.workers, self.workers + 1)

    def check_shares(self, samples: int, where: str) -> None:
        """Check that any of these numbers of workers can share the samples of a step, which are set by ``where``.

        Raises:
            ClusterError: one of them cannot.
        """
        for workers in self.sizes:
            if samples < 1 or samples % workers:
                what = f"{samples} samples cannot be shared evenly by {workers} workers"
                more = f": of each of {self.fewest} to {self.workers}, or raise --cluster.fewest" if self.fewest else ""
                raise ClusterError(what, where, f"choose a multiple of the number of workers{more}")


def connect(config: ClusterConfig, *, dashboard: bool = False) -> None:
    """Join the cluster of ``RAY_ADDRESS`` or of this machine, else start one here that fits the run (``local``: in any case).

    ``dashboard``: start it with Ray's dashboard, which a sweep needs: Ray Train asks it whether a trial that was stopped is dead,
    and keeps the trial's workers reserved for ever where there is none (Ray 2.60). `ray start --head` has it by itself.

    Raises:
        ClusterError: nobody answers at the address, or the cluster can never hold the workers, autoscaling included.
    """
    # Set here so that Ray's processes inherit them: the run's folder is not the place to change into, the group's end is noticed
    # in 0.2 s instead of 2, and a process that would tell workers of nodes about to go, which ask nobody, is not started. Workers
    # of a Ray started here are as nice as this process and not by 15 more: that costs 5% where they fill the cores.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        _init(config, dashboard)
    have = most_resources()
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    least = config.fewest or config.workers
    if least * config.cpus > cpus:
        what = f"{least} workers of {config.cpus} CPUs were asked for and the cluster has {cpus} CPUs"
        raise ClusterError(what, ray.get_runtime_context().gcs_address, "lower --cluster.workers, or add nodes")
    if least > gpus and (config.gpu or (config.gpu is None and gpus)):
        what = f"{least} workers take a GPU each and the cluster has {gpus}"
        raise ClusterError(what, ray.get_runtime_context().gcs_address, "lower --cluster.workers, or set --cluster.gpu False")


def most_resources() -> dict[str, float]:
    """What the cluster has, or could grow to where it scales by itself."""
    have: dict[str, float] = dict(ray.cluster_resources())
    for name, most in (ray_state.get_max_resources_from_cluster_config() or {}).items():
        have[name] = max(have.get(name, 0), most)
    return have


def _init(config: ClusterConfig, dashboard: bool) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        join(address)
        return
    take_token()
    cpus = max(os.cpu_count() or 1, config.workers * config.cpus)
    try:
        if not address:
            with suppress(ConnectionError):  # no cluster on this machine
                _join_this_machine()
                return
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with _loopback():
            ray.init("local", num_cpus=cpus, include_dashboard=dashboard, **QUIET)
    except REFUSALS as error:
        raise _refusal(error, "this machine") from error


def join(address: str) -> None:
    """Join the cluster at an address: host:port of its head, or ray://host:10001 from outside; ``auto``: this machine's.

    Raises:
        ClusterError: nobody answers there, or another version of Ray or Python does.
    """
    if "://" in address and not address.startswith("ray://"):
        raise ClusterError("not a cluster's address for drivers", address, "give host:6379 of its head, or ray://host:10001")
    take_token()
    try:
        if ":" in address:  # Ray would end this process when nobody answers, without an exception
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        if address == "auto":
            _join_this_machine()
        elif address.startswith("ray://"):
            ray.init(address, **QUIET)
        else:
            _init_at(address)
    except REFUSALS as error:
        raise _refusal(error, address) from error


def _join_this_machine() -> None:
    """Join the Ray on this machine, be it one of `ray start` or a run's own. Raises ConnectionError: there is none."""
    _init_at(services.get_ray_address_from_environment("auto", None))


def _init_at(address: str) -> None:
    """Join by host:port. Ray puts this machine's other address in the place of 127.0.0.1, where a run's own does not listen."""
    host, _, port = address.rpartition(":")
    own = host in ("127.0.0.1", "localhost") and not _listens(services.get_node_ip_address(), int(port))
    with _loopback() if own else nullcontext():
        ray.init(address, **QUIET)


def _listens(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), timeout=5).close()
        return True
    return False


@contextmanager
def _loopback() -> Iterator[None]:
    """Within, Ray takes 127.0.0.1 for this machine's address, as on Windows and macOS: a Ray that is started listens there alone,
    and not to the network, whence anyone could have it run whatever he likes; and one that listens so is joined."""
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _refusal(error: Exception, where: str) -> ClusterError:
    told = " ".join(str(error).split())[:200]
    if isinstance(error, AuthenticationError):
        return ClusterError("the cluster refuses the token", where, "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH")
    if "ersion mismatch" in told:
        return ClusterError(f"the cluster runs another Ray or Python ({told})", where, "install the same versions on both sides")
    remedy = "start one with `ray start --head`, or correct RAY_ADDRESS"
    if "Failed to connect to Ray cluster" in told:  # though something listens there
        remedy += "; if it wants a token, set RAY_AUTH_TOKEN_PATH"
    return ClusterError(f"no Ray cluster answers ({told})", where, remedy)


def launch(
    work: Callable[[dict[str, Any]], Any], settings: dict[str, Any], config: ClusterConfig, *,
    name: str, runs: str, show: Callable[[list[Record], list[str]], None],
) -> Any:  # fmt: skip
    """Run ``work(settings)`` on every worker; returns what rank 0 returns.

    ``settings`` gets the key ``progress``: the actor that `cluster.worker` tells. ``show`` is called about once a second,
    in a thread, with the records and notices that have come.

    Raises:
        ClusterError: another driver has the run under way.
        Exception: the first error of a worker that says that the input is wrong, as it was raised there.
        TrainingFailedError: the workers failed more often than ``max_failures``.
    """
    if any((state["run"], state["runs"]) == (name, runs) for state in running()):
        raise ClusterError(f"the run '{name}' is under way on this cluster", runs, "stop it first, or choose another --name")
    get_or_create_autoscaling_coordinator()  # the controller's own would begin when it is up, and hold it up for a second
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    told = {"name": f"{PREFIX}{name}:{secrets.token_hex(4)}", "namespace": NAMESPACE}  # whoever watches finds it by that name
    progress = Progress.options(scheduling_strategy=here, **told).remote(name, runs)  # type: ignore[attr-defined]
    gpu = _on_gpus(config)
    free = ray.available_resources()
    if config.workers * config.cpus > free.get("CPU", 0) or (gpu and config.workers > free.get("GPU", 0)):
        show([], [f"waiting for {config.workers} workers: {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"])
    torch_config = TorchConfig(backend="nccl" if gpu else "gloo")
    told_too = {**settings, "progress": progress}
    trainer = _Trainer(
        work,
        train_loop_config=told_too,
        scaling_config=_scaling(config, gpu),
        torch_config=torch_config,
        run_config=_kept(config, name, runs, progress),
    )
    ended = threading.Event()
    shower = threading.Thread(target=_show, args=(progress, show, ended), name="progress", daemon=True)
    shower.start()
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error) from error
    except SystemExit as error:  # Ray's way of ending at Ctrl-C, with exit code 0
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        ended.set()
        shower.join()
        ray.kill(progress)


def _on_gpus(config: ClusterConfig) -> bool:
    """Whether workers take a GPU each: as is said, or if the cluster has any, or would have when it scales up from none."""
    return config.gpu if config.gpu is not None else most_resources().get("GPU", 0) > 0


class _Trainer(TorchTrainer):
    """Without Ray Data, which no run uses: one process less, which wakes a hundred times a second, and fewer imports."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)]


def _scaling(config: ClusterConfig, gpu: bool) -> ScalingConfig:
    """What Ray Train takes of the cluster for each worker, and how many workers."""
    return ScalingConfig(
        num_workers=(config.fewest, config.workers) if config.fewest else config.workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": config.cpus, **({"GPU": 1} if gpu else {})},
    )


def _kept(config: ClusterConfig, name: str, runs: str, progress: Any) -> RunConfig:
    """What Ray Train keeps of a run, and how often it may fail."""
    return RunConfig(
        name=name,
        storage_path=storage_uri(runs),
        failure_config=FailureConfig(max_failures=config.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
        callbacks=[_Failures(progress), *CALLBACKS.get()],
    )


class _Failures(UserCallback):
    """Tells of workers' failures, and ends a run whose workers say that the input is wrong, instead of starting them again."""

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
        except Exception as error:  # showing is not what the run is for: it goes on
            log.warning("the progress cannot be shown: %s", error)
        if last:
            return


def _cause(error: Exception) -> Exception:
    """What the user should read: the input error behind a failed run if there is one, else the failure itself."""
    failures: list[Any] = []
    if isinstance(error, ControllerError):
        failures = [error.controller_failure]
    elif isinstance(error, WorkerGroupError):
        failures = list(error.worker_failures.values())
    return next((found for failure in failures if (found := _input_error(failure))), error)


def _input_error(error: Any) -> Exception | None:
    """The error with exit code 2 in a chain of causes, if any; Ray wraps what a worker raises."""
    while error is not None:
        if isinstance(error, Exception) and getattr(error, "exit_code", 1) == 2:
            return error
        error = getattr(error, "_base_exc", None) or error.__cause__
    return None


def storage_uri(runs: str) -> str:
    """A folder as Ray and pyarrow address it: a full path, or s3:// with boto3's endpoint in the query."""
    if not runs.startswith("s3://"):
        return os.path.abspath(runs)  # noqa: PTH100 - a path that need not exist, and workers do not share our working directory
    session = boto3.Session()
    parts = urlsplit(session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url)
    host = parts.netloc.rpartition("@")[2]  # what stands before it may be a secret, and the address is logged
    if host.endswith(".amazonaws.com"):
        return runs
    return f"{runs}?endpoint_override={quote(host, safe='')}&scheme={parts.scheme}"
