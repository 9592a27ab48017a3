"""The cluster's job API: commands that run there, each under an id that no second one can have."""

import os
import shlex
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.errors import ClusterError
from cluster.ray_compat import use_auth_token

LOCAL = "http://127.0.0.1:8265"
RUNNING = ("PENDING", "RUNNING")
AWAY = (ConnectionError, requests.RequestException)


class Jobs:
    """The jobs of the cluster at an address http://host:port; empty: that of RAY_ADDRESS, or this machine's.

    Raises:
        ClusterError: nobody answers there, it refuses the token, or it runs another Ray.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address or os.environ.get("RAY_ADDRESS", "") or LOCAL
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError("not the address of a cluster's jobs", self.address, "give http://host:8265, the dashboard's")
        use_auth_token()
        try:  # Ray's client knows no timeout
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            socket.create_connection((parts.hostname, port), timeout=5).close()
            os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else Ray's client goes where RAY_ADDRESS says
            self._client = JobSubmissionClient(self.address)
            theirs = self._version()["ray_version"]
        except (OSError, ValueError, RuntimeError, requests.RequestException) as error:
            what = f"no Ray cluster answers ({type(error).__name__})"
            raise ClusterError(what, self.address, "start one with `ray start --head`, or correct --address") from error
        except AuthenticationError as error:
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            raise ClusterError("the cluster refuses the token", self.address, remedy) from error
        if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
            remedy = "install the same minor version on both sides"
            raise ClusterError(f"the cluster runs Ray {theirs} and this is {ray.__version__}", self.address, remedy)

    def _version(self) -> dict[str, str]:
        answer: dict[str, str] = self._client._do_request(
            "GET", "/api/version", timeout=20
        ).json()  # no public call tells the session
        return answer

    def session(self) -> str:
        """Names this life of the cluster: another after its head was restarted, when it knows no earlier jobs."""
        return self._version()["session_name"]

    def submit(self, job: str, command: Sequence[str], working_dir: str) -> None:
        """Start a command under an id.

        Raises:
            RuntimeError: the cluster refuses it, as when the id is in use.
            ConnectionError: its head takes no jobs yet, or none just now; the same may be asked again.
        """
        entrypoint = shlex.join(command)  # Ray hands it to a shell
        environment = {"working_dir": working_dir} if working_dir else None
        try:
            self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" in str(error):
                raise ConnectionError("the cluster's head takes no jobs yet") from error
            raise

    def status(self, job: str) -> str | None:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; None: the cluster knows no such job."""
        try:
            return str(self._client.get_job_info(job).status.value)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise

    def stop(self, job: str) -> None:
        """Ask a job to end; it is killed 3 s later."""
        self._client.stop_job(job)
