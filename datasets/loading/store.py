"""Reads the bytes of samples: by pread from a folder, or from S3 by ranged GETs of whole blocks, through the node's cache.

A store of a bucket must be created after the fork, in the process that reads (a loader worker), as obstore's threads do not
survive a fork. A process that forks loaders uses `read_samples` instead. No Ray here.
"""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from datasets.errors import InputError
from datasets.loading.cache import CacheConfig, CachedShard, NodeCache
from datasets.object_storage import Bucket, open_objects
from datasets.shards.index import Index, Int64s
from datasets.shards.joined import Joined, Part

if TYPE_CHECKING:
    from obstore.store import ClientConfig

SPAN = 4 * 2**20  # bytes that a streaming read fetches in one GET, as neighbouring samples are drawn soon, too
RUNS = 4  # most GETs for a span that is partly cached
OPEN = 256  # shards of a folder that a process keeps open
FEW = 8  # blocks that `read_samples` reads in parallel
IN_FLIGHT = 32  # GETs of blocks in parallel: samples/s = in flight x samples per GET / latency
SPANS_IN_FLIGHT = 8  # GETs of spans in parallel; each takes twice its size in memory until it is in the cache
REREADS = 3  # reads of a block with a wrong checksum, before its samples count as bad
TIMEOUTS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "60s"}  # connect, read, whole try
TRIES, PAUSE = 13, 10.0  # tries of a GET, and the longest pause between two in seconds; pauses double from 0.1 s on
PATIENCE = 120.0  # seconds after its first try in which a GET is tried again
CREDENTIALS = timedelta(minutes=5)  # how long they are kept: boto3's are valid for at least 10
NOT_AGAIN = re.compile(r"status code: 4(?!08|29)")  # S3 would answer the same again

COUNTS = ("gets", "bytes", "hits", "retries")  # successful GETs, their bytes, blocks found in the cache, repeated GETs
Sample = bytes | ValueError  # the bytes, or why they cannot be read
Pending = Callable[[], list[Sample]]
Found = dict[int, Sample]  # blocks by number
Kept = Mapping[int, Sample | CachedShard]  # the same, or the copy of the shard where the cache keeps a block
Fetch = Future[Kept]
Place = tuple[int, int, int, int]  # a sample's block, offset in the shard, offset in the block, size
log = logging.getLogger(__name__)


class StorageError(Exception):
    """The storage still fails after all retries. Not the user's fault: the run restarts from its checkpoint."""


class FolderStore:
    """Reads samples of a set in a local folder."""

    def __init__(self, index: Index) -> None:
        self.index, self.counts = index, dict.fromkeys(COUNTS, 0)
        self._files: dict[int, int] = {}

    def request(self, samples: Int64s, *, streaming: bool = False) -> Pending:
        """Request samples; calling the result returns their bytes, in order. The kernel does the read-ahead here."""
        table = self.index.samples
        shards = self.index.blocks["shard"][table["block"][samples]].tolist()
        places = list(zip(shards, table["offset"][samples].tolist(), table["size"][samples].tolist(), strict=True))
        return lambda: self._read(places)

    def _read(self, places: list[tuple[int, int, int]]) -> list[Sample]:
        files, pread, given = self._files, os.pread, list[Sample]()
        for shard, offset, size in places:
            data = pread(files[shard] if shard in files else self._open(shard), size, offset)
            given.append(data if len(data) == size else ValueError("the shard ends before the sample does: it is cut off"))
            self.counts["bytes"] += len(data)
        return given

    def _open(self, shard: int) -> int:
        path = self.index.shard_url(shard)
        if len(self._files) >= OPEN:
            os.close(self._files.pop(next(iter(self._files))))  # the one opened first
        try:
            file = self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            remedy = "copy the shard there again, or pack again"
            raise InputError(f"the shard cannot be opened ({error.strerror})", path, remedy) from error
        return file

    def fill(self, shards: Sequence[int]) -> None:
        """Do nothing: the shards are local."""

    def close(self) -> None:
        """Close the shards."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


class BucketStore:
    """Reads samples of a set in a bucket: one GET for each block that is not cached, ``IN_FLIGHT`` in parallel.

    ``fill`` copies whole shards to the cache in the background, by few large GETs.
    """

    def __init__(self, index: Index, etags: dict[str, str], cache: CacheConfig) -> None:
        self.index, self.etags = index, etags
        self.counts = dict.fromkeys(COUNTS, 0)
        self._remote = _connect(index.shards_url)
        self._cache = NodeCache(cache, index, etags) if cache.gib else None
        self._pool, self._span_pool = ThreadPoolExecutor(IN_FLIGHT, "get"), ThreadPoolExecutor(SPANS_IN_FLIGHT, "span")
        self._lock, self._over = threading.Lock(), threading.Event()
        self._under_way: dict[int, Fetch] = {}
        self._filling: Future[None] | None = None
        self._fetched = 0  # bytes for draws that are not yet reported to the cache

    def request(self, samples: Int64s, *, streaming: bool = False) -> Pending:
        """Request samples; calling the result returns their bytes, in order. Missing blocks are fetched in the background.

        ``streaming``: fetch ``SPAN`` bytes around a missing block in one GET, for readers that need all of them soon.
        """
        table = self.index.samples
        blocks, offsets = table["block"][samples], table["offset"][samples]
        starts = offsets - self.index.blocks["offset"][blocks]
        columns = blocks, offsets, starts, table["size"][samples]
        places: list[Place] = list(zip(*(column.tolist() for column in columns), strict=True))
        sources = {block: self._source(block, streaming) for block in dict.fromkeys(blocks.tolist())}
        self.counts["hits"] += sum(isinstance(source, CachedShard) for source in sources.values())
        return lambda: self._collect(places, sources)

    def _source(self, block: int, streaming: bool) -> CachedShard | Fetch:
        if block in self._under_way:
            return self._under_way[block]
        shard = int(self.index.blocks["shard"][block])
        copy = self._cache.shard(shard) if self._cache else None
        if copy is not None and copy.has(block):
            return copy
        if streaming and copy is not None and not copy.full:
            group = next(span for span in self._spans(shard) if block <= span[-1])
            fetch = self._span_pool.submit(self._fetch, group, copy)
        else:
            group, fetch = [block], self._pool.submit(self._fetch, [block], copy)
        self._under_way.update(dict.fromkeys(group, fetch))
        return fetch

    def _spans(self, shard: int) -> list[list[int]]:
        """Group a shard's blocks by the SPAN in which they begin: fixed groups, so that all processes use the same."""
        first, last = self.index.blocks_of_shard(shard)
        ends = np.flatnonzero(np.diff(self.index.blocks["offset"][first:last] // SPAN)) + 1
        return [span.tolist() for span in np.split(np.arange(first, last), ends)]

    def _collect(self, places: list[Place], sources: dict[int, CachedShard | Fetch]) -> list[Sample]:
        ended = {source for source in sources.values() if not isinstance(source, CachedShard)}
        found: dict[int, Sample | CachedShard] = {}
        try:
            for block, source in sources.items():
                found[block] = source if isinstance(source, CachedShard) else source.result()[block]
        finally:  # so that the next request does not reuse a failed fetch
            self._under_way = {block: fetch for block, fetch in self._under_way.items() if fetch not in ended}
        if self._cache:
            with self._lock:
                fetched, self._fetched = self._fetched, 0
            self._cache.add_fetched(fetched)
        return [_cut(found[block], offset, start, size) for block, offset, start, size in places]

    def _fetch(self, group: list[int], copy: CachedShard | None) -> Kept:
        """Fetch the blocks of a group; returns their bytes only where they are not in the copy."""
        if copy is None:
            return self._get(group)
        found = self._bring(group, copy)
        with self._lock:
            self._fetched += _bytes(found)
        return {**found, **{block: copy for block in group if copy.has(block)}}

    def _bring(self, group: list[int], copy: CachedShard) -> Found:
        """GET the blocks of a group that are not in the copy, and store them there."""
        with copy.claim(group[0], len(group)):
            missing = [block for block in group if not copy.has(block)]
            found: Found = {}
            for run in _runs(missing):
                found |= self._get(run)
            for block, data in found.items():
                if isinstance(data, bytes):
                    copy.write(block, int(self.index.blocks["offset"][block]), data)
        return found

    def fill(self, shards: Sequence[int]) -> None:
        """Copy shards to the cache in the background, once, if the cache is large enough for all of them."""
        if self._filling is None and self._cache and self._cache.has_room_for(shards):
            self._filling = self._pool.submit(self._fill, shards)

    def _fill(self, shards: Sequence[int]) -> None:
        assert self._cache
        try:
            cache = NodeCache(self._cache.config, self.index, self.etags)  # the other one belongs to the thread that draws
            for shard in np.random.default_rng().permutation(shards).tolist():  # other processes take another order
                copy = cache.copy(shard)
                for span in self._spans(shard):
                    if copy is None or copy.full or copy.tight() or copy.gone() or self._over.is_set():
                        return
                    if not all(map(copy.has, span)) and cache.add_fetched(_bytes(self._bring(span, copy))):
                        return  # the cache holds other data, too: to fill on would evict what was just fetched
        except Exception as error:  # a draw that needs the block gets the same error, and ends the run
            log.warning("filling the node cache has stopped: %s", error)

    def _get(self, group: list[int]) -> Found:
        """GET neighbouring blocks at once; those with a wrong checksum are fetched again, one by one."""
        found = self._checked(group)
        for attempt in range(REREADS):
            for block in [block for block in group if block not in found]:
                log.warning("wrong checksum of block %d of %s, reread %d", block, self.index.url, attempt + 1)
                found |= self._checked([block])
        wrong = ValueError(f"the block's checksum is wrong after {REREADS} more reads: the shard does not match its index")
        return {block: found.get(block, wrong) for block in group}

    def _checked(self, group: list[int]) -> dict[int, bytes]:
        """GET neighbouring blocks at once; returns those with the right checksum."""
        table = self.index.blocks
        start, end = int(table["offset"][group[0]]), int(table["offset"][group[-1]] + table["size"][group[-1]])
        data = self._get_range(int(table["shard"][group[0]]), start, end)
        found = {}
        for block in group:
            offset = int(table["offset"][block]) - start
            part = bytes(data[offset : offset + int(table["size"][block])])  # a copy: google_crc32c takes no memoryview
            if len(part) == int(table["size"][block]) and google_crc32c.value(part) == int(table["crc32c"][block]):
                found[block] = part
        return found

    def _get_range(self, shard: int, start: int, end: int) -> memoryview:
        name = self.index.shards[shard].name
        where = f"{self.index.shard_url(shard)} bytes {start}-{end - 1}"
        options: dict[str, Any] = {"range": (start, end)}
        if etag := self.etags.get(self.index.shard_url(shard)):
            options["if_match"] = etag
        latest, renewed = time.monotonic() + PATIENCE, False
        for tried in range(1, TRIES + 1):
            remote = self._remote
            try:
                answer = obstore.get(remote, name, options=options)  # type: ignore[arg-type]
                data = memoryview(answer.bytes())
                break
            except (PreconditionError, FileNotFoundError) as error:
                what = "the shard was replaced or removed while it was read"
                raise InputError(what, where, "pack again, then resume the run") from error
            except (PermissionDeniedError, UnauthenticatedError) as error:
                if renewed or tried == TRIES:
                    raise InputError("the storage refuses the credentials", where, "renew them, then resume the run") from error
                renewed = True
                self._renew(remote)
            except BaseError as error:
                reason = str(error).splitlines()[0]
                last = tried == TRIES or time.monotonic() > latest or NOT_AGAIN.search(reason)
                if last or self._over.wait(pause(tried)):
                    raise StorageError(f"{where}: {reason}") from error
            with self._lock:
                self.counts["retries"] += 1
        with self._lock:
            self.counts["gets"] += 1
            self.counts["bytes"] += len(data)
        return data

    def _renew(self, refused: S3Store) -> None:
        """Get new credentials, once for all refused GETs: the old ones may have expired."""
        with self._lock:
            if self._remote is refused:
                self._remote = _connect(self.index.shards_url)

    def close(self) -> None:
        """End the threads; pending retries are cancelled."""
        self._over.set()
        for wait in (False, True):  # cancel what is queued in both pools before waiting for either
            for pool in (self._pool, self._span_pool):
                pool.shutdown(wait=wait, cancel_futures=True)


class JoinedStore:
    """Reads samples of joined sets, each set by a store of its own."""

    def __init__(self, index: Joined, etags: dict[str, str], cache: CacheConfig) -> None:
        self.index, self._stores = index, [open_store(part, etags, cache) for part in index.sets]

    @property
    def counts(self) -> dict[str, int]:
        """The sums of the stores' counts."""
        return {name: sum(store.counts[name] for store in self._stores) for name in COUNTS}

    def request(self, samples: Int64s, *, streaming: bool = False) -> Pending:
        """As `BucketStore.request`, each sample from the store of its set."""
        parts = list(self.index.divide(samples))
        asked = [self._stores[part.number].request(part.samples, streaming=streaming) for part in parts]
        return lambda: _in_order(parts, [pending() for pending in asked])

    def fill(self, shards: Sequence[int]) -> None:
        """As `BucketStore.fill`. The sets share the cache: a set's filling stops when it would evict what others fetched."""
        for store, part, first in zip(self._stores, self.index.sets, self.index.first_shards, strict=True):
            store.fill([shard - first for shard in shards if first <= shard < first + len(part.shards)])

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores:
            store.close()


Store = FolderStore | BucketStore | JoinedStore


def open_store(index: Index, etags: dict[str, str], cache: CacheConfig) -> Store:
    """Open the store for a set's shards. ``etags``: ETag of every shard in a bucket; a GET fails if the shard has another one."""
    if isinstance(index, Joined):
        return JoinedStore(index, etags, cache)
    return BucketStore(index, etags, cache) if index.shards_url.startswith("s3://") else FolderStore(index)


def shard_etags(index: Index) -> dict[str, str]:
    """Return the current ETag of each shard in a bucket, by the shard's URL; none for a folder."""
    buckets = [objects for objects in (open_objects(part.shards_url) for part in index.parts) if isinstance(objects, Bucket)]
    return {f"{bucket.url}/{name}": etag for bucket in buckets for name, etag in bucket.etags().items()}


def read_samples(index: Index, samples: Sequence[int] | Int64s) -> list[Sample]:
    """Read a few samples, for reports and predictions; from a bucket with boto3, so that this process may still fork loaders."""
    chosen = np.asarray(samples, np.int64)
    if isinstance(index, Joined):
        parts = list(index.divide(chosen))
        return _in_order(parts, [read_samples(index.sets[part.number], part.samples) for part in parts])
    objects = open_objects(index.shards_url)
    if isinstance(objects, Bucket):
        table, blocks = index.samples, index.samples["block"][chosen]
        whole = dict.fromkeys(blocks.tolist())
        with ThreadPoolExecutor(FEW) as pool:
            found = dict(zip(whole, pool.map(lambda block: _read_block(objects, index, block), whole), strict=True))
        starts = table["offset"][chosen].astype(np.int64) - index.blocks["offset"][blocks]
        places = zip(blocks.tolist(), starts.tolist(), table["size"][chosen].tolist(), strict=True)
        return [_cut(found[block], 0, start, size) for block, start, size in places]
    store = FolderStore(index)
    try:
        return store.request(chosen)()
    finally:
        store.close()


def _in_order(parts: Sequence[Part], found: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return the samples of several sets in the order in which they were requested."""
    by_place = {
        place: data
        for part, datas in zip(parts, found, strict=True)
        for place, data in zip(part.places.tolist(), datas, strict=True)
    }
    return [by_place[place] for place in range(len(by_place))]


def _read_block(bucket: Bucket, index: Index, block: int) -> Sample:
    table = index.blocks
    data = bucket.get_range(index.shards[table["shard"][block]].name, int(table["offset"][block]), int(table["size"][block]))
    right = google_crc32c.value(data) == int(table["crc32c"][block])
    return data if right else ValueError("the block's checksum is wrong: the shard does not match its index")


def _runs(blocks: list[int]) -> list[list[int]]:
    """Group blocks into GETs: runs without gaps; if there are more than RUNS, one GET for all, including what lies between."""
    starts = [place for place, block in enumerate(blocks) if not place or block != blocks[place - 1] + 1]
    if len(starts) > RUNS:
        return [list(range(blocks[0], blocks[-1] + 1))]
    return [blocks[start:end] for start, end in pairwise([*starts, len(blocks)])]


def _bytes(found: Found) -> int:
    return sum(len(data) for data in found.values() if isinstance(data, bytes))


def _cut(source: Sample | CachedShard, offset: int, start: int, size: int) -> Sample:
    """Return a sample's bytes: from the shard's copy by its ``offset``, or from the block's bytes by its ``start`` there."""
    if isinstance(source, bytes):
        return source[start : start + size]
    return source if isinstance(source, ValueError) else source.read(offset, size)


def pause(tried: int) -> float:
    """Return the seconds before the next try: doubled each time, with a random factor, so that readers do not retry together."""
    return min(0.1 * 2.0 ** (tried - 1), PAUSE) * (0.5 + secrets.randbelow(500) / 1000)


_used_by = 0  # the process in which obstore has threads


def _connect(url: str) -> S3Store:
    global _used_by
    if _used_by not in (0, os.getpid()):
        raise RuntimeError("obstore was used before this process was forked, and would hang here: use read_samples there")
    _used_by = os.getpid()
    bucket = open_objects(url)
    assert isinstance(bucket, Bucket)
    try:
        return S3Store(
            bucket.bucket,
            prefix=bucket.prefix or None,
            aws_endpoint_url_s3=bucket.endpoint,  # as boto3 found it: environment, profile, region
            region=bucket.client.meta.region_name or "us-east-1",
            virtual_hosted_style_request=False,
            credential_provider=Boto3CredentialProvider(ttl=CREDENTIALS),
            client_options={"allow_http": bucket.endpoint.startswith("http://"), **TIMEOUTS},
            retry_config={"max_retries": 0},  # as `_get_range` retries, and counts it
        )
    except ValueError as error:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise InputError("no S3 credentials", url, remedy) from error
