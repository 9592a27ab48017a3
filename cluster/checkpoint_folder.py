"""A run's checkpoints: how they are stored, which one a run goes on from, and which are deleted; under Ray Train and locally.

Each is a folder ``step-00000200`` in the run's folder. Its `MANIFEST`, written last, lists the other files with their sizes and
checksums. A run goes on from the newest checkpoint whose files are as its manifest says; damaged ones are passed over. One
without a manifest (of an earlier version, or of a save that was interrupted at its very end) counts if it can be read.

Going back to an older checkpoint marks the newer ones as set aside, in their manifests. They are not used, and stay until the run
has passed their steps.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import google_crc32c
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files

from cluster.errors import ClusterError, UnreachableError
from cluster.lease import Lease
from cluster.storage import storage_uri

MANIFEST = "manifest.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
SCRATCH = "hardshard-checkpoint-"  # the prefix of temporary folders' names
LEFT_OVER_S = 60.0  # age in seconds from which a folder that no process has locked is taken for a dead worker's
PATIENCE_S = 120.0  # in which transfers from and to S3 are tried again
LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # a run that is restarted meets these again
P = ParamSpec("P")
T = TypeVar("T")
Wanted = Callable[[list[str]], Sequence[str]]


class Rank(Protocol):
    """What is needed of a worker."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def gather(self, value: Any) -> list[Any]: ...
    def say(self, notice: str) -> None: ...


class RunFolder:
    """A run's folder, local or in S3. ``keep``: number of checkpoints kept; ``lease``: checked before one is stored."""

    def __init__(self, runs: str, name: str, keep: int = 2, lease: Lease | None = None) -> None:
        self.filesystem, path = FileSystem.from_uri(storage_uri(runs))
        self.path = f"{path.rstrip('/')}/{name}"
        self.url = f"{runs.rstrip('/')}/{name}"
        self.runs, self.name, self.keep, self.lease = runs, name, keep, lease
        self._unused = set[str]()  # checkpoints that are newer than the one which the run went on from

    def __reduce__(self) -> tuple[type["RunFolder"], tuple[Any, ...]]:
        return RunFolder, (self.runs, self.name, self.keep, self.lease)

    def save(self, worker: Rank, name: str, write: Callable[[Path], None], write_own: Callable[[Path], None] | None) -> str:
        """Store a checkpoint, and delete those that are no longer kept; returns its name. Every rank calls this.

        ``write`` puts files into the folder that it gets, on rank 0 only; ``write_own`` does so on every rank, under names that
        differ between ranks.

        Raises:
            ClusterError: another driver has taken the run over; the storage is full or refuses.
            UnreachableError: the storage has failed for two minutes.
        """
        try:
            return self._save(worker, name, write, write_own)
        except OSError as error:
            raise self._failure("a checkpoint cannot be stored", error) from error

    def _save(
        self, worker: Rank, name: str, write: Callable[[Path], None], write_own: Callable[[Path], None] | None
    ) -> str:  # fmt: skip
        if write_own:  # a folder of its own for each number of workers: an interrupted save may have left other ranks' files
            name = f"{name}-of-{worker.world}"
        writers = ([write] if worker.rank == 0 else []) + ([write_own] if write_own else [])
        if not writers:
            return name
        with scratch() as folder:
            for writer in writers:
                writer(folder)
            own = {path.name: {"bytes": path.stat().st_size, "crc32c": _crc32c(path)} for path in folder.iterdir()}
            self._check_lease()
            _patiently(self._upload, folder, name)
        parts = worker.gather(own) if write_own else [own]  # all ranks' files are stored
        if worker.rank == 0:
            self._check_lease()
            self._write_manifest(name, {"files": {file: about for part in parts for file, about in part.items()}})
            self._unused.discard(name)
            self._delete_old(step_of(name))
        return name

    def restore(self, worker: Rank, read: Callable[[Path], Any], wanted: Wanted | None) -> Any:
        """What ``read`` returns for a folder with the files of the newest whole checkpoint; None when there is no checkpoint.

        Every rank calls this, and all use the same checkpoint. ``wanted``: picks the files that this rank needs from their names;
        None: all. A notice says which checkpoints were passed over, and why.

        Raises:
            ClusterError: there are checkpoints that were stored whole, and none of them is whole any more.
            UnreachableError: the storage fails.
        """
        try:
            return self._restore(worker, read, wanted)
        except OSError as error:
            raise self._failure("the run's checkpoints cannot be read", error) from error

    def _restore(self, worker: Rank, read: Callable[[Path], Any], wanted: Wanted | None) -> Any:
        passed = list[str]()
        names: list[str] = worker.gather(_patiently(self._in_use) if worker.rank == 0 else None)[0]
        for name in names:
            with scratch() as folder:
                found, fault = self._read(name, folder, read, wanted)
            faults = sorted({fault for fault in worker.gather(fault) if fault})
            if not faults:
                if passed and worker.rank == 0:
                    worker.say(f"passed over {'; '.join(passed)}. The run goes on from {name}")
                self._unused = set(self._names()) - set(names[names.index(name) :])
                return found
            passed.append(f"{name} ({', '.join(faults)})")
        if any(self._manifest(name) != {} for name in names):
            remedy = "give --resume-from 0 to train from the start"
            raise ClusterError(f"none of the run's checkpoints is whole: {'; '.join(passed)}", self.url, remedy)
        if passed and worker.rank == 0:  # they never were whole: the first save was interrupted
            worker.say(f"passed over {'; '.join(passed)}. The run begins at step 0")
        self._unused = set(self._names())
        return None

    def go_back(self, step: int) -> None:
        """Have the run go on from its checkpoint of this step; 0: from the start. Newer ones are set aside.

        Raises:
            ClusterError: there is no such checkpoint.
        """
        names = self._names()
        if step and step not in map(step_of, names):
            kept = ", ".join(str(step_of(name)) for name in reversed(names)) or "none"
            raise ClusterError(f"the run has no checkpoint of step {step}", self.url, f"there are those of: {kept}")
        for name in names:
            manifest, aside = self._manifest(name) or {}, step_of(name) > step
            if aside != bool(manifest.get("set_aside")):
                self._write_manifest(name, {**manifest, "set_aside": aside})

    def delete_snapshot(self) -> None:
        """Delete Ray Train's list of checkpoints, which may be damaged or name deleted ones: it then begins a new one."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{RAY_SNAPSHOT}")

    def _names(self) -> list[str]:
        """All checkpoints, whole or not, the newest first."""
        listed = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        names = [entry.base_name for entry in listed if not entry.is_file and step_of(entry.base_name) >= 0]
        return sorted(names, key=lambda name: (step_of(name), name), reverse=True)

    def _in_use(self) -> list[str]:
        """The checkpoints that are not set aside, the newest first."""
        return [name for name in self._names() if not (self._manifest(name) or {}).get("set_aside")]

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """A checkpoint's manifest; {} if it has none, None if it is damaged."""
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}/{MANIFEST}") as file:
                manifest = json.loads(file.read())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            return None
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files", {}), dict) else None

    def _write_manifest(self, name: str, manifest: dict[str, Any]) -> None:
        path = f"{self.path}/{name}/{MANIFEST}"
        with self.filesystem.open_output_stream(f"{path}.new") as file:
            file.write(json.dumps(manifest, indent=1).encode())
        self.filesystem.move(f"{path}.new", path)

    def _read(self, name: str, folder: Path, read: Callable[[Path], Any], wanted: Wanted | None) -> tuple[Any, str]:
        """What ``read`` returns for a checkpoint, fetched into ``folder``; and what is wrong with it, or an empty text."""
        try:
            if fault := _patiently(self._fetch, name, folder, wanted):
                return None, fault
            return read(folder), ""
        except FileNotFoundError:
            return None, "a file is missing"
        except Exception as error:  # of the job's: what it cannot read
            if getattr(error, "exit_code", 1) != 2 or getattr(error, "transient", False):
                raise
            return None, str(error.args[0])

    def _fetch(self, name: str, folder: Path, wanted: Wanted | None) -> str:
        """Copy a checkpoint's files here, those that ``wanted`` picks by name, or all; returns what is wrong with them."""
        path, manifest = f"{self.path}/{name}", self._manifest(name)
        if manifest is None:
            return f"{MANIFEST} is damaged"
        files = {file.base_name: file.size for file in self.filesystem.get_file_info(FileSelector(path)) if file.is_file}
        listed = manifest.get("files", dict.fromkeys(set(files) - {MANIFEST}))
        if not listed:
            return "it is empty"
        for file, about in listed.items():
            if file not in files:
                return f"{file} is missing"
            if about and files[file] != about["bytes"]:
                return f"{file} has {files[file]:,} of {about['bytes']:,} bytes"
        for file in wanted(sorted(listed)) if wanted else listed:
            copy_files(f"{path}/{file}", f"{folder}/{file}", self.filesystem, LocalFileSystem())
            if listed[file] and _crc32c(folder / file) != listed[file]["crc32c"]:
                return f"{file} has another checksum than in {MANIFEST}"
        return ""

    def _upload(self, folder: Path, name: str) -> None:
        """Copy a folder's files into that of a checkpoint."""
        self.filesystem.create_dir(f"{self.path}/{name}")
        copy_files(str(folder), f"{self.path}/{name}", LocalFileSystem(), self.filesystem)

    def _failure(self, what: str, error: OSError) -> ClusterError:
        """The error of a storage that fails, in one line."""
        remedy = "mend that, then continue the run with --resume"
        if error.errno in LASTING:
            return ClusterError(f"{what} ({os.strerror(error.errno).lower()})", self.url, remedy)
        return UnreachableError(f"{what} ({str(error).splitlines()[0][:300]})", self.url, remedy)

    def _check_lease(self) -> None:
        if self.lease:
            self.lease.check()

    def _delete_old(self, step: int) -> None:
        """Delete the checkpoints up to a step, except for the newest ones in use."""
        names = [name for name in self._names() if step_of(name) <= step]
        kept = [name for name in names if name not in self._unused][: self.keep]
        for name in set(names) - set(kept):
            with suppress(FileNotFoundError):  # somebody else deleted it
                self.filesystem.delete_dir(f"{self.path}/{name}")


def _patiently(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns; it is made again while S3 answers with an error, or not at all, for two minutes."""
    began, pause = time.monotonic(), 2.0
    while True:
        try:
            return work(*args, **kwargs)
        except OSError as error:
            if "AWS Error" not in str(error) or time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def step_of(name: str) -> int:
    """The step of a checkpoint's name, ``step-00000200`` or ``step-00000200-of-8``; -1 for any other name."""
    found = re.fullmatch(r"step-(\d+)(-of-\d+)?", name)
    return int(found[1]) if found else -1


def _crc32c(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = google_crc32c.extend(checksum, block)
    return checksum


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder; also removes those that killed workers left."""
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_OVER_S and _unlocked(old):
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)  # the kernel releases it when the process dies
        try:
            yield Path(folder)
        finally:
            os.close(held)


def _unlocked(folder: Path) -> bool:
    """Whether no process has the folder locked."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
