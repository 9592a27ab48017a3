"""Small JSON records in a folder or under s3://bucket/prefix, written by several processes.

If two processes create the same record, exactly one succeeds. A record is written completely or not at all. Every method raises
ClusterError when the storage refuses or does not answer.
"""

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.errors import ClusterError, UnreachableError

Record = dict[str, Any]
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # what a file system without hard links answers


class FolderLedger:
    """Records as files of a folder that all writers share."""

    def __init__(self, folder: str) -> None:
        self.url = folder
        self._folder = Path(folder)

    def create(self, name: str, record: Record) -> bool:
        """Write a record if there is none of that name yet; returns whether it was written."""
        with self._errors(), self._written(name, record) as unfinished:
            try:
                os.link(unfinished, self._folder / name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._created(name, record)
        return True

    def _created(self, name: str, record: Record) -> bool:
        """As `create`, without hard links: a record that is read while it is written is incomplete for that moment."""
        try:
            with (self._folder / name).open("xb") as file:
                file.write(_encoded(record))
        except FileExistsError:
            return False
        return True

    def put(self, name: str, record: Record) -> None:
        """Write a record, or replace it."""
        with self._errors(), self._written(name, record) as unfinished:
            unfinished.replace(self._folder / name)

    def get(self, name: str) -> Record | None:
        """The record of that name, or None."""
        with self._errors():
            try:
                return _decoded((self._folder / name).read_bytes(), f"{self.url}/{name}")
            except FileNotFoundError:
                return None

    def age(self, name: str) -> float:
        """Seconds since a record was written, by the clock of the file system; 0 if there is no such record."""
        with self._errors(), tempfile.NamedTemporaryFile(dir=self._folder, prefix=".now") as now:
            try:
                return Path(now.name).stat().st_mtime - (self._folder / name).stat().st_mtime
            except FileNotFoundError:
                return 0.0

    def names(self, prefix: str) -> list[str]:
        """The names of all records in a folder of the ledger, sorted."""
        with self._errors():
            return sorted(f"{prefix}/{file.name}" for file in (self._folder / prefix).glob("*.json"))

    def delete(self, name: str) -> None:
        """Delete a record, if there is one of that name."""
        with self._errors():
            (self._folder / name).unlink(missing_ok=True)

    @contextmanager
    def _written(self, name: str, record: Record) -> Iterator[Path]:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            unfinished.write_bytes(_encoded(record))
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"the records cannot be read or written ({(error.strerror or str(error)).lower()})"
            raise UnreachableError(what, self.url, "check the path, its permissions and free space") from error


class BucketLedger:
    """Records as objects of a bucket, whose server must support conditional writes (If-None-Match)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        with self._errors():
            once = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4})
            session = boto3.Session()
            self._client = session.client("s3", region_name=session.region_name or "us-east-1", config=once)

    def create(self, name: str, record: Record) -> bool:
        """Write a record if there is none of that name yet; returns whether it was written.

        False also when a retry finds that the first try had succeeded though its answer was lost.
        """
        with self._errors():
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=_encoded(record), IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def put(self, name: str, record: Record) -> None:
        """Write a record, or replace it."""
        with self._errors():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=_encoded(record))

    def get(self, name: str) -> Record | None:
        """The record of that name, or None."""
        with self._errors():
            try:
                data = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
        return _decoded(data, f"{self.url}/{name}")

    def age(self, name: str) -> float:
        """Seconds since a record was written, by the server's clock; 0 if there is no such record."""
        with self._errors():
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:
                if error.response["Error"]["Code"] == "404":
                    return 0.0
                raise
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return (now - answer["LastModified"]).total_seconds()

    def names(self, prefix: str) -> list[str]:
        """The names of all records in a folder of the ledger, sorted."""
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}/")
            keys = [entry["Key"].removeprefix(self._prefix) for page in pages for entry in page.get("Contents", [])]
        return sorted(key for key in keys if key.endswith(".json"))

    def delete(self, name: str) -> None:
        """Delete a record, if there is one of that name."""
        with self._errors():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:  # only its code: some servers quote signatures in their messages
            what = f"the records cannot be read or written (S3 answered {error.response['Error']['Code']})"
            busy = error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
            kind = UnreachableError if busy else ClusterError
            raise kind(what, self.url, "check the bucket and the rights of the credentials") from error
        except (BotoCoreError, ValueError) as error:
            what = f"the records cannot be read or written ({type(error).__name__})"
            raise UnreachableError(what, self.url, "check the network, AWS_ENDPOINT_URL and the credentials") from error


Ledger = FolderLedger | BucketLedger


def open_ledger(url: str) -> Ledger:
    """The ledger in a folder or under s3://bucket/prefix; reads and writes nothing. Raises ClusterError for another S3 URL."""
    if url.lower().startswith("s3:") and not url.startswith("s3://"):
        raise ClusterError("not a folder or an S3 address", url, "write s3://bucket/prefix, in lower case and with two slashes")
    return BucketLedger(url) if url.startswith("s3://") else FolderLedger(url)


def _encoded(record: Record) -> bytes:
    return json.dumps(record, indent=1).encode()


def _decoded(data: bytes, where: str) -> Record:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ClusterError("the record is not a JSON object", where, "repair or remove it")
    return record
