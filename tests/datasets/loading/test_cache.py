"""Processes share the cache: right bytes and no byte fetched twice, also when processes die or the disk is full."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from proxy import FaultProxy, Faults
from s3server import S3Server
from shardset import OPTIONS, open_files, packed, pictures_in, ranges_of, soon, truth

from datasets.errors import InputError
from datasets.loading import cache as cache_module
from datasets.loading import store as store_module
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig, CachedShard, NodeCache
from datasets.loading.store import BucketStore, shard_etags
from datasets.media.augment import AugmentConfig
from datasets.pack import Options
from datasets.sampling.sampler import SamplerConfig
from datasets.shards.index import Index, split_of

SPAWN = multiprocessing.get_context("spawn")
TINY = 40 / 2**20  # GiB: 40 KiB, about one shard of eight
Open = Callable[..., BucketStore]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures."""
    return pictures_in(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def index(source: Path, s3_server: S3Server) -> Index:
    """The set in a bucket; not to be changed."""
    return packed(source, f"{s3_server.make_bucket('test-cache')}/set")


@pytest.fixture(scope="module")
def right(source: Path, index: Index) -> list[bytes]:
    """Every sample's bytes."""
    return truth(source, index)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheConfig:
    """An empty cache that is large enough, on any disk."""
    monkeypatch.setattr(cache_module, "SPARE", 0.0)
    return CacheConfig(str(tmp_path / "cache"), gib=1)


@pytest.fixture
def opened(config: CacheConfig, s3_server: S3Server) -> Iterator[Open]:
    """Opens stores, and closes them."""
    stores = []

    def open_one(index: Index, config: CacheConfig = config) -> BucketStore:
        stores.append(BucketStore(index, shard_etags(index), config))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def on_disk(config: CacheConfig) -> int:
    """Bytes that the cache takes."""
    return sum(file.stat().st_blocks * 512 for file in config.root.rglob("*") if file.is_file())


def read_all(
    index: Index, etags: dict[str, str], config: CacheConfig, right: list[bytes], streaming: bool, seed: int, together: Barrier
) -> None:
    """Run in a separate process: read every sample in a random order, a few at a time."""
    if config.gib < 1:
        cache_module.CHECK_EVERY = 1
    store = BucketStore(index, etags, config)
    together.wait(60)
    for part in np.array_split(np.random.default_rng(seed).permutation(len(index)), 12):
        assert store.request(part, streaming=streaming)() == [right[s] for s in part]
    store.close()


def fill_all(index: Index, etags: dict[str, str], config: CacheConfig, right: list[bytes], together: Barrier) -> None:
    """Run in a separate process: fill the cache while others do, then read every sample."""
    cache_module.SPARE = 0.0
    store = BucketStore(index, etags, config)
    together.wait(60)
    store.fill(range(len(index.shards)))
    assert store._filling is not None
    store._filling.result()
    together.wait(60)
    assert store.request(np.arange(len(index)))() == right
    assert store.counts["hits"] == len(index.blocks["first"])
    store.close()


def fetch_forever(index: Index, etags: dict[str, str], config: CacheConfig) -> None:
    """Run in a process that will be killed: wait for a block from a stalling proxy."""
    store_module.TIMEOUTS = {"read_timeout": "600s", "timeout": "600s"}
    BucketStore(index, etags, config).request(np.array([0]))()


def ended_well(processes: list[SPAWN.Process]) -> None:  # type: ignore[name-defined]
    """Wait for processes."""
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("streaming", "gib"), [(False, 1), pytest.param(True, 1, marks=SLOW), pytest.param(False, TINY, marks=SLOW)]
)
def test_processes_share_what_they_fetch(
    index: Index, right: list[bytes], config: CacheConfig, s3_proxy: FaultProxy, streaming: bool, gib: float
) -> None:
    s3_proxy.match, s3_proxy.latency_ms = ".tar", 2
    together = SPAWN.Barrier(3)
    shared = (index, shard_etags(index), replace(config, gib=gib), right, streaming)
    processes = [SPAWN.Process(target=read_all, args=(*shared, seed, together)) for seed in range(3)]
    for process in processes:
        process.start()
    ended_well(processes)
    if gib == TINY:
        assert s3_proxy.counts["bytes"] > index.blocks["size"].sum()  # evicted and fetched again, and right all the same
        return
    assert s3_proxy.counts["bytes"] == index.blocks["size"].sum()
    assert len(set(s3_proxy.ranges)) == s3_proxy.counts["gets"]
    if not streaming:
        assert sorted(s3_proxy.ranges) == sorted(ranges_of(index, range(len(index.blocks["first"]))))


def test_training_begins_with_the_blocks_of_its_first_batch(
    index: Index, right: list[bytes], config: CacheConfig, s3_proxy: FaultProxy
) -> None:
    """Not when the shards that an even epoch mixes are here; they come with the batches after it."""
    s3_proxy.match = ".tar"
    split = split_of(index, "train")
    loader = LoaderConfig(workers=0, ahead=1, size=(32, 16))
    sampler = SamplerConfig(kind="uniform", batch=4)
    stream = BatchStream(split, sampler, loader, AugmentConfig(), config, None, shard_etags(index), RankSlice(0, 1), 0, 0, 2)
    batches = iter(stream)
    first = next(batches)
    counts = dict(s3_proxy.counts)
    blocks, next_blocks = (index.samples["block"][split.samples(batch["positions"])] for batch in (first, next(batches)))
    blocks, new = np.unique(blocks), np.setdiff1d(next_blocks, blocks)
    assert counts == {"gets": len(blocks), "bytes": index.blocks["size"][blocks].sum()}
    assert s3_proxy.counts["bytes"] - counts["bytes"] > index.blocks["size"][new].sum() > 0
    batches.close()


def test_processes_fill_the_cache_together(
    index: Index, right: list[bytes], config: CacheConfig, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_proxy.match, s3_proxy.latency_ms = ".tar", 2
    together = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=fill_all, args=(index, shard_etags(index), config, right, together)) for _ in range(3)]
    for process in processes:
        process.start()
    ended_well(processes)
    assert s3_proxy.counts == {"gets": len(index.shards), "bytes": index.blocks["size"].sum()}  # shards smaller than a span


def test_training_fills_the_cache_with_its_own_shards(index: Index, config: CacheConfig, s3_proxy: FaultProxy) -> None:
    """After the first batch. Otherwise draws of few identities would leave the rest in the bucket."""
    s3_proxy.match = ".tar"
    split = split_of(index, "train")
    loader, sampler = LoaderConfig(workers=0, ahead=1, size=(32, 16)), SamplerConfig(kind="pk", batch=2, instances=1)
    stream = BatchStream(split, sampler, loader, AugmentConfig(), config, None, shard_etags(index), RankSlice(0, 1), 0, 0, 100)
    batches = iter(stream)
    next(batches)
    assert s3_proxy.counts["bytes"] <= 2 * OPTIONS.max_block
    next(batches)
    of_split = index.blocks["size"][split.blocks].sum()
    assert soon(lambda: s3_proxy.counts["bytes"] >= of_split)
    batches.close()
    folder = next(config.root.iterdir())
    assert len(list(folder.iterdir())) == len(index.shards_of(split.blocks))


@pytest.mark.parametrize("keeps", [True, False])
def test_uniform_draws_fetch_neighbours_where_the_cache_keeps_them(
    index: Index, config: CacheConfig, s3_proxy: FaultProxy, *, keeps: bool
) -> None:
    s3_proxy.match = ".tar"
    split = split_of(index, "train")
    mixed = sum(index.shards[shard].size for shard in index.shards_of(split.blocks))
    config = replace(config, fill=False, gib=(mixed if keeps else mixed - 1) / 2**30)
    loader, sampler = LoaderConfig(workers=0, ahead=1, size=(32, 16)), SamplerConfig(kind="uniform", batch=2)
    stream = BatchStream(split, sampler, loader, AugmentConfig(), config, None, shard_etags(index), RankSlice(0, 1), 0, 0, 20)
    batches = iter(stream)
    next(batches)
    first = len(s3_proxy.ranges)
    assert len(list(batches)) == 19
    sizes = [int(end) - int(start) + 1 for start, end in (got.removeprefix("bytes=").split("-") for _, got in s3_proxy.ranges)]
    assert max(sizes[:first]) <= OPTIONS.max_block
    assert (max(sizes[first:]) > OPTIONS.max_block) == keeps


def test_memory_holds_no_block_that_the_cache_keeps(index: Index, right: list[bytes], opened: Open) -> None:
    store = opened(index)
    pending = store.request(np.arange(len(index)), streaming=True)
    fetched = [source for fetch in set(store._under_way.values()) for source in fetch.result().values()]
    assert {type(source) for source in fetched} == {CachedShard}
    assert len(fetched) == len(index.blocks["first"])
    assert pending() == right


@pytest.mark.parametrize("why", ["too small", "off", "no cache"])
def test_a_cache_is_not_filled(index: Index, config: CacheConfig, opened: Open, s3_proxy: FaultProxy, why: str) -> None:
    s3_proxy.match = ".tar"
    size = sum(shard.size for shard in index.shards)
    changes = {"too small": {"gib": (size - 1) / 2**30}, "off": {"fill": False}, "no cache": {"gib": 0}}
    store = opened(index, replace(config, **changes[why]))
    store.fill(range(len(index.shards)))
    assert store._filling is None
    assert not s3_proxy.counts
    if why == "too small":
        store.fill(range(1, len(index.shards)))
        assert store._filling is not None


def test_an_almost_full_disk_is_not_filled(
    index: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SPARE", 1.0)
    s3_proxy.match = ".tar"
    store = opened(index)
    store.fill(range(len(index.shards)))
    assert store._filling is not None
    store._filling.result(60)
    assert not s3_proxy.counts
    assert store.request(np.arange(len(index)))() == right


def test_a_cache_that_others_fill_too_is_filled_until_something_must_go(
    index: Index, config: CacheConfig, opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHECK_EVERY", 1)
    s3_proxy.match = ".tar"
    size = sum(shard.size for shard in index.shards)
    store = opened(index, replace(config, gib=(size + (64 << 10)) / 2**30))
    (next(config.root.iterdir()) / "another").write_bytes(bytes(size + (60 << 10)))
    store.fill(range(len(index.shards)))
    assert store._filling is not None
    store._filling.result(60)
    assert s3_proxy.counts["gets"] < len(index.shards)


def test_a_cache_that_cannot_be_filled_ends_nothing(
    index: Index, right: list[bytes], opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(store_module, "TRIES", 1)
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(slow_down=1)
    store = opened(index)
    store.fill(range(len(index.shards)))
    assert store._filling is not None
    store._filling.result(60)
    assert "filling the node cache has stopped: s3://" in caplog.text
    s3_proxy.faults = Faults()
    assert store.request(np.arange(len(index)))() == right


def test_a_store_that_closes_fills_no_further(index: Index, opened: Open, s3_proxy: FaultProxy) -> None:
    s3_proxy.match, s3_proxy.latency_ms = ".tar", 2000  # time enough to close while the first GET is under way
    before = set(threading.enumerate())
    store = opened(index)
    store.fill(range(len(index.shards)))
    assert soon(lambda: s3_proxy.counts["gets"] == 1)
    store.close()
    assert set(threading.enumerate()) <= before
    assert s3_proxy.counts["gets"] == 1 < len(index.shards)


def test_a_killed_process_leaves_no_lock(
    index: Index, right: list[bytes], config: CacheConfig, opened: Open, s3_proxy: FaultProxy
) -> None:
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(stall=1)
    killed = SPAWN.Process(target=fetch_forever, args=(index, shard_etags(index), config))
    killed.start()
    while not s3_proxy.counts["stall"]:
        assert killed.is_alive()
        time.sleep(0.01)
    s3_proxy.faults = Faults()
    store = opened(index)
    waiting, free = store.request(np.array([0])), store.request(np.array([len(index) - 1]))
    assert free() == [right[-1]]
    assert s3_proxy.counts["gets"] == 2  # the killed one's and the free one's
    os.kill(killed.pid or 0, signal.SIGKILL)
    assert waiting() == [right[0]]
    assert s3_proxy.counts["gets"] == 3
    killed.join()
    assert opened(index).request(np.array([0, len(index) - 1]))() == [right[0], right[-1]]
    assert s3_proxy.counts["gets"] == 3


FORK = """
import os, sys
from pathlib import Path
from datasets.loading.cache import CachedShard
copy = CachedShard(Path(sys.argv[1]), 1000, 0, 10)
reader, writer = os.pipe()
with copy.claim(0, 10):
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent is done
        os._exit(0)
with copy.claim(3, 1):
    print("claimed")
os.close(writer)
os.waitpid(child, 0)
"""


def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "copy")], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"claimed\n"


def test_claims_that_do_not_overlap_do_not_wait(tmp_path: Path) -> None:
    copy, other = (CachedShard(tmp_path / "copy", 1000, 5, 15) for _ in range(2))
    with copy.claim(5, 4), copy.claim(9, 1), other.claim(10, 4):
        (tmp_path / "copy").unlink()
        with other.claim(14, 1):
            assert copy.gone()


def test_a_claim_waits_for_one_that_overlaps_even_on_an_evicted_copy(tmp_path: Path) -> None:
    copy, other = (CachedShard(tmp_path / "copy", 1000, 0, 10) for _ in range(2))
    order = []

    def wait() -> None:
        with other.claim(3, 2):
            order.append("second")

    with copy.claim(0, 4):
        (tmp_path / "copy").unlink()
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_eviction_keeps_the_folder_within_its_bound(
    index: Index, right: list[bytes], config: CacheConfig, opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHECK_EVERY", 1)
    s3_proxy.match = ".tar"
    bound = int(TINY * 2**30)
    store = opened(index, replace(config, gib=TINY))
    seen = []
    for sample in np.random.default_rng(0).integers(0, len(index), 70):
        assert store.request(np.array([sample]))() == [right[sample]]
        seen.append(on_disk(config))
        assert len(open_files(config.root)) <= len(index.shards)
        assert soon(lambda: not any(name.endswith("(deleted)") for name in open_files(config.root)))
    assert bound / 2 < max(seen) <= bound
    assert len(index.blocks["first"]) < store.counts["gets"] < 70


def test_what_was_used_last_is_evicted_last(index: Index, config: CacheConfig) -> None:
    cache = NodeCache(config, index, {})
    copies = [copy for copy in map(cache.shard, range(4)) if copy is not None]
    for moment, number in enumerate((2, 0, 3, 1)):
        copies[number].write(index.blocks_of_shard(number)[0], 0, b"data")
        os.utime(copies[number]._file, ns=(0, moment))
    cache.config = replace(config, gib=on_disk(config) / 2 / 2**30)
    cache.add_fetched(cache_module.CHECK_EVERY)
    assert [copy.gone() for copy in copies] == [True, False, True, False]


def test_who_reads_an_evicted_copy_gets_right_bytes_then_lets_it_go(
    index: Index, right: list[bytes], config: CacheConfig, opened: Open, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHECK_EVERY", 1)
    s3_proxy.match = ".tar"
    store, samples = opened(index), np.arange(len(index))
    assert store.request(samples)() == right
    fetched = store.counts["gets"]
    answer = store.request(samples)  # all of them hits
    NodeCache(replace(config, gib=1e-9), index, shard_etags(index)).add_fetched(1)
    assert on_disk(config) == 0
    assert len(open_files(config.root)) == len(index.shards)
    assert answer() == right
    assert store.counts["gets"] == fetched
    del answer
    assert store.request(samples[-1:])() == right[-1:]  # fetches one block, and so looks around
    assert soon(lambda: [name.endswith("(deleted)") for name in open_files(config.root)] == [False])
    assert s3_proxy.counts["gets"] == fetched + 1


def test_a_copy_is_bound_to_its_etag(index: Index, config: CacheConfig) -> None:
    copies = [NodeCache(config, index, {f"{index.url}/{index.shards[0].name}": etag}).shard(0) for etag in ('"a"', '"b"', '"a"')]
    old, new, again = (copy for copy in copies if copy is not None)
    old.write(0, 0, b"bytes")
    assert (old.has(0), again.has(0), new.has(0)) == (True, True, False)
    assert again.read(0, 5) == b"bytes"


def test_a_shard_cut_into_other_blocks_is_another_copy(source: Path, right: list[bytes], opened: Open, s3_bucket: str) -> None:
    whole = Options(held_out=0, max_block=1 << 20)
    coarse = packed(source, f"{s3_bucket}/set", whole)
    before = shard_etags(coarse)
    assert opened(coarse).request(np.array([len(coarse) - 1]))() == [right[-1]]  # block 11, which will be another one
    fine = packed(source, f"{s3_bucket}/set", replace(whole, max_block=OPTIONS.max_block))
    assert [shard_etags(fine)[name] for name in before if name.endswith(".tar")] == [
        etag for name, etag in before.items() if name.endswith(".tar")
    ]
    assert len(fine.blocks["first"]) > len(coarse.blocks["first"])
    assert opened(fine).request(np.arange(len(fine)))() == right


def test_only_old_boots_of_this_user_are_removed(index: Index, config: CacheConfig) -> None:
    boot = "01234567-89ab-cdef-0123-456789abcdef"
    others = [boot, f"hardshard-{os.getuid() + 1}-{boot}", "photos.data", f"hardshard-{os.getuid()}-notes"]
    for name in (*others, f"hardshard-{os.getuid()}-{boot}"):
        (config.root / name).mkdir(parents=True)
        (config.root / name / "a.data").write_bytes(bytes(10**6))
    cache = NodeCache(replace(config, gib=1e-9), index, {})
    cache.add_fetched(cache_module.CHECK_EVERY)
    assert sorted(entry.name for entry in config.root.iterdir()) == sorted([*others, cache.folder.name])
    assert all((config.root / name / "a.data").stat().st_size == 10**6 for name in others)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_is_the_users(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"cannot be written.*{folder}.*--cache.folder"):
            NodeCache(CacheConfig(str(folder)), index, {})


def test_a_folder_of_another_user_is_not_trusted(index: Index, config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = os.getuid() + 1  # seen from there, the folder made here is another user's
    monkeypatch.setattr(os, "getuid", lambda: planted)
    with pytest.raises(InputError, match="belongs to another user"):
        NodeCache(config, index, {})


def test_a_cache_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="cannot take -1 GiB"):
        CacheConfig(gib=-1)


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARDSHARD_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert CacheConfig().root == tmp_path
    monkeypatch.setenv("HARDSHARD_CACHE", "/from/environment")
    assert CacheConfig().root == Path("/from/environment")
    assert CacheConfig("/given").root == Path("/given")


def test_a_cleaned_temporary_folder_costs_only_fetches(
    index: Index, right: list[bytes], config: CacheConfig, opened: Open
) -> None:
    store, samples = opened(index), np.arange(len(index))
    for turn in (1, 2):
        assert store.request(samples)() == right
        assert store.counts["gets"] == turn * len(index.blocks["first"])
        shutil.rmtree(config.root)


def test_more_shards_than_may_be_open(
    index: Index, right: list[bytes], config: CacheConfig, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "OPEN", 2)
    store = opened(index)
    for seed in range(2):
        samples = np.random.default_rng(seed).permutation(len(index))
        assert store.request(samples)() == [right[s] for s in samples]
    assert store.counts["gets"] == len(index.blocks["first"])
    assert soon(lambda: len(open_files(config.root)) == 2)


@pytest.mark.parametrize("outcome", ["whole", "part", errno.ENOSPC, errno.EDQUOT])
def test_a_flag_is_set_after_all_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str | int) -> None:
    copy, write, seen = CachedShard(tmp_path / "copy", 5000, 7, 9), os.pwrite, []

    def observed(file: int, data: bytes, offset: int) -> int:
        seen.append(copy.has(8))
        if isinstance(outcome, int):
            raise OSError(outcome, "full")
        count = write(file, data[:100] if outcome == "part" else data, offset)
        seen.append(copy.has(8))
        return count

    monkeypatch.setattr(os, "pwrite", observed)
    data = os.urandom(3000)
    copy.write(8, 2000, data)
    assert seen == {"whole": [False, False, False, True], "part": [False, False]}.get(str(outcome), [False])
    assert copy.has(8) == (outcome == "whole") != copy.full
    assert not copy.has(7)
    assert outcome != "whole" or copy.read(2000, 3000) == data


def test_a_disk_that_fails_is_not_taken_for_full(tmp_path: Path) -> None:
    copy = CachedShard(tmp_path / "copy", 5000, 0, 1)
    with Path("/dev/null").open("rb") as unwritable:
        os.dup2(unwritable.fileno(), copy._file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        copy.write(0, 0, b"data")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_full_disk_costs_only_fetches(
    index: Index, right: list[bytes], opened: Open, small_disk: Path, s3_proxy: FaultProxy, streaming: bool
) -> None:
    s3_proxy.match = ".tar"
    samples, blocks = np.arange(len(index)), len(index.blocks["first"])
    store = opened(index, CacheConfig(str(small_disk), gib=1))
    assert store.request(samples, streaming=streaming)() == right
    cold = s3_proxy.counts["gets"]
    assert cold == (len(index.shards) if streaming else blocks)
    for part in np.array_split(samples, 5):
        assert store.request(part, streaming=streaming)() == [right[s] for s in part]
    assert 0 < s3_proxy.counts["gets"] - cold < blocks  # what fitted is a hit, the rest is fetched block by block
    assert s3_proxy.counts["bytes"] < 2 * index.blocks["size"].sum()


def test_a_disk_without_room_for_a_name_costs_only_fetches(
    index: Index, right: list[bytes], opened: Open, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> CachedShard:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = opened(index)
    monkeypatch.setattr(cache_module, "CachedShard", no_room)
    for streaming in (False, True):
        assert store.request(np.arange(len(index)), streaming=streaming)() == right
    assert store.counts["hits"] == 0
