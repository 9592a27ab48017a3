"""A client of the cluster's job API: commands that run on the cluster, each under a unique id."""

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
from cluster.ray_compat import use_auth_token, version_of

LOCAL = "http://127.0.0.1:8265"
RUNNING = ("PENDING", "RUNNING")
UNREACHABLE = (ConnectionError, requests.RequestException)


class Jobs:
    """The jobs of the cluster at an address http://host:port; empty: at RAY_ADDRESS, else on this machine.

    Raises:
        ClusterError: no cluster answers there, it refuses the token, or it runs another version of Ray.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address or os.environ.get("RAY_ADDRESS", "") or LOCAL
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError("not the address of a job API", self.address, "give the dashboard's: http://host:8265")
        use_auth_token()
        try:  # Ray's client has no timeout
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            socket.create_connection((parts.hostname, port), timeout=5).close()
            os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else Ray's client prefers RAY_ADDRESS to its argument
            self._client = JobSubmissionClient(self.address)
            version = version_of(self._client)["ray_version"]
        except (OSError, ValueError, RuntimeError, requests.RequestException) as error:
            what = f"no Ray cluster answers ({type(error).__name__})"
            raise ClusterError(what, self.address, "start one with `ray start --head`, or correct --address") from error
        except AuthenticationError as error:
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            raise ClusterError("the cluster refuses the token", self.address, remedy) from error
        if version.split(".")[:2] != ray.__version__.split(".")[:2]:
            remedy = "install the same minor version on both sides"
            raise ClusterError(f"the cluster runs Ray {version} and this is {ray.__version__}", self.address, remedy)

    def session(self) -> str:
        """The name of the cluster's session. A restarted head has a new one, and does not know the jobs of earlier sessions."""
        return version_of(self._client)["session_name"]

    def submit(self, job: str, command: Sequence[str], working_dir: str) -> None:
        """Start a command under an id.

        Raises:
            RuntimeError: the cluster refuses it, for example because the id is in use.
            ConnectionError: the cluster's head cannot take jobs at the moment; try again.
        """
        entrypoint = shlex.join(command)  # Ray passes it to a shell
        environment = {"working_dir": working_dir} if working_dir else None
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

    def stop(self, job: str) -> None:
        """Ask a job to end; the cluster kills it 3 s later."""
        self._client.stop_job(job)
