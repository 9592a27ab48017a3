"""Join a Ray cluster, or start one on this machine."""

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import nullcontext, suppress
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from cluster.ray_compat import address_of_node, address_of_this_machine, forked_by, loopback_only, max_resources, use_auth_token

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
REFUSALS = (OSError, ValueError, RuntimeError, AuthenticationError)  # what ray.init raises


def connect(config: ClusterConfig, fork_server: str = "") -> None:
    """Join the cluster at ``RAY_ADDRESS``, else the one on this machine, else start one here with enough CPUs for the run.

    ``RAY_ADDRESS=local`` always starts one. ``fork_server``: the socket of the server that forks workers
    (`cluster.fork_server`); empty: Ray starts them as usual.

    Raises:
        ClusterError: no cluster answers, or it can never have enough CPUs or GPUs for the workers, autoscaling included.
    """
    # Set here so that Ray's processes inherit them. In this order: workers stay in the working directory; the end of the worker
    # group is noticed after 0.2 s instead of 2; workers keep this process's niceness: Ray adds 15, which costs 5% of the speed
    # where they fill all cores; Ray leaves the visible GPUs of processes that reserve none as they are, its future default, and
    # does not warn.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Ray would colour its messages in a log, too
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        _init(config, forked_by(fork_server) if fork_server else {})
        if threading.current_thread() is threading.main_thread():  # Ray has put a handler there that ends with code 15
            signal.signal(signal.SIGTERM, before)
    have = most_resources()
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    least = config.fewest or config.workers
    if least * config.cpus > cpus:
        what = f"{least} workers of {config.cpus} CPUs were asked for and the cluster has {cpus} CPUs"
        raise ClusterError(what, ray.get_runtime_context().gcs_address, "lower --cluster.workers, or add nodes")
    if least > gpus and (config.gpu or (config.gpu is None and gpus)):
        what = f"{least} workers need a GPU each and the cluster has {gpus}"
        raise ClusterError(what, ray.get_runtime_context().gcs_address, "lower --cluster.workers, or give --cluster.no-gpu")


def most_resources() -> dict[str, float]:
    """What the cluster has, or can grow to by its autoscaler: the larger of both, for each resource."""
    have: dict[str, float] = dict(ray.cluster_resources())
    for name, most in max_resources().items():
        have[name] = max(have.get(name, 0), most)
    return have


def _init(config: ClusterConfig, environment: dict[str, Any]) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        join(address, environment)
        return
    use_auth_token()
    cpus = max(os.cpu_count() or 1, config.workers * config.cpus)
    try:
        if not address:
            with suppress(ConnectionError):  # no cluster on this machine
                _join_this_machine(environment)
                return
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with loopback_only():
            ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **QUIET)
    except REFUSALS as error:
        raise _refusal(error, "this machine") from error


def join(address: str, environment: dict[str, Any] | None = None) -> None:
    """Join the cluster at an address: host:port of its head, ray://host:10001 from outside, http://host:8265 of its dashboard, or
    ``auto`` for this machine's, which is then printed. ``environment``: the runtime environment of workers.

    Raises:
        ClusterError: no cluster answers there, it refuses the token, or it runs another version of Ray or Python.
    """
    if address.startswith(("http://", "https://")):
        from cluster.jobs import Jobs  # here: a client of HTTP, which other addresses do not need

        address = os.environ["RAY_ADDRESS"] = Jobs(address).head
    elif "://" in address and not address.startswith("ray://"):
        remedy = "give host:6379 of its head, ray://host:10001 or http://host:8265"
        raise ClusterError("not an address that drivers can join", address, remedy)
    use_auth_token()
    try:
        if ":" in address:  # Ray would end this process when nobody answers, without an exception
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        if address == "auto":
            _join_this_machine(environment)
        elif address.startswith("ray://"):
            ray.init(address, **QUIET)
        else:
            _init_at(address, environment)
    except REFUSALS as error:
        raise _refusal(error, address) from error


def _join_this_machine(environment: dict[str, Any] | None) -> None:
    """Join the Ray on this machine, started by `ray start` or by a run. Raises ConnectionError where there is none."""
    address = address_of_this_machine()
    _init_at(address, environment)
    others = "RAY_ADDRESS=host:port chooses another one, RAY_ADDRESS=local starts one"
    print(f"joined the Ray cluster at {address}, which runs on this machine; {others}", file=sys.stderr)


def _init_at(address: str, environment: dict[str, Any] | None) -> None:
    """Join by host:port. Ray would replace 127.0.0.1 by the network address, where a Ray that a run started does not listen."""
    host, _, port = address.rpartition(":")
    on_loopback = host in ("127.0.0.1", "localhost") and not _listens(address_of_node(), int(port))
    with loopback_only() if on_loopback else nullcontext():
        ray.init(address, runtime_env=environment, **QUIET)


def _listens(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), timeout=5).close()
        return True
    return False


def _refusal(error: Exception, where: str) -> ClusterError:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, AuthenticationError):
        return ClusterError("the cluster refuses the token", where, "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH")
    if "ersion mismatch" in reason:
        return ClusterError(
            f"the cluster runs another Ray or Python ({reason})", where, "install the same versions on both sides"
        )
    remedy = "start one with `ray start --head`, or correct RAY_ADDRESS"
    if "Failed to connect to Ray cluster" in reason:  # though something listens there
        remedy += "; if it requires a token, set RAY_AUTH_TOKEN_PATH"
    return ClusterError(f"no Ray cluster answers ({reason})", where, remedy)
