"""Every private name of Ray's that we use, each with its reason and the public interface that would replace it (Ray 2.60).

A new version of Ray is tried here first: when one of these names is gone, this import fails and says which.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.state import state
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback


def use_auth_token() -> None:
    """Use this user's authentication token of Ray's, if there is one.

    `ray start` and a Ray that a driver starts do so by themselves. Drivers and job clients that join a cluster do not, and are
    refused without a word about a token. Wanted in public: ``ray.init`` and ``JobSubmissionClient`` reading the token's file.
    Ray's warning that authentication is off is silenced: docs/security.md says it, not every start.
    """
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def address_of_this_machine() -> str:
    """host:port of the Ray that runs on this machine, be it one of `ray start` or a run's own; raises ConnectionError for none.

    Wanted in public: a function that finds the address without joining; ``ray.init("auto")`` ends the process in some cases.
    """
    address: str = services.get_ray_address_from_environment("auto", None)
    return address


def address_of_node() -> str:
    """The address by which Ray takes this machine to be reached. Wanted in public: the same before ``ray.init``."""
    address: str = services.get_node_ip_address()
    return address


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within, Ray takes 127.0.0.1 for this machine's address, as on Windows and macOS.

    A Ray that is started listens there alone, and not to the network, where anyone could run code on it; and one that listens so
    can be joined. Wanted in public: an option of ``ray.init`` for the address to listen on.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def max_resources() -> dict[str, float]:
    """What the cluster could grow to have, as its autoscaler is configured; empty where none is.

    Wanted in public: the autoscaler's limits beside ``ray.cluster_resources()``.
    """
    return dict(state.get_max_resources_from_cluster_config() or {})


def start_autoscaling_coordinator() -> None:
    """Start the actor that Ray Train asks for resources, now: its controller would start it later and wait a second for it.

    Wanted in public: nothing, if the controller did not wait.
    """
    get_or_create_autoscaling_coordinator()


class TrainerWithoutData(TorchTrainer):
    """Ray Train's trainer without Ray Data, which no run uses: one process less, which wakes a hundred times a second, and fewer
    imports. Wanted in public: a trainer that starts Ray Data only when data sets are passed."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)]
