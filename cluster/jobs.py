"""A client of the cluster's job API: commands that run on the cluster, each under a unique id."""

import os
import re
import shlex
import socket
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobSubmissionClient

from cluster.errors import ClusterError
from cluster.ray_compat import dashboard_url, head_address, time_of, use_auth_token, version_of

LOCAL = "http://127.0.0.1:8265"
RUNNING = ("PENDING", "RUNNING")
STOP_S = 100  # in which a job that is asked to end can store a checkpoint; Ray's default is 3
UNREACHABLE = (ConnectionError, requests.RequestException)


class Jobs:
    """The jobs of the cluster at an address: its dashboard's, http://host:8265, or host:6379 of its head; empty: RAY_ADDRESS,
    else on this machine.

    Raises:
        ClusterError: no cluster answers there, it refuses the token, or it runs another version of Ray.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address or os.environ.get("RAY_ADDRESS", "") or LOCAL
        use_auth_token()
        try:  # Ray's clients have no timeouts
            if re.fullmatch(r"[^/]+:\d+", self.address):
                _check_answers(f"//{self.address}")
                self.address = _dashboard_at(self.address)
            _check_answers(self.address)
            os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else Ray's client prefers RAY_ADDRESS to its argument
            self._client = JobSubmissionClient(self.address)
            version = version_of(self._client)["ray_version"]
        except (OSError, ValueError, RuntimeError, requests.RequestException, RpcError) as error:
            what = f"no Ray cluster answers ({type(error).__name__})"
            raise ClusterError(what, self.address, "start one with `ray start --head`, or correct the address") from error
        except AuthenticationError as error:
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            raise ClusterError("the cluster refuses the token", self.address, remedy) from error
        if version.split(".")[:2] != ray.__version__.split(".")[:2]:
            remedy = "install the same minor version on both sides"
            raise ClusterError(f"the cluster runs Ray {version} and this is {ray.__version__}", self.address, remedy)

    @property
    def head(self) -> str:
        """host:port of the cluster's head, which drivers join; raises ClusterError if the dashboard does not show it."""
        try:
            address = head_address(self._client)
        except (*UNREACHABLE, RuntimeError, ValueError, KeyError):
            address = ""
        if not address:
            what = "the dashboard does not show the address of the cluster's head"
            raise ClusterError(what, self.address, "give host:6379 of the head, as `ray start` printed it")
        return address

    def session(self) -> str:
        """The name of the cluster's session. A restarted head has a new one, and does not know the jobs of earlier sessions."""
        return version_of(self._client)["session_name"]

    def now(self) -> datetime:
        """The time of the cluster's head, in whole seconds."""
        return parsedate_to_datetime(time_of(self._client))

    def submit(self, job: str, command: Sequence[str], working_dir: str) -> None:
        """Start a command under an id.

        Raises:
            RuntimeError: the cluster refuses it, for example because the id is in use.
            ConnectionError: the cluster's head cannot take jobs at the moment; try again.
        """
        entrypoint = shlex.join(command)  # Ray passes it to a shell
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}}
        if working_dir:
            environment["working_dir"] = working_dir
        try:
            self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" in str(error):
                raise ConnectionError("the cluster's head takes no jobs yet") from error  # it has just started
            raise

    def status(self, job: str) -> str | None:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; None: the cluster does not know the job."""
        try:
            return str(self._client.get_job_info(job).status.value)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise

    def ending(self, job: str) -> str:
        """The exit code of a job that has failed, and the last line of its log."""
        info = self._client.get_job_info(job)
        lines = [line.strip() for line in re.split(r"[\r\n]+", self._client.get_job_logs(job))]
        lines = [line for line in lines if line and not line.startswith("Running entrypoint for job")]  # Ray's, often late
        code = "" if info.driver_exit_code is None else f"exit code {info.driver_exit_code}: "
        return code + (lines[-1] if lines else str(info.message))[:300]

    def stop(self, job: str) -> None:
        """Ask a job to end by SIGTERM; the cluster kills it `STOP_S` seconds later."""
        self._client.stop_job(job)


def _dashboard_at(address: str) -> str:
    """The URL of the dashboard that is at host:port, or else that of the head there."""
    try:
        requests.get(f"http://{address}", timeout=5)  # first: Ray would wait for 40 s for a head that does not answer
        return f"http://{address}"
    except requests.RequestException:
        return dashboard_url(address)


def _check_answers(url: str) -> None:
    """Raise OSError if nobody listens at a URL, ClusterError if it is none that a job API can have."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "") or not parts.hostname:
        remedy = "give the dashboard's, http://host:8265, or host:6379 of the cluster's head"
        raise ClusterError("not the address of a job API", url, remedy)
    socket.create_connection((parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)), timeout=5).close()
