"""Whatever storage and network do, a sample has the bytes that were packed, or an error that says why not."""

import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from proxy import FaultProxy, Faults
from s3server import KEY, NEXT_KEY, SECRET, S3Server, free_ports
from shardset import OPTIONS, open_files, packed, pictures_in, ranges_of, truth

from datasets.errors import InputError
from datasets.loading import store as store_module
from datasets.loading.cache import CacheConfig
from datasets.loading.store import BucketStore, FolderStore, StorageError, open_store, read_samples, shard_etags
from datasets.object_storage import open_objects
from datasets.shards.index import Index

OFF = CacheConfig(gib=0)
Open = Callable[..., BucketStore]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures."""
    return pictures_in(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def folder_set(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The set in a folder; not to be changed."""
    return packed(source, str(tmp_path_factory.mktemp("packed") / "set"))


@pytest.fixture(scope="module")
def bucket_set(source: Path, s3_server: S3Server) -> Index:
    """The set in a bucket; not to be changed."""
    return packed(source, f"{s3_server.make_bucket('test-store')}/a/set")


@pytest.fixture(scope="module")
def right(source: Path, folder_set: Index) -> list[bytes]:
    """Every sample's bytes."""
    return truth(source, folder_set)


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    """An empty cache."""
    return CacheConfig(str(tmp_path / "cache"), gib=1)


@pytest.fixture
def opened(cache: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens stores that give up after seconds and not minutes, and closes them."""
    monkeypatch.setattr(store_module, "TIMEOUTS", {"connect_timeout": "5s", "read_timeout": "5s", "timeout": "10s"})
    monkeypatch.setattr(store_module, "PAUSE", 0.01)
    monkeypatch.setattr(store_module, "PATIENCE", 20.0)
    stores = []

    def open_one(index: Index, etags: dict[str, str] | None = None, config: CacheConfig = cache) -> BucketStore:
        store = open_store(index, shard_etags(index) if etags is None else etags, config)
        assert isinstance(store, BucketStore)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def mixed(index: Index, seed: int = 0) -> np.ndarray:
    """Every sample at least once and some again, in a random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.concatenate([np.arange(len(index)), rng.integers(0, len(index), len(index))]))


def drop_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores that are opened from now on try only once."""
    monkeypatch.setattr(store_module, "TRIES", 1)


def credentials_of(key: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let boto3 get credentials from a command, as from a service that renews them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    given = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": SECRET, "Expiration": "2100-01-01T00:00:00Z"}
    (folder / "credentials.json").write_text(json.dumps(given))
    (folder / "config").write_text(f"[default]\ncredential_process = cat {folder}/credentials.json\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))


def flip(index: Index, block: int) -> None:
    """Flip a bit in the middle of a stored block."""
    objects, name = open_objects(index.url), index.shards[index.blocks["shard"][block]].name
    data = bytearray(objects.get(name))
    data[int(index.blocks["offset"][block] + index.blocks["size"][block] // 2)] ^= 1
    objects.put(name, bytes(data))


def test_the_set_has_what_these_tests_need(folder_set: Index, bucket_set: Index) -> None:
    assert len(folder_set.shards) > 3
    assert len(folder_set.blocks["first"]) > 2 * len(folder_set.identities)
    assert (folder_set.blocks["count"] > 1).any()
    assert all((folder_set.blocks[name] == bucket_set.blocks[name]).all() for name in folder_set.blocks)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_gives_what_was_packed(folder_set: Index, right: list[bytes], streaming: bool) -> None:
    store = open_store(folder_set, shard_etags(folder_set), OFF)
    samples = mixed(folder_set)
    assert store.request(samples, streaming=streaming)() == [right[s] for s in samples]
    assert store.request(samples[:0])() == []
    assert store.counts == {"gets": 0, "bytes": sum(len(right[s]) for s in samples), "hits": 0, "retries": 0}
    store.close()


@pytest.mark.parametrize("gib", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bucket_gives_what_was_packed(
    bucket_set: Index, right: list[bytes], opened: Open, cache: CacheConfig, streaming: bool, gib: int
) -> None:
    store = opened(bucket_set, config=replace(cache, gib=gib))
    for seed in range(2):
        samples = mixed(bucket_set, seed)
        answers = [store.request(part, streaming=streaming) for part in np.array_split(samples, 7)]
        assert [data for answer in answers for data in answer()] == [right[s] for s in samples]
    assert store.request(samples[:0], streaming=streaming)() == []


def test_a_few_samples_of_any_set(
    folder_set: Index, bucket_set: Index, right: list[bytes], cache: CacheConfig, opened: Open
) -> None:
    for index in (folder_set, bucket_set):
        assert read_samples(index, [5, 1, 5]) == [right[5], right[1], right[5]]


def test_one_get_a_block_when_cold_and_none_when_cached(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy
) -> None:
    s3_proxy.match = ".tar"
    drawn = np.array([3, 0, 2, 3, 60, 61, 95, 60])
    blocks = np.unique(bucket_set.samples["block"][drawn])
    size = int(bucket_set.blocks["size"][blocks].sum())
    cold, warm = opened(bucket_set), opened(bucket_set)
    assert cold.request(drawn)() == [right[s] for s in drawn]
    assert sorted(s3_proxy.ranges) == sorted(ranges_of(bucket_set, blocks))
    assert cold.counts == {"gets": len(blocks), "bytes": size, "hits": 0, "retries": 0}
    assert s3_proxy.counts == {"gets": len(blocks), "bytes": size}
    for store in (cold, warm):
        assert store.request(drawn, streaming=True)() == [right[s] for s in drawn]
    assert s3_proxy.counts["gets"] == len(blocks)
    assert warm.counts == {"gets": 0, "bytes": 0, "hits": len(blocks), "retries": 0}


@pytest.mark.parametrize("gib", [0, 1])
def test_a_pending_fetch_is_not_repeated(
    bucket_set: Index, right: list[bytes], opened: Open, cache: CacheConfig, s3_proxy: FaultProxy, gib: int
) -> None:
    s3_proxy.match, s3_proxy.latency_ms = ".tar", 50
    store = opened(bucket_set, config=replace(cache, gib=gib))
    samples = np.arange(len(bucket_set))
    answers = [store.request(samples, streaming=streaming) for streaming in (False, True, False)]
    for answer in answers:
        assert answer() == right
    assert s3_proxy.counts["gets"] == len(bucket_set.blocks["first"])
    assert not store._under_way


def test_without_a_cache_every_request_fetches_its_blocks(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy
) -> None:
    s3_proxy.match = ".tar"
    store = opened(bucket_set, config=OFF)
    for turn in (1, 2):
        assert store.request(np.arange(len(bucket_set)), streaming=True)() == right
        assert s3_proxy.counts["gets"] == turn * len(bucket_set.blocks["first"])
    assert store.counts["hits"] == 0


def test_streaming_reads_a_span_with_a_get(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = 16 << 10
    monkeypatch.setattr(store_module, "SPAN", span)
    s3_proxy.match = ".tar"
    table, store = bucket_set.blocks, opened(bucket_set)
    samples = np.random.default_rng(0).permutation(len(bucket_set))
    assert [store.request(np.array([s]), streaming=True)() for s in samples] == [[right[s]] for s in samples]
    spans = np.unique(np.stack([table["shard"], table["offset"] // span]), axis=1).shape[1]
    assert len(bucket_set.shards) < spans < len(table["first"]) / 1.5
    assert s3_proxy.counts == {"gets": spans, "bytes": table["size"].sum()}
    assert not store._under_way


def test_streaming_past_a_cached_block_gives_the_right_bytes(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy
) -> None:
    s3_proxy.match = ".tar"
    store = opened(bucket_set)
    first, last = bucket_set.blocks_of_shard(0)
    cached = np.array([bucket_set.blocks["first"][first], bucket_set.blocks["first"][last - 1]])
    assert store.request(cached)() == [right[s] for s in cached]
    samples = np.flatnonzero(bucket_set.samples["block"] < last)
    assert store.request(samples, streaming=True)() == [right[s] for s in samples]
    assert s3_proxy.counts == {"gets": 3, "bytes": bucket_set.blocks["size"][first:last].sum()}


@pytest.mark.parametrize("holes", [1, 2])
def test_streaming_around_cached_blocks_fetches_no_byte_twice_unless_they_are_many(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, holes: int
) -> None:
    monkeypatch.setattr(store_module, "RUNS", 2)
    s3_proxy.match = ".tar"
    store, (first, last) = opened(bucket_set), bucket_set.blocks_of_shard(0)
    assert last - first > 4
    cached = [first + 1 + 2 * hole for hole in range(holes)]
    store.request(bucket_set.blocks["first"][cached].astype(np.int64))()
    s3_proxy.forget()
    samples = np.flatnonzero(bucket_set.samples["block"] < last)
    assert store.request(samples, streaming=True)() == [right[s] for s in samples]
    sizes = bucket_set.blocks["size"][first:last].sum()
    again = bucket_set.blocks["size"][cached].sum()
    assert s3_proxy.counts == ({"gets": 1, "bytes": sizes} if holes == 2 else {"gets": holes + 1, "bytes": sizes - again})


MIXED = Faults(slow_down=0.1, reset=0.1, stall=0.05, freeze=0.05, truncate=0.1, corrupt=0.05)


@pytest.mark.parametrize(
    ("faults", "streaming"),
    [
        (Faults(slow_down=0.4), False),
        (Faults(reset=0.4), False),
        (Faults(stall=0.2), False),
        (Faults(freeze=0.2), False),
        (Faults(truncate=0.4), True),
        (MIXED, False),
        (MIXED, True),
    ],
)
def test_faults_that_pass_are_not_seen(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch,
    faults: Faults, streaming: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(store_module, "SPAN", 8 << 10)
    monkeypatch.setitem(store_module.TIMEOUTS, "read_timeout", "200ms")  # stalls are many
    s3_proxy.match = ".tar"
    store = opened(bucket_set)
    s3_proxy.faults = faults
    samples = mixed(bucket_set)
    assert store.request(samples, streaming=streaming)() == [right[s] for s in samples]
    assert sum(count for fault, count in s3_proxy.counts.items() if fault not in ("gets", "bytes")) > 0
    assert store.counts["retries"] > 0


def test_gets_that_are_tried_again_are_counted(bucket_set: Index, opened: Open, s3_proxy: FaultProxy) -> None:
    s3_proxy.match = ".tar"
    store = opened(bucket_set)
    s3_proxy.faults = Faults(slow_down=0.3)
    store.request(mixed(bucket_set))()
    assert store.counts["retries"] == s3_proxy.counts["slow_down"] > 0
    assert store.counts["gets"] == s3_proxy.counts["gets"] - s3_proxy.counts["slow_down"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("gib", [0, 1])
def test_a_corrupted_answer_is_right_bytes_or_a_reason(
    bucket_set: Index, right: list[bytes], opened: Open, cache: CacheConfig, s3_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch, streaming: bool, gib: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(store_module, "SPAN", 8 << 10)  # many GETs: some block is wrong four times, some is not
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(corrupt=0.8)
    store = opened(bucket_set, config=replace(cache, gib=gib))
    given = store.request(np.arange(len(bucket_set)), streaming=streaming)()
    wrong = [data for data in given if isinstance(data, ValueError)]
    assert all("checksum is wrong" in str(reason) for reason in wrong)
    assert 0 < len(wrong) < len(given)
    assert [data for data in given if not isinstance(data, ValueError)] == [
        data for data, found in zip(right, given, strict=True) if not isinstance(found, ValueError)
    ]
    s3_proxy.faults = Faults()
    assert store.request(np.arange(len(bucket_set)), streaming=streaming)() == right  # nothing wrong was kept


@pytest.mark.parametrize("streaming", [False, True])
def test_a_block_corrupted_at_rest_costs_its_own_samples_only(
    source: Path, right: list[bytes], opened: Open, s3_bucket: str, s3_proxy: FaultProxy, streaming: bool
) -> None:
    index = packed(source, f"{s3_bucket}/damaged")
    bad = index.blocks_of_shard(1)[0] + 1
    flip(index, bad)
    store = opened(index)
    s3_proxy.forget()
    given = store.request(np.arange(len(index)), streaming=streaming)()
    for sample, data in enumerate(given):
        if index.samples["block"][sample] == bad:
            assert isinstance(data, ValueError)
            assert "shard does not match its index" in str(data)
        else:
            assert data == right[sample]
    reads = len(index.shards) if streaming else len(index.blocks["first"])
    assert s3_proxy.counts["gets"] == reads + store_module.REREADS
    assert s3_proxy.ranges.count(ranges_of(index, [bad])[0]) == store_module.REREADS + (not streaming)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_shard_that_changes_while_it_is_read_ends_the_run(
    source: Path, right: list[bytes], opened: Open, s3_bucket: str, change: str
) -> None:
    index = packed(source, f"{s3_bucket}/set")
    store = opened(index)
    assert store.request(np.array([0]))() == [right[0]]
    if change == "replaced":
        flip(index, 1)
    else:
        open_objects(index.url).delete(index.shards[0].name)
    with pytest.raises(InputError, match="replaced or removed") as refused:
        store.request(np.arange(len(index)))()
    message = str(refused.value)
    assert f"{index.url}/{index.shards[0].name} bytes " in message
    assert "pack again" in message
    assert "\n" not in message
    assert not store._under_way
    assert store.request(np.array([0]))() == [right[0]]  # cached under the ETag that it was read with
    assert str(pickle.loads(pickle.dumps(refused.value))) == message  # noqa: S301


def test_wrong_credentials_are_the_users(bucket_set: Index, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    etags = shard_etags(bucket_set)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(InputError, match="refuses the credentials") as refused:
        opened(bucket_set, etags).request(np.array([0]))()
    assert "\n" not in str(refused.value)
    assert "another-secret" not in str(refused.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(InputError, match="refuses the credentials"):
        opened(bucket_set, etags).request(np.array([0]))()


def test_credentials_that_expire_are_renewed(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    etags = shard_etags(bucket_set)
    credentials_of(KEY, monkeypatch, tmp_path)
    store = opened(bucket_set, etags, OFF)
    samples = np.arange(len(bucket_set))
    assert store.request(samples)() == right
    assert store.counts["retries"] == 0
    s3_proxy.match, s3_proxy.expired = ".tar", KEY
    credentials_of(NEXT_KEY, monkeypatch, tmp_path)
    assert store.request(samples)() == right
    assert 0 < store.counts["retries"] == s3_proxy.counts["expired"]
    s3_proxy.expired = NEXT_KEY
    with pytest.raises(InputError, match="refuses the credentials"):
        store.request(samples)()


def test_no_credentials_are_the_users(bucket_set: Index, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    etags = shard_etags(bucket_set)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="no S3 credentials"):
        opened(bucket_set, etags)


def test_a_storage_down_for_longer_than_the_retries_is_a_fault(
    bucket_set: Index, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    etags = shard_etags(bucket_set)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setattr(store_module, "TRIES", 4)
    store = opened(bucket_set, etags)
    with pytest.raises(StorageError, match=r"train-000000\.tar bytes 0-") as failed:
        store.request(np.arange(len(bucket_set)))()
    message = str(failed.value)
    assert "\n" not in message
    assert SECRET not in message
    assert getattr(failed.value, "exit_code", 1) == 1
    assert str(pickle.loads(pickle.dumps(failed.value))) == message  # noqa: S301
    assert not store._under_way


def test_a_fault_is_not_remembered(
    bucket_set: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_retries(monkeypatch)
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(reset=1)
    store = opened(bucket_set)
    for streaming in (False, True):
        with pytest.raises(StorageError):
            store.request(np.arange(len(bucket_set)), streaming=streaming)()
    s3_proxy.faults = Faults()
    assert store.request(np.arange(len(bucket_set)))() == right
    assert not store._under_way


def test_no_thread_outlives_a_store(bucket_set: Index, opened: Open) -> None:
    before = set(threading.enumerate())
    store = opened(bucket_set)
    answer = store.request(np.arange(len(bucket_set)))
    assert set(threading.enumerate()) > before
    answer()
    store.close()
    assert set(threading.enumerate()) <= before


def test_a_folder_of_more_shards_than_may_be_open(folder_set: Index, right: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN", 2)
    store = FolderStore(folder_set)
    samples = mixed(folder_set)
    assert store.request(samples)() == [right[s] for s in samples]
    assert len(open_files(Path(folder_set.url))) == 2
    store.close()
    assert open_files(Path(folder_set.url)) == []


def test_a_cut_or_missing_shard_in_a_folder(source: Path, right: list[bytes], tmp_path: Path) -> None:
    index = packed(source, str(tmp_path / "set"), OPTIONS)
    cut, missing = (tmp_path / "set" / index.shards[number].name for number in (1, 2))
    first, last = index.blocks_of_shard(1)
    middle = int(index.blocks["offset"][(first + last) // 2]) + 600
    os.truncate(cut, middle)
    missing.unlink()
    store = FolderStore(index)
    shard = index.blocks["shard"][index.samples["block"]]
    lost = (shard == 1) & (index.samples["offset"] + index.samples["size"] > middle)
    assert 0 < lost.sum() < (shard == 1).sum()
    for sample, data in zip(np.flatnonzero(shard < 2), store.request(np.flatnonzero(shard < 2))(), strict=True):
        if lost[sample]:
            assert isinstance(data, ValueError)
            assert "cut off" in str(data)
        else:
            assert data == right[sample]
    with pytest.raises(InputError, match=f"cannot be opened .*{missing.name}"):
        store.request(np.flatnonzero(shard == 2))()
    store.close()


def test_a_set_under_a_prefix_with_spaces_and_any_letters(source: Path, right: list[bytes], s3_url: str, opened: Open) -> None:
    index = packed(source, f"{s3_url}/a b/ünï+1%20 (x)/写真")
    assert opened(index).request(np.arange(len(index)))() == right
    assert read_samples(index, [5]) == [right[5]]
