"""Drains this machine's Ray node when AWS announces that it takes the spot instance back: python -m cluster.drain.

It runs on every worker, with RAY_ADDRESS=host:port of the head. Ray then starts nothing more on the node, and knows, two minutes
ahead, when it will be gone. AWS_EC2_METADATA_SERVICE_ENDPOINT gives another address for the instance's metadata service.
"""

import os
import sys
import time
from datetime import datetime

import requests

from cluster.errors import ClusterError, run_main

METADATA = "http://169.254.169.254"
EVERY_S = 5.0  # between two questions, as AWS recommends
WAIT_S = 2.0  # for each answer
EARLY_S = 10.0  # Ray's deadline before AWS's, which is approximate: runs leave then, and Ray takes what dies before for failures


def withdrawal(service: str) -> datetime | None:
    """When AWS will stop or end this instance; None as long as nothing is announced.

    Raises:
        requests.RequestException: the metadata service does not answer, or refuses.
        ValueError: its answer is not understood.
    """
    with requests.Session() as session:
        session.trust_env = False  # no proxy: the service answers to this machine alone
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = session.put(f"{service}/latest/api/token", headers=lifetime, timeout=WAIT_S)
        token.raise_for_status()
        notice = session.get(
            f"{service}/latest/meta-data/spot/instance-action",
            headers={"X-aws-ec2-metadata-token": token.text},
            timeout=WAIT_S,
        )
    if notice.status_code == requests.codes.not_found:
        return None
    notice.raise_for_status()
    try:
        return datetime.fromisoformat(notice.json()["time"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"no time in {notice.text[:200]}") from error


def drain(gone: datetime, head: str) -> None:
    """Have Ray drain this machine's node, which will be gone at a time; ``head`` is host:port.

    Raises:
        OSError: Ray does not answer, does not know this node, or refuses.
    """
    from cluster.ray_compat import drain_node, use_auth_token  # here: 200 MB, which a machine that waits does not need

    use_auth_token()
    drain_node(head, gone.timestamp() - EARLY_S, f"AWS takes the spot instance back at {gone:%H:%M:%S} UTC")


def watch(service: str, every: float, head: str) -> None:
    """Return when an announced withdrawal has been passed on to Ray; what fails is tried again, and told once."""
    told = ""
    while True:
        try:
            if gone := withdrawal(service):
                drain(gone, head)
                print(f"draining this node: AWS takes the instance back at {gone.isoformat()}", flush=True)
                return
            told = ""
        except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
            if str(error) != told:
                print(f"tried again every {every:g} s: {error}", file=sys.stderr, flush=True)
            told = str(error)
        time.sleep(every)


def main() -> None:
    """Watch this instance until it is withdrawn."""
    if not (head := os.environ.get("RAY_ADDRESS")):
        raise ClusterError("RAY_ADDRESS is not set", "cluster.drain", "set it to host:port of the cluster's head")
    watch(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/"), EVERY_S, head)


if __name__ == "__main__":
    run_main(main)
