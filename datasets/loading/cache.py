"""The node's cache of shards on disk, shared by all processes of the node and limited in size.

A cached shard is one sparse file: each block at its offset in the shard, and after the shard's end a one-byte flag per block. A
flag is set after the block's bytes are written, so readers need no lock. A process that fetches blocks locks the byte range of
their flags, so no block is fetched twice. It is an open-file-description lock, which the kernel releases if the process dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import InputError
from datasets.shards.index import Index

CHECK_EVERY = 16 << 20  # bytes that a process fetches between two checks of the cache's size
MIN_REQUEST = 1 << 16  # bytes that each request counts at least, so that copies evicted by others are closed in time
SPARE = 0.1  # fraction of the disk that filling in the background leaves free
OPEN = 128  # copies that a process keeps open; a set may have more shards than a process may open files
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class CacheConfig:
    """The node's cache of data from S3; not used for local data."""

    folder: str = ""
    """Its folder; empty: $HARDSHARD_CACHE, else the temporary folder. Best on a local NVMe disk; nodes must not share it."""
    gib: float = 16.0
    """Largest size on disk, in GiB; 0 turns the cache off."""
    fill: bool = True
    """Fetch all training samples in the background during training, 4 MiB per GET, if the whole set fits into the cache."""

    def __post_init__(self) -> None:
        if self.gib < 0:
            raise InputError(f"the node cache cannot take {self.gib} GiB", "cache.gib", "give 0 (off) or more")

    @property
    def root(self) -> Path:
        """The folder in which the cache creates its own folder."""
        return Path(self.folder or os.environ.get("HARDSHARD_CACHE", "") or tempfile.gettempdir())


class CachedShard:
    """The cached copy of one shard. Its file closes with the last reference, so an evicted copy can still be read.

    Flags and bytes are in one file on purpose: a process that opens a copy during eviction gets both or neither.
    """

    def __init__(self, path: Path, size: int, first: int, last: int) -> None:
        self.full = False  # a block could not be written, as the disk is full
        self._flags = size - first  # plus a block's number: the offset of its flag
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._file)
        os.truncate(self._file, size + last - first)

    def has(self, block: int) -> bool:
        """Whether a block is in the copy."""
        return os.pread(self._file, 1, self._flags + block) == b"\1"

    def tight(self) -> bool:
        """Whether the disk is almost full."""
        disk = os.fstatvfs(self._file)
        return disk.f_bavail < SPARE * disk.f_blocks

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes at an offset of the shard; they must lie in a block that is in the copy."""
        return os.pread(self._file, size, offset)

    def write(self, block: int, offset: int, data: bytes) -> None:
        """Store a block. If the disk is full, the block is fetched again later."""
        try:
            if os.pwrite(self._file, data, offset) == len(data):  # when the disk gets full, a part is written without an error
                os.pwrite(self._file, b"\1", self._flags + block)  # mmap would kill the process when the disk is full
                return
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.full = True

    @contextlib.contextmanager
    def claim(self, block: int, count: int) -> Iterator[None]:
        """Lock ``count`` blocks from ``block`` on for fetching; waits while another process holds them."""
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)  # a new open file description; works if evicted
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, self._range(fcntl.F_WRLCK, block, count))
            yield
        finally:  # closing is not enough: a child forked meanwhile would keep the lock
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, self._range(fcntl.F_UNLCK, block, count))
            os.close(file)

    def _range(self, kind: int, block: int, count: int) -> bytes:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, self._flags + block, count, 0)

    def gone(self) -> bool:
        """Whether the copy was evicted: it can still be read, but must be closed to free the disk."""
        return os.fstat(self._file).st_nlink == 0


class NodeCache:
    """The cached shards of one data set in one process.

    Raises:
        InputError: the folder cannot be written, or another user made it.
    """

    def __init__(self, config: CacheConfig, index: Index, etags: dict[str, str]) -> None:
        self.config, self.index, self.etags = config, index, etags
        # Flags and data reach the disk in any order. A cache from before the last boot is not used: the machine may have crashed.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.folder = config.root / f"hardshard-{os.getuid()}-{boot}"
        with self._errors():
            self._make()
            for old in config.root.glob(f"hardshard-{os.getuid()}-{'?' * 8}-{'?' * 4}-{'?' * 4}-{'?' * 4}-{'?' * 12}"):
                if old != self.folder:
                    shutil.rmtree(old, ignore_errors=True)
        self._open: dict[int, CachedShard] = {}  # in the order of use
        self._unchecked = secrets.randbelow(CHECK_EVERY)  # so that the processes of a node check at different times

    def shard(self, number: int) -> CachedShard | None:
        """Return the copy of a shard and keep it open; None if the disk has no space to create it."""
        copy = self._open.pop(number, None)
        if copy is None or copy.gone():
            copy = self.copy(number)
        if copy is not None:
            self._open[number] = copy
            if len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
        return copy

    def copy(self, number: int) -> CachedShard | None:
        """Open or create the copy of a shard like `shard`, but leave it to the caller to keep it open."""
        shard, (first, last) = self.index.shards[number], self.index.blocks_of_shard(number)
        etag = self.etags.get(self.index.shard_url(number))
        identity = hashlib.sha256(repr((self.index.shards_url, shard, etag)).encode())
        identity.update(self.index.blocks["offset"][first:last].tobytes())  # another index may define other blocks
        with self._errors():
            try:
                self._make()  # again: the system may have cleaned the temporary folder meanwhile
                return CachedShard(self.folder / identity.hexdigest()[:32], shard.size, first, last)
            except OSError as error:
                if error.errno not in FULL:
                    raise
        return None

    def has_room_for(self, shards: Sequence[int]) -> bool:
        """Whether the cache should be filled with these shards, and is large enough for all of them."""
        return self.config.fill and sum(self.index.shards[shard].size for shard in shards) <= self.config.gib * 2**30

    def add_fetched(self, fetched: int) -> bool:
        """Count fetched bytes. Every `CHECK_EVERY` bytes, evict the copies that were least recently opened or written.

        Returns whether any copies were evicted.
        """
        self._unchecked += max(fetched, MIN_REQUEST)
        if self._unchecked < CHECK_EVERY:
            return False
        self._unchecked = 0
        files = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process evicts too
                    stat = entry.stat()
                    files.append((stat.st_mtime_ns, stat.st_blocks * 512, Path(entry)))
        excess = sum(size for _, size, _ in files) - int(self.config.gib * 2**30)
        evicts = excess > 0
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        self._open = {number: copy for number, copy in self._open.items() if not copy.gone()}
        return evicts

    def _make(self) -> None:
        self.config.root.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
            owner = self.folder.lstat().st_uid
        except OSError as error:
            what = f"the node cache cannot be written ({error.strerror})"
            raise InputError(what, str(self.config.root), "set --cache.folder") from error
        if owner != os.getuid():  # in a folder open to all, another user could create it first and plant data
            raise InputError("the node cache belongs to another user", str(self.folder), "remove it or set --cache.folder")
