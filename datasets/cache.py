"""A node's cache of shards on its disk, shared by all the processes of the node and bounded in size.

A cached shard is a sparse copy of it (`*.data`: a block lies where it lies in the shard) and one flag a block (`*.have`). A
flag is set after its bytes are written, so a reader needs no lock. Who fetches holds a lock on the flags' byte range, so no
block is fetched twice; it is an open-file-description lock, which the kernel lifts when its holder dies: none is left behind.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from datasets.errors import InputError
from datasets.index import Index, Shard

CHECK_EVERY = 256  # blocks a process fetches between two looks at the cache's size: 64 MiB at the most


@dataclass(frozen=True)
class CacheConfig:
    """The node's cache of what was read from S3; a local data set needs none."""

    folder: str = ""
    """Where it stands; empty: $HARDSHARD_CACHE, else hardshard-<uid> in the temporary folder. Best on a local NVMe disk."""
    gib: float = 16.0
    """The most that it takes on disk, in GiB; 0 turns it off."""

    def __post_init__(self) -> None:
        if self.gib < 0:
            raise InputError(f"the node cache cannot take {self.gib} GiB", "cache.gib", "give 0 (off) or more")

    @property
    def root(self) -> Path:
        """The folder in use."""
        default = f"{os.environ.get('TMPDIR', '/tmp')}/hardshard-{os.getuid()}"  # noqa: S108 - made with mode 0700
        return Path(self.folder or os.environ.get("HARDSHARD_CACHE", "") or default)


class CachedShard:
    """One shard's copy. Its files close with the last reference, so that an evicted one serves who still reads it."""

    def __init__(self, stem: Path, shard: Shard, first: int, last: int) -> None:
        self._first = first  # block number of the first flag
        self._have_path = stem.with_suffix(".have")
        self._data = _open(stem.with_suffix(".data"))
        self._data.truncate(shard.size)
        with _open(self._have_path) as flags:
            flags.truncate(last - first)
            self._have = mmap.mmap(flags.fileno(), last - first)

    def has(self, block: int) -> bool:
        """Whether a block's bytes are here."""
        return self._have[block - self._first] == 1

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset of the shard; they must lie in a block that is here."""
        return os.pread(self._data.fileno(), size, offset)

    def write(self, block: int, offset: int, data: memoryview) -> None:
        """Keep a block. A full disk costs a later fetch and nothing else."""
        try:
            os.pwrite(self._data.fileno(), data, offset)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return
        self._have[block - self._first] = 1

    @contextlib.contextmanager
    def claim(self, block: int, count: int) -> Iterator[None]:
        """Hold the right to fetch ``count`` blocks from ``block`` on, waiting for whoever holds it."""
        with _open(self._have_path) as flags:  # a description of its own: closing it lifts the lock
            lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, block - self._first, count, 0)
            fcntl.fcntl(flags, fcntl.F_OFD_SETLKW, lock)
            yield

    def gone(self) -> bool:
        """Whether the copy was evicted: what is open still reads, but must be let go to free the disk."""
        return os.fstat(self._data.fileno()).st_nlink == 0


class NodeCache:
    """The cached shards of one data set in one process.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, config: CacheConfig, index: Index, etags: dict[str, str]) -> None:
        self.config, self.index, self.etags = config, index, etags
        # Flags and data reach the disk in no set order: after a crash of the machine nothing that was cached before is believed.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.folder = config.root / boot / hashlib.sha256(index.url.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in config.root.iterdir():
                if old.name != boot and old.is_dir() and len(old.name) == len(boot):
                    shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise InputError(
                f"the node cache cannot be written ({error.strerror})", str(config.root), "set --cache.folder"
            ) from error
        self._open: dict[int, CachedShard] = {}
        self._unchecked = 0

    def shard(self, number: int) -> CachedShard:
        """The copy of a shard, opened once a process."""
        kept = self._open.get(number)
        if kept is not None and not kept.gone():
            return kept
        shard = self.index.shards[number]
        tag = hashlib.sha256(f"{shard.name} {shard.size} {self.etags.get(shard.name)}".encode()).hexdigest()[:24]
        self._open[number] = CachedShard(self.folder / tag, shard, *self.index.blocks_of_shard(number))
        return self._open[number]

    def account(self, fetched: int) -> None:
        """Note blocks fetched; now and then look at the whole folder, and evict the copies that were begun first."""
        self._unchecked += fetched
        if self._unchecked < CHECK_EVERY:
            return
        self._unchecked = 0
        files = []
        for path in self.config.root.rglob("*.data"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                stat = path.stat()
                files.append((path.with_suffix(".have").stat().st_ctime, stat.st_blocks * 512, path))
        excess = sum(size for _, size, _ in files) - int(self.config.gib * 2**30)
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.with_suffix(".have").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            excess -= size


def _open(path: Path) -> FileIO:
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
