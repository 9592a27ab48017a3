"""A run's storage as Ray and pyarrow address it."""

import os
from urllib.parse import quote, urlsplit

import boto3


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
