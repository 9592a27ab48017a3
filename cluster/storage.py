"""A run's storage as Ray and pyarrow address it."""

import os
from urllib.parse import quote, unquote, urlsplit


def storage_uri(runs: str) -> str:
    """A folder of runs as Ray and pyarrow address it: an absolute path, or s3:// with boto3's endpoint in the query.

    ``runs``: a path, ``file:///path`` or ``s3://bucket/prefix``; a prefix is taken as it is, not as percent-encoded.
    """
    if runs.startswith("file:///"):
        runs = unquote(runs.removeprefix("file://"))
    if not runs.startswith("s3://"):
        return os.path.abspath(runs)  # noqa: PTH100 - a path that need not exist, and workers do not share our working directory
    folder = f"s3://{quote(runs.removeprefix('s3://'))}"
    import boto3  # here: half a second in the way of runs in local folders

    session = boto3.Session()
    parts = urlsplit(session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url)
    host = parts.netloc.rpartition("@")[2]  # what stands before it may be a secret, and the address is logged
    if host.endswith(".amazonaws.com"):
        return folder
    return f"{folder}?endpoint_override={quote(host, safe='')}&scheme={parts.scheme}"
