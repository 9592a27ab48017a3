"""A node's cache of shards on its disk, shared by all the processes of the node and bounded in size.

A cached shard is one sparse file: a block lies where it lies in the shard, and one flag a block follows the shard's end. A
flag is set after its bytes are written, so a reader needs no lock. Who fetches holds a lock on the flags' byte range, so no
block is fetched twice; it is an open-file-description lock, which the kernel lifts when its holder dies: none is left behind.
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

CHECK_EVERY = 16 << 20  # bytes that a process fetches between two looks at the cache's size
MIN_REQUEST = 1 << 16  # bytes that a request counts for, though all it wanted was here: copies that others evict must be let go
SPARE = 0.1  # share of the disk that stays free of what is brought in the background
OPEN = 128  # copies that a process keeps open; a set may have more shards than a process may open files
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class CacheConfig:
    """The node's cache of what was read from S3; a local data set needs none."""

    folder: str = ""
    """Where it stands; empty: $HARDSHARD_CACHE, else the temporary folder. Best on a local NVMe disk; nodes must not share it."""
    gib: float = 16.0
    """The most that it takes on disk, in GiB; 0 turns it off."""
    fill: bool = True
    """Bring all training samples there while training goes on, 4 MiB a GET, not only those drawn; if the set fits by itself."""

    def __post_init__(self) -> None:
        if self.gib < 0:
            raise InputError(f"the node cache cannot take {self.gib} GiB", "cache.gib", "give 0 (off) or more")

    @property
    def root(self) -> Path:
        """The folder that the cache makes its own folder in."""
        return Path(self.folder or os.environ.get("HARDSHARD_CACHE", "") or tempfile.gettempdir())


class CachedShard:
    """One shard's copy. Its file closes with the last reference, so that an evicted one serves who still reads it.

    Flags and bytes are one file on purpose: whoever opens a copy while it is evicted gets both or neither.
    """

    def __init__(self, path: Path, size: int, first: int, last: int) -> None:
        self.full = False  # the disk took a block in part or not at all
        self._flags = size - first  # plus a block's number: where its flag lies
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._file)
        os.truncate(self._file, size + last - first)

    def has(self, block: int) -> bool:
        """Whether a block's bytes are here."""
        return os.pread(self._file, 1, self._flags + block) == b"\1"

    def tight(self) -> bool:
        """Whether the disk is all but full."""
        disk = os.fstatvfs(self._file)
        return disk.f_bavail < SPARE * disk.f_blocks

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset of the shard; they must lie in a block that is here."""
        return os.pread(self._file, size, offset)

    def write(self, block: int, offset: int, data: bytes) -> None:
        """Keep a block. A full disk costs a later fetch and nothing else."""
        try:
            if os.pwrite(self._file, data, offset) == len(data):  # a disk that runs full takes a part and says nothing
                os.pwrite(self._file, b"\1", self._flags + block)  # not by mmap: that ends a process whose disk is full
                return
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.full = True

    @contextlib.contextmanager
    def claim(self, block: int, count: int) -> Iterator[None]:
        """Hold the right to fetch ``count`` blocks from ``block`` on, waiting for whoever holds it."""
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)  # a description of its own, evicted or not
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, self._range(fcntl.F_WRLCK, block, count))
            yield
        finally:  # closing alone would leave the lock to a child that was forked meanwhile
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, self._range(fcntl.F_UNLCK, block, count))
            os.close(file)

    def _range(self, kind: int, block: int, count: int) -> bytes:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, self._flags + block, count, 0)

    def gone(self) -> bool:
        """Whether the copy was evicted: what is open still reads, but must be let go to free the disk."""
        return os.fstat(self._file).st_nlink == 0


class NodeCache:
    """The cached shards of one data set in one process.

    Raises:
        InputError: the folder cannot be written, or another user made it.
    """

    def __init__(self, config: CacheConfig, index: Index, etags: dict[str, str]) -> None:
        self.config, self.index, self.etags = config, index, etags
        # Flags and data reach the disk in no set order: after a crash of the machine nothing that was cached before is believed.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.folder = config.root / f"hardshard-{os.getuid()}-{boot}"
        with self._errors():
            self._make()
            for old in config.root.glob(f"hardshard-{os.getuid()}-{'?' * 8}-{'?' * 4}-{'?' * 4}-{'?' * 4}-{'?' * 12}"):
                if old != self.folder:
                    shutil.rmtree(old, ignore_errors=True)
        self._open: dict[int, CachedShard] = {}  # in the order of use
        self._unchecked = secrets.randbelow(CHECK_EVERY)  # the processes of a node look at different times

    def shard(self, number: int) -> CachedShard | None:
        """The copy of a shard, kept open; None where the disk has no room to begin one."""
        copy = self._open.pop(number, None)
        if copy is None or copy.gone():
            copy = self.copy(number)
        if copy is not None:
            self._open[number] = copy
            if len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
        return copy

    def copy(self, number: int) -> CachedShard | None:
        """As `shard`, for who holds it himself."""
        shard, (first, last) = self.index.shards[number], self.index.blocks_of_shard(number)
        identity = hashlib.sha256(repr((self.index.url, shard, self.etags.get(shard.name))).encode())
        identity.update(self.index.blocks["offset"][first:last].tobytes())  # two indexes may cut a shard into other blocks
        with self._errors():
            try:
                self._make()  # again, for whoever cleans temporary folders under running programs
                return CachedShard(self.folder / identity.hexdigest()[:32], shard.size, first, last)
            except OSError as error:
                if error.errno not in FULL:
                    raise
        return None

    def has_room_for(self, shards: Sequence[int]) -> bool:
        """Whether the cache is to be filled with these, and is as large as all of them."""
        return self.config.fill and sum(self.index.shards[shard].size for shard in shards) <= self.config.gib * 2**30

    def add_fetched(self, fetched: int) -> bool:
        """Note bytes fetched; now and then look at the whole folder, and evict the copies opened or written longest ago.

        Whether any were evicted.
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
        if owner != os.getuid():  # whoever makes it first in a folder open to all could plant bytes in it
            raise InputError("the node cache belongs to another user", str(self.folder), "remove it or set --cache.folder")
