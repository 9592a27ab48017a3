"""All private names of Ray that are used here (Ray 2.60), each with its reason and the public interface that would replace it.

When a new version of Ray has lost one of them, importing this module fails and names it.
"""

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RpcError
from ray.job_submission import JobSubmissionClient
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

from cluster import fork_server
from cluster.progress import NAMESPACE

CLEANER = "cleaner:"  # prefix of the names of runs' cleaners
COMMAND = "--python_worker_command="  # an option of Ray's process on each node: Python, and what it runs


def use_auth_token() -> None:
    """Use this user's authentication token for Ray, if there is one.

    `ray start`, and a driver that starts Ray, do so by themselves. Drivers and job clients that join a cluster do not, and are
    refused with an error that does not mention a token. Wanted in public: ``ray.init`` and ``JobSubmissionClient`` reading the
    token's file. Ray's warning that authentication is off is silenced: docs/security.md says so already.
    """
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def address_of_this_machine() -> str:
    """host:port of the Ray on this machine, started by `ray start` or by a run; raises ConnectionError where there is none.

    Wanted in public: a function that finds the address without joining; ``ray.init("auto")`` ends the process in some cases.
    """
    address: str = services.get_ray_address_from_environment("auto", None)
    return address


def address_of_node() -> str:
    """This machine's network address, as Ray finds it. Wanted in public: the same, before ``ray.init``."""
    address: str = services.get_node_ip_address()
    return address


def drain_node(head: str, gone: float, reason: str) -> None:
    """Have the cluster start nothing more on this machine's node, which will be gone after a Unix time; an idle node leaves.

    As `ray drain-node`, which drains the head where it sees the processes of both. Wanted in public: a function for it.
    ``head`` is host:port. Raises OSError if Ray does not, with its reason.
    """
    client, here = GcsClient(address=head), services.get_node_ip_address(head)
    try:
        nodes = client.get_all_node_info(timeout=30).values()
        alive = [node for node in nodes if node.state == GcsNodeInfo.ALIVE and not node.is_head_node]
        found = next((node.node_id.hex() for node in alive if node.node_manager_address == here), None)
        if found is None:
            raise OSError(f"the cluster at {head} has no worker node at {here}")
        accepted, refusal = client.drain_node(found, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, reason, int(gone * 1000))
    except RpcError as error:
        raise OSError(f"the cluster at {head} does not answer ({' '.join(str(error).split())[:200]})") from error
    if not accepted:
        raise OSError(f"the cluster at {head} refuses to drain this node: {refusal}")


def forked_by(server: str) -> dict[str, Any]:
    """The runtime environment of workers that ask a server for their process (`cluster.fork_server`), by its socket's path.

    ``py_executable`` is public; which Python a node would run, a shell finds in the command line of the worker's parent. Where
    there is no such socket, on other machines, that Python is run as usual.
    Wanted in public: a placeholder for it, or workers that Ray itself forks from a process with preloaded modules.
    """
    find = f"tr '\\0' '\\n' < /proc/$PPID/cmdline | sed -n 's/^{COMMAND}\\([^ ]*\\) .*/\\1/p' | grep ."
    return {
        "py_executable": f"$({find} || command -v python3) $([ -S {server} ] && echo {fork_server.__file__})",
        "env_vars": {fork_server.ADDRESS: server},
    }


@contextmanager
def loopback_only() -> Iterator[None]:
    """In this context Ray takes 127.0.0.1 for this machine's address, as it does on Windows and macOS.

    A Ray that is started in it listens only on 127.0.0.1, not on the network, from where anyone could run code; and a Ray that
    listens there can be joined. Wanted in public: an option of ``ray.init`` for the address to listen on.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def keep_s3_keys_out_of_tune() -> None:
    """Have Ray Tune put no AWS_* variable into its trials' runtime environments, which Ray's logs, events and task details show.

    Wanted in public: a switch of Tune's. Its own list cannot be configured (`ray.tune.execution.class_cache`, read at each start
    of a trial). Imported here, since only sweeps need Tune.
    """
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def max_resources() -> dict[str, float]:
    """The resources that the cluster's autoscaler can grow it to; empty without an autoscaler.

    Wanted in public: the autoscaler's limits, beside ``ray.cluster_resources()``.
    """
    return dict(state.get_max_resources_from_cluster_config() or {})


def start_autoscaling_coordinator() -> None:
    """Start the actor from which Ray Train requests resources. Its controller would start it later, and then wait for a second.

    Wanted in public: a controller that does not wait.
    """
    get_or_create_autoscaling_coordinator()


def version_of(client: JobSubmissionClient) -> dict[str, str]:
    """The job API's "ray_version" and "session_name". Wanted in public: a method for the session's name, and timeouts."""
    answer: dict[str, str] = client._do_request("GET", "/api/version", timeout=20).json()
    return answer


def time_of(client: JobSubmissionClient) -> str:
    """The head's time, as in HTTP's header ``Date``. Wanted in public: a method for it, or for the answer's headers."""
    date: str = client._do_request("GET", "/api/version", timeout=20).headers["Date"]
    return date


def head_address(client: JobSubmissionClient) -> str:
    """host:port of the head of the cluster whose dashboard the client asks; empty if the dashboard does not show it.

    Wanted in public: the address in /api/version. It is in the command lines of the nodes' processes, which the dashboard shows.
    """
    nodes = client._do_request("GET", "/nodes?view=summary", timeout=20).json()["data"]["summary"]
    words = [word for node in nodes for word in node.get("cmdline", [])]
    return next((word.partition("=")[2] for word in words if word.startswith("--gcs-address=")), "")


def dashboard_url(address: str) -> str:
    """The dashboard's URL of the cluster whose head is at host:port.

    Wanted in public: the same. Only the job client does it, and not for its argument where ``RAY_ADDRESS`` is set.
    """
    url: str = ray_address_to_api_server_url(address)
    return url


def withdrawal() -> float | None:
    """When a node of this worker's run will be withdrawn, in seconds since 1970; 0: at an unknown time; None: no node will be.

    Wanted in public: ``ray.train.get_preemption_info`` without its barrier, which costs every rank an answer of an actor.
    """
    info = get_train_context().preemption_context.preemption_info
    return None if info is None else (info.deadline_ms or 0) / 1000


def processes(actor: str) -> list[int]:
    """The numbers of the processes that run actors of a class, on all nodes of the cluster that this process has joined.

    Wanted in public: ``ray.util.state.list_actors`` on a cluster without dashboard.
    """
    actors = state.actor_table(None).values()
    return [each["Pid"] for each in actors if each["ActorClassName"] == actor and each["State"] == "ALIVE"]


def cause_of(error: BaseException) -> BaseException | None:
    """The error that this one wraps, if any. Wanted in public: Ray Train setting ``__cause__`` when it wraps a worker's error."""
    return getattr(error, "_base_exc", None) or error.__cause__


def health_failure(error: BaseException) -> BaseException:
    """Why Ray Train found a worker dead: a TimeoutError or an error of Ray's; any other error itself.

    Wanted in public: these two errors of Ray Train's, which say that a worker's process did not answer, or is gone.
    """
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return TimeoutError()
    return error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error


class RunTrainer(TorchTrainer):
    """Ray Train's trainer with two of its callbacks changed.

    Without Ray Data, which no run uses: saves imports, and a process that wakes a hundred times a second. And with another actor
    that frees the workers' reservation when a killed driver or a stopped trial takes the controller with it (`_cleaner_class`).
    Wanted in public: a trainer that starts Ray Data only when data sets are passed, and a cleaner that ends. At Ctrl-C Ray asks
    the controller to abort, which does not answer while it waits for resources; here the caller ends ``controller``.
    """

    controller: Any = None  # the actor of the last `fit`, when that was called in the main thread

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def _create_default_callbacks(self) -> list[Any]:
        others = (DatasetsCallback, PlacementGroupCleanerCallback)
        kept = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, others)]
        return [*kept, _Cleaning(self.run_config.name)]


class _Cleaning(PlacementGroupCleanerCallback):
    """Starts a run's cleaner: a detached actor, as Ray's own, but named after the run."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def after_controller_start(self, train_run_context: Any) -> None:
        self._controller_actor_id = ray.get_runtime_context().get_actor_id()
        name = f"{CLEANER}{self._run}:{self._controller_actor_id[:8]}"
        where = {"resources": {HEAD_NODE_RESOURCE_NAME: 0.001}, "scheduling_strategy": "DEFAULT"}
        options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0, **where}
        timing = (self._check_interval_s, self._get_actor_timeout_s, self._stop_timeout)
        self._cleaner = ray.remote(**options)(_cleaner_class()).remote(self._controller_actor_id, *timing)
        self._cleaner.start_monitoring.remote()


def _cleaner_class() -> type[PlacementGroupCleaner]:
    """Ray Train's cleaner, which removes a run's placement group when its controller is dead; without a dashboard, and it ends.

    Ray's own asks the dashboard whether the controller is dead, and without an answer frees nothing. When it is done, it calls
    ``exit_actor`` in a thread, which ends that thread alone: the actor stays for ever (Ray 2.60). Made in a function so that it
    is pickled by value: the actor need not import this module, and with it torch.
    """

    class Cleaner(PlacementGroupCleaner):
        def _monitor_loop(self) -> None:
            from ray._private.state import state

            group = None
            while not self._stop_event.is_set():
                with suppress(queue.Empty):
                    group = self._pg_queue.get(timeout=self._check_interval_s)
                controller: dict[str, Any] = {}
                with suppress(ray.exceptions.RaySystemError):  # the head is being restarted
                    controller = state.actor_table(self._controller_actor_id)
                if controller.get("State") == "DEAD":
                    while not self._pg_queue.empty():
                        group = self._pg_queue.get()
                    self._cleanup_placement_group(group)
                    ray.kill(ray.get_runtime_context().current_actor)

    return Cleaner
