"""A run's checkpoints: how they are stored, which one a run goes on from, and which are deleted; under Ray Train and locally.

Each is a folder ``step-00000200`` in the run's folder. Its `MANIFEST`, written last, lists the other files with their sizes and
checksums. A run goes on from the newest checkpoint whose files are as its manifest says; damaged ones are passed over. One
without a manifest (of an earlier version, or of a save that was interrupted at its very end) counts if it can be read.

A save writes the files into a temporary folder while training waits. A thread then stores them, while training goes on.

Going back to an older checkpoint marks the newer ones as set aside, in their manifests. They are not used, and stay until the run
has passed their steps.
"""

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, ParamSpec, Protocol, TypeVar

import google_crc32c
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files

from cluster.errors import ClusterError, UnreachableError
from cluster.lease import Lease
from cluster.scratch import scratch
from cluster.storage import storage_uri

MANIFEST = "manifest.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
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
    def meet(self) -> None:
        """Wait until every rank's thread has called this, without the process group, which training uses meanwhile."""

    def say(self, notice: str) -> None: ...


class RunFolder:
    """A run's folder, local or in S3. ``keep``: number of checkpoints kept; ``lease``: checked before one is stored."""

    def __init__(self, runs: str, name: str, keep: int = 2, lease: Lease | None = None) -> None:
        self.filesystem, path = FileSystem.from_uri(storage_uri(runs))
        self.path = f"{path.rstrip('/')}/{name}"
        self.url = f"{runs.rstrip('/')}/{name}"
        self.runs, self.name, self.keep, self.lease = runs, name, keep, lease
        self._unused = set[str]()  # checkpoints that are newer than the one which the run went on from
        self._storing: Future[None] | None = None

    def __reduce__(self) -> tuple[type["RunFolder"], tuple[Any, ...]]:
        return RunFolder, (self.runs, self.name, self.keep, self.lease)

    def save(
        self, worker: Rank, name: str, write: Callable[[Path], None], write_own: Callable[[Path], None] | None,
        stored: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Store a checkpoint, and delete those that are no longer kept. Every rank calls this, at the same step.

        ``write`` puts files into the folder that it gets, on rank 0 only; ``write_own`` does so on every rank, under names that
        differ between ranks. When this returns they have done so. What follows happens in a thread, which at last calls
        ``stored``, on every rank; `flush` waits for it. A save first waits for the one before it.

        Raises:
            ClusterError: another driver has taken the run over; the storage is full or refuses.
            UnreachableError: the storage has failed for two minutes.
        """
        self.flush()
        if write_own:  # a folder of its own for each number of workers: an interrupted save may have left other ranks' files
            name = f"{name}-of-{worker.world}"
        writers = ([write] if worker.rank == 0 else []) + ([write_own] if write_own else [])
        with ExitStack() as held, self._errors("a checkpoint cannot be stored"):
            folder = held.enter_context(scratch())
            for writer in writers:
                writer(folder)
            own = {path.name: {"bytes": path.stat().st_size, "crc32c": _crc32c(path)} for path in folder.iterdir()}
            parts = worker.gather(own) if write_own else [own]
            files = {file: about for part in parts for file, about in part.items()}
            kept, self._storing = held.pop_all(), Future[None]()

        def store() -> None:
            with kept, self._errors("a checkpoint cannot be stored"):
                if writers:
                    _patiently(self._upload, folder, name)
                if write_own:
                    worker.meet()  # all ranks' files are stored
                if worker.rank == 0:
                    _patiently(self._complete, name, files)
            stored()

        Thread(target=_run, args=(store, self._storing), name="checkpoint", daemon=True).start()

    def flush(self) -> None:
        """Wait until the last checkpoint is stored; raises what `save` raises."""
        storing, self._storing = self._storing, None
        if storing:
            storing.result()

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """At the end of the context, also after an error, wait until the last checkpoint is stored."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the error itself says more
                self.flush()
            raise
        self.flush()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn an error of the storage into one line. One that a restarted run would meet again ends the run."""
        try:
            yield
        except OSError as error:
            remedy = "mend that, then continue the run with --resume"
            if error.errno in LASTING:
                raise ClusterError(f"{what} ({os.strerror(error.errno).lower()})", self.url, remedy) from error
            raise UnreachableError(f"{what} ({str(error).splitlines()[0][:300]})", self.url, remedy) from error

    def restore(self, worker: Rank, read: Callable[[Path], Any], wanted: Wanted | None) -> Any:
        """What ``read`` returns for a folder with the files of the newest whole checkpoint; None when there is no checkpoint.

        Every rank calls this, and all use the same checkpoint. ``wanted``: picks the files that this rank needs from their names;
        None: all. A notice says which checkpoints were passed over, and why.

        Raises:
            ClusterError: there are checkpoints that were stored whole, and none of them is whole any more.
            UnreachableError: the storage fails.
        """
        self.flush()
        with self._errors("the run's checkpoints cannot be read"):
            return self._restore(worker, read, wanted)

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
        """Delete Ray Train's list of checkpoints, which runs of earlier versions have, and which may name deleted ones."""
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
        self._check_lease()
        self.filesystem.create_dir(f"{self.path}/{name}")
        copy_files(str(folder), f"{self.path}/{name}", LocalFileSystem(), self.filesystem)

    def _complete(self, name: str, files: dict[str, Any]) -> None:
        """Write the manifest of a checkpoint whose files are stored, and delete old checkpoints."""
        self._check_lease()
        self._write_manifest(name, {"files": files})
        self._unused.discard(name)
        self._delete_old(step_of(name))

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
        except (OSError, UnreachableError) as error:
            transient = isinstance(error, UnreachableError) or "AWS Error" in str(error)
            if not transient or time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def _run(work: Callable[[], None], done: "Future[None]") -> None:
    try:
        work()
    except BaseException as error:  # the training thread raises it
        done.set_exception(error)
    else:
        done.set_result(None)


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
