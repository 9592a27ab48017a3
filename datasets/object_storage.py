"""Objects (files) under a folder or s3://bucket/prefix, for everything but loading: clear errors matter here, speed does not."""

import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError

from datasets.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ObjectTypeDef

UNFINISHED = ".unfinished"  # suffix of a file that is being written
RETRIES = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4})
READS = 4  # botocore retries requests, but not the reading of an answer's body
CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
BUSY = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError"}
GIVE = "give a folder or s3://bucket/prefix"
REMEDIES = {
    "NoSuchBucket": ("no such bucket", "create it, or correct the URL or AWS_ENDPOINT_URL"),
    "NoSuchKey": ("no such object", "correct the URL, or pack the data there first"),
    "InvalidRange": ("the object is shorter than asked for", "it was replaced or cut: pack it again"),
    "InvalidAccessKeyId": ("the credentials are unknown", CREDENTIALS),
    "SignatureDoesNotMatch": ("the credentials are wrong", CREDENTIALS),
    "ExpiredToken": ("the credentials have expired", "renew them"),
    "AccessDenied": ("access denied", "give the credentials the right to list, read and write there"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set it"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION to it"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_REGION to it"),
}


def open_objects(url: str) -> "Folder | Bucket":
    """Open a local path, ``file:///path`` or ``s3://bucket/prefix``. Nothing is read or written yet.

    Raises:
        InputError: any other URL (also webdataset's ``pipe:`` commands), or no usable S3 configuration.
    """
    scheme, colon, rest = url.partition(":")
    if "pipe:" in url or not url.isprintable() or not url:
        raise InputError("not a place of data", repr(url), GIVE)
    if scheme == "s3" and rest.startswith("//"):
        bucket, _, prefix = rest[2:].partition("/")
        if faults := bucket_faults(bucket):
            raise InputError(f"'{bucket}' is no name of a bucket: it {' and '.join(faults)}", repr(url), GIVE)
        return Bucket(bucket, checked(prefix.strip("/")) if prefix.strip("/") else "")
    if scheme.lower() in ("s3", "s3a", "s3n") and colon:
        raise InputError("not a place of data", repr(url), "write s3://bucket/prefix, in lower case and with two slashes")
    if scheme == "file" and rest.startswith("///"):
        return Folder(Path(unquote(rest[2:])))
    if colon and "/" not in scheme:
        raise InputError("not a place of data", repr(url), GIVE)
    return Folder(Path(url))


def read_file(url: str) -> bytes:
    """Read one file: a local path, ``file:///path`` or ``s3://bucket/name``; raises InputError."""
    folder, _, name = open_objects(url).url.rpartition("/")
    return open_objects(folder or "/").get(name)


def bucket_faults(name: str) -> list[str]:
    """Return the S3 naming rules that a bucket's name breaks, as words that can follow "it"."""
    rules = {
        "has upper-case letters": name != name.lower(),
        "has an underscore": "_" in name,
        "has other characters than a-z, 0-9, . and -": re.search(r"[^a-zA-Z0-9._-]", name),
        f"has {len(name)} characters, where 3 to 63 are allowed": not 3 <= len(name) <= 63,
        "begins or ends with . or -": name[:1] in (".", "-") or name[-1:] in (".", "-"),
        "has two dots side by side": ".." in name,
        "has the form of an IP address": re.fullmatch(r"\d+(\.\d+){3}", name),
    }
    return [rule for rule, broken in rules.items() if broken]


def checked(name: str) -> str:
    """Return the name if it stays below the URL; raises InputError."""
    if not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError("not an object's name", repr(name), "use a relative path without . and ..")
    return name


class Folder:
    """Objects as files in a folder, which the first put creates. Every method raises InputError on an OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.url = str(self.path)

    def put(self, name: str, data: bytes) -> None:
        """Store the bytes under the name, as a whole or not at all, in the place of what was there."""
        self.write(name, io.BytesIO(data))

    def put_file(self, name: str, path: Path) -> None:
        """Store a local file under the name, as ``put`` does."""
        with Folder(path.parent).errors(path.name), path.open("rb") as source:
            self.write(name, source)

    def write(self, name: str, source: BinaryIO) -> None:
        """Store what ``source`` holds as file ``name``, in place of an older one.

        The bytes go to a temporary file, which is synced to disk and renamed: after a power cut there is the old file or the new
        one, never a part.
        """
        target = self.path / checked(name)
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}{UNFINISHED}")
        with self.errors(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(target)
            finally:
                unfinished.unlink(missing_ok=True)
            folder = os.open(target.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def get(self, name: str) -> bytes:
        """All of an object's bytes."""
        with self.errors(name):
            return (self.path / checked(name)).read_bytes()

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from byte ``start`` on; InputError if the object ends before."""
        with self.errors(name), (self.path / checked(name)).open("rb") as file:
            file.seek(start)
            return exactly(file.read(length), length, f"{self.url}/{name}")

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Name and size in bytes of each object, at any depth, whose name begins with the prefix."""
        with self.errors(prefix):
            files = [file for file in self.path.rglob("*") if file.is_file() and file.suffix != UNFINISHED]
            names = {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}
        return {name: names[name] for name in sorted(names) if name.startswith(prefix)}

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with self.errors(name):
            return (self.path / checked(name)).is_file()

    def delete(self, name: str) -> None:
        """Remove the object if there is one."""
        with self.errors(name):
            (self.path / checked(name)).unlink(missing_ok=True)

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Turn an OSError into an InputError."""
        try:
            yield
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise InputError(what, str(self.path / name), "check the path, its permissions and free space") from error


class Bucket:
    """Objects under a prefix of an S3 bucket. Endpoint and credentials come from boto3: environment, profile or role.

    Every method raises InputError, after retries, where S3 refuses a request or is unreachable. Thread-safe.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            self.client = boto3.Session().client("s3", config=RETRIES)
        except ValueError as error:
            raise InputError("no endpoint of S3", self.url, "set AWS_ENDPOINT_URL as http://host:port") from error
        except BotoCoreError as error:
            raise InputError(f"S3 is not configured ({error})", self.url, CREDENTIALS) from error

    @property
    def endpoint(self) -> str:
        """URL of the S3 service."""
        return self.client.meta.endpoint_url

    def put(self, name: str, data: bytes) -> None:
        """Store the bytes under the name, as a whole or not at all, in the place of what was there."""
        with self.errors(name):
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + checked(name), Body=data)

    def put_file(self, name: str, path: Path) -> None:
        """Store a local file under the name, as ``put`` does; from 8 MiB on as a multipart upload."""
        with Folder(path.parent).errors(path.name):
            source = path.open("rb")
        with source, self.errors(name):
            self.client.upload_fileobj(source, self.bucket, self.prefix + checked(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from byte ``start`` on; InputError if the object ends before."""
        data = self.get(name, f"bytes={start}-{start + length - 1}") if length else b""
        return exactly(data, length, f"{self.url}/{name}")

    def get(self, name: str, wanted: str = "") -> bytes:
        """Read all bytes, or those of a Range header; repeats the request where the connection breaks in the middle."""
        request: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": self.prefix + checked(name)}
        if wanted:
            request["Range"] = wanted
        with self.errors(name):
            for reads_left in reversed(range(READS)):
                body = self.client.get_object(**request)["Body"]
                try:
                    return body.read()
                except (HTTPClientError, IncompleteReadError):
                    if not reads_left:
                        raise
        raise AssertionError  # the last read returns or raises

    def get_file(self, name: str, path: Path) -> None:
        """Copy an object to a local file, in parts, so that it may be larger than memory."""
        with self.errors(name):
            self.client.download_file(self.bucket, self.prefix + checked(name), str(path))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Name and size in bytes of each object, at any depth, whose name begins with the prefix."""
        return {name: entry["Size"] for name, entry in self.entries(prefix)}

    def etags(self, prefix: str = "") -> dict[str, str]:
        """Name and ETag, in its double quotes, of each object whose name begins with the prefix."""
        return {name: entry["ETag"] for name, entry in self.entries(prefix)}

    def entries(self, prefix: str) -> "Iterator[tuple[str, ObjectTypeDef]]":
        """All entries under the prefix in the order of names, without markers of folders."""
        with self.errors(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield entry["Key"].removeprefix(self.prefix), entry

    def exists(self, name: str) -> bool:
        """Whether there is such an object. Uses a list: a HEAD answers the same for a missing object and a missing bucket."""
        with self.errors(name):
            key = self.prefix + checked(name)
            found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=key, MaxKeys=1).get("Contents", [])
        return any(entry["Key"] == key for entry in found)

    def delete(self, name: str) -> None:
        """Remove the object if there is one."""
        with self.errors(name):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + checked(name))

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Within this context, an error of S3 about object ``name`` is raised as an InputError.

        Its message has S3's error code and none of the server's words: some servers quote a request's signature.
        """
        host = urlsplit(self.endpoint).netloc.rpartition("@")[2]
        where = f"{self.url}/{name}".rstrip("/") + f" at {host}"
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            busy = code in BUSY or error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
            other = "try again later" if busy else "does an S3 service answer at AWS_ENDPOINT_URL?"
            what, remedy = REMEDIES.get(code, (f"S3 answered {code}", other))
            raise (UnreachableError if busy else InputError)(what, where, remedy) from error
        except NoCredentialsError as error:
            raise InputError("no credentials for S3", where, CREDENTIALS.replace("check", "set")) from error
        except (HTTPClientError, IncompleteReadError, NoConnectionError) as error:
            remedy = "check the network and AWS_ENDPOINT_URL"
            raise UnreachableError(f"S3 is unreachable ({type(error).__name__})", where, remedy) from error
        except BotoCoreError as error:
            raise InputError(f"S3 failed ({error})", where, CREDENTIALS) from error


def exactly(data: bytes, length: int, where: str) -> bytes:
    """Return the data if it has this length; raises InputError."""
    if len(data) != length:
        raise InputError("the object is shorter than asked for", where, "it was replaced or cut: pack it again")
    return data
