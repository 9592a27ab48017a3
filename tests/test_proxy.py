"""The proxy does to real clients what it says, to nothing but what it was told to, and counts it rightly."""

import os
import random
from collections.abc import Callable, Iterator
from datetime import timedelta

import boto3
import obstore
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError
from obstore.store import S3Store
from proxy import FaultProxy, Faults
from s3server import S3Server

DATA = os.urandom(300_000)
KEY = "deep/a+b c.tar"  # the two characters that URLs quote in different ways
TIMEOUT_S = 2.0  # of both clients
Read = Callable[[int, int], bytes]


@pytest.fixture
def proxy(s3_proxy: FaultProxy) -> FaultProxy:
    """The proxy that both clients find in the environment."""
    return s3_proxy


@pytest.fixture
def bucket(proxy: FaultProxy, s3_server: S3Server, s3_bucket: str) -> str:
    """Name of a bucket that holds DATA."""
    name = s3_bucket.removeprefix("s3://")
    s3_server.client.put_object(Bucket=name, Key=KEY, Body=DATA)
    return name


def boto3_read(bucket: str, retries: int) -> Iterator[Read]:
    """A reader by boto3; boto3 retries requests, but not the reading of bodies."""
    config = Config(read_timeout=TIMEOUT_S, retries={"mode": "standard", "total_max_attempts": retries + 1})
    client = boto3.Session().client("s3", config=config)
    yield lambda start, end: client.get_object(Bucket=bucket, Key=KEY, Range=f"bytes={start}-{end - 1}")["Body"].read()
    client.close()


def obstore_read(bucket: str, retries: int, timeout_s: float = TIMEOUT_S) -> Iterator[Read]:
    """A reader by obstore."""
    store = S3Store(
        bucket,
        client_options={"allow_http": True, "read_timeout": timedelta(seconds=timeout_s)},
        retry_config={"max_retries": retries, "backoff": {"init_backoff": timedelta(milliseconds=1)}},
    )
    yield lambda start, end: bytes(obstore.get(store, KEY, options={"range": (start, end)}).bytes())


@pytest.fixture(params=[boto3_read, obstore_read])
def read(request: pytest.FixtureRequest, bucket: str) -> Iterator[Read]:
    """A client that does not retry."""
    yield from request.param(bucket, 0)


def test_without_faults_all_passes_unchanged(proxy: FaultProxy, read: Read) -> None:
    assert read(0, len(DATA)) == DATA
    assert read(7, 4103) == DATA[7:4103]
    assert proxy.counts == {"gets": 2, "bytes": len(DATA) + 4096}
    assert [wanted for _, wanted in proxy.ranges] == [f"bytes=0-{len(DATA) - 1}", "bytes=7-4102"]
    proxy.forget()
    assert not proxy.counts
    assert not proxy.ranges


@pytest.mark.parametrize(
    ("fault", "boto3_error", "obstore_error", "sent"),
    [
        ("slow_down", "SlowDown", "SlowDown", 0),
        ("reset", "Connection was closed|Connection reset|closed", "error sending request", 0),
        ("stall", "Read timeout", "error sending request", 0),
        ("freeze", "Read timeout|timed out", "kind: Timeout", 500),
        ("truncate", "500 read, but total bytes expected is 1000|IncompleteRead", "kind: Interrupted", 500),
    ],
)
def test_each_fault_is_what_it_says(
    proxy: FaultProxy, read: Read, fault: str, boto3_error: str, obstore_error: str, sent: int
) -> None:
    proxy.faults = Faults(**{fault: 1.0})
    with pytest.raises((ClientError, BotoCoreError, BaseError), match=f"{boto3_error}|{obstore_error}"):
        read(0, 1000)
    assert proxy.counts == {"gets": 1, fault: 1} | ({"bytes": sent} if sent else {})


def test_corruption_flips_one_bit(proxy: FaultProxy, read: Read) -> None:
    proxy.faults = Faults(corrupt=1)
    got = int.from_bytes(read(0, 1000)) ^ int.from_bytes(DATA[:1000])
    assert got.bit_count() == 1
    assert proxy.counts == {"gets": 1, "corrupt": 1, "bytes": 1000}


@pytest.mark.parametrize("fault", ["slow_down", "reset", "stall", "freeze", "truncate"])
def test_a_client_that_retries_outlives_the_fault(proxy: FaultProxy, bucket: str, fault: str) -> None:
    read = next(obstore_read(bucket, retries=10, timeout_s=0.3))
    proxy.faults = Faults(**{fault: 0.5})
    for start in range(4):
        assert read(start, start + 1000) == DATA[start : start + 1000]
    assert proxy.counts["gets"] > 4
    assert proxy.counts[fault]


def test_boto3_retries_what_comes_before_the_body(proxy: FaultProxy, bucket: str) -> None:
    read = next(boto3_read(bucket, 3))
    proxy.faults = Faults(slow_down=0.2, reset=0.2)
    assert all(read(0, 100) == DATA[:100] for _ in range(5))
    assert proxy.counts["slow_down"] + proxy.counts["reset"] == proxy.counts["gets"] - 5 > 0


def test_latency_delays_each_answer(proxy: FaultProxy, read: Read) -> None:
    proxy.latency_ms = 3000 * TIMEOUT_S  # beyond the time-out: no clock needed to see it
    with pytest.raises((BotoCoreError, BaseError)):
        read(0, 1000)
    proxy.latency_ms = 1
    assert read(0, 1000) == DATA[:1000]


def test_what_does_not_match_is_left_alone(proxy: FaultProxy, read: Read) -> None:
    proxy.faults = Faults(slow_down=1)
    proxy.match = "train-"
    assert read(0, 10) == DATA[:10]
    assert not proxy.counts
    proxy.match = "deep/"
    with pytest.raises((ClientError, BaseError)):
        read(0, 10)


def test_only_gets_of_objects_meet_faults(proxy: FaultProxy, bucket: str) -> None:
    proxy.faults = Faults(reset=1)
    client = boto3.Session().client("s3", config=Config(retries={"total_max_attempts": 1}))
    client.put_object(Bucket=bucket, Key="b", Body=DATA)
    assert client.head_object(Bucket=bucket, Key="b")["ContentLength"] == len(DATA)
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["b", KEY]
    client.delete_object(Bucket=bucket, Key="b")
    proxy.faults = Faults(slow_down=1)
    with pytest.raises(ClientError, match="NoSuchKey"):  # an error of the server's own comes through
        client.get_object(Bucket=bucket, Key="b")
    assert proxy.counts["slow_down"] == 0


def test_equal_seeds_draw_equal_faults_in_their_shares() -> None:
    faults = Faults(slow_down=0.3, corrupt=0.2)
    draws = [[faults.draw(rng) for _ in range(3000)] for rng in map(random.Random, (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]
    assert {name: round(draws[0].count(name) / 3000, 1) for name in set(draws[0])} == {"": 0.5, "slow_down": 0.3, "corrupt": 0.2}


def test_a_dead_server_is_a_closed_connection(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for make in (boto3_read, obstore_read):
            with pytest.raises((BotoCoreError, BaseError)):
                next(make(s3_bucket.removeprefix("s3://"), 0))(0, 1)


def test_a_read_only_proxy_refuses_writes_and_lets_reads_pass(proxy: FaultProxy, bucket: str) -> None:
    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    proxy.read_only = True
    for write in (
        lambda: client.put_object(Bucket=bucket, Key="new", Body=DATA),
        lambda: client.delete_object(Bucket=bucket, Key=KEY),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            write()
    assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == DATA
    proxy.read_only = False
    client.put_object(Bucket=bucket, Key="new", Body=DATA)
    client.close()
