"""The difficulty vector's service: a named actor holds its versions, every Train worker follows it into shared memory.

    rank 0: Publisher -> actor (object store; copies in the run's folder) -> each rank: Follower -> loader workers' memory

The actor lives with the driver and outlives the training processes: when those restart from a checkpoint they hand it the
versions of that checkpoint (`begin`), and it forgets newer ones, which belong to steps that are about to be made again.
When the actor itself restarts it reads what it stored.

N identities; a version is (number, cosine float32 [N], nearest int32 [N]).
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from cluster.errors import ClusterError
from cluster.progress import NAMESPACE
from datasets.difficulty import Difficulty

STORED = "difficulty"  # the folder of stored versions, in the run's
POLL = 5.0  # seconds that one call waits for a version before it asks again: a lost call is noticed
AWAY = (ValueError, RayActorError, ObjectLostError, GetTimeoutError)  # ValueError: there is no actor of that name

log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    number: int
    data: Any  # a reference to (cosine, nearest) in the object store, owned by the actor
    arrays: tuple[Any, Any]  # the same, to be stored


class DifficultyService:
    """The actor's code. ``keep`` versions are held, and stored in ``folder`` (a pyarrow URI), too."""

    def __init__(self, folder: str, keep: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=keep)
        self._store = _Store(folder)
        self._epoch = 0
        self._news, self._saving, self._saves = asyncio.Condition(), asyncio.Lock(), set[asyncio.Task[None]]()
        try:
            for version in self._store.read():
                self._keep(*version)
        except (OSError, ValueError, EOFError) as error:  # an actor that fails here would never be started again
            log.warning("the versions in %s cannot be read, they will come anew: %s", folder, error)

    def _keep(self, number: int, cosine: Any, nearest: Any) -> None:
        self._kept.append(_Kept(number, ray.put((cosine, nearest)), (cosine, nearest)))

    async def begin(self, versions: Sequence[tuple[int, Any, Any]]) -> int:
        """Start a new incarnation of the run from these versions alone; returns its epoch. Older publishers go unheard."""
        async with self._news:
            self._epoch = time.time_ns()  # grows across restarts of the actor, too
            self._kept.clear()
            for version in versions:
                self._keep(*version)
            self._news.notify_all()
        await self._save()
        return self._epoch

    async def publish(self, epoch: int, number: int, cosine: Any, nearest: Any) -> bool:
        """Add a version. Adding one again changes nothing. False: this publisher's incarnation is over."""
        async with self._news:
            if self._epoch > epoch:
                return False
            self._epoch = epoch  # after a restart the first publisher tells us which incarnation runs
            if number > max((kept.number for kept in self._kept), default=0):
                self._keep(number, cosine, nearest)
                self._news.notify_all()
        await self._save()
        return True

    async def after(self, number: int, timeout_s: float) -> tuple[int, Any] | None:
        """The oldest version newer than ``number`` and the reference to its data, waited for; None: it did not come in time."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: self._next(number) is not None), timeout_s)
            except TimeoutError:
                return None
            kept = self._next(number)
            return (kept.number, kept.data) if kept else None

    def _next(self, number: int) -> _Kept | None:
        return next((kept for kept in self._kept if kept.number > number), None)

    async def _save(self) -> None:
        """Store what is held; a storage that is slow is waited for a few seconds, and goes on by itself."""
        save = asyncio.create_task(self._stored())
        self._saves.add(save)
        save.add_done_callback(self._saves.discard)
        await asyncio.wait({save}, timeout=POLL)

    async def _stored(self) -> None:
        try:
            async with self._saving:
                await asyncio.to_thread(self._store.keep, list(self._kept))
        except OSError as error:  # the next version brings the next try
            log.warning("the difficulty vector cannot be stored in %s: %s", self._store.folder, error)


class _Store:
    """The versions in a run's folder: a file each, written once, by its number; cosine and nearest in numpy's npy format."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._written: dict[int, Any] = {}  # what stands in the file of each number

    @cached_property
    def _place(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Where it is; asking may go to S3, and fail."""
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self.folder)
        return filesystem, f"{path}/{STORED}"

    def keep(self, versions: Sequence[_Kept]) -> None:
        """Leave these versions there, and no other."""
        filesystem, path = self._place
        filesystem.create_dir(path)
        current = {f"{kept.number}.npy": kept for kept in versions}
        for file in self._files():
            if file.base_name not in current:
                filesystem.delete_file(file.path)
        for name, kept in current.items():
            if self._written.get(kept.number) is not kept.data:  # an incarnation may make a version of that number anew
                with filesystem.open_output_stream(f"{path}/{name}.new") as out:
                    for array in kept.arrays:
                        np.save(out, array, allow_pickle=False)
                filesystem.move(f"{path}/{name}.new", f"{path}/{name}")
        self._written = {kept.number: kept.data for kept in versions}

    def read(self) -> list[tuple[int, Any, Any]]:
        """The versions that are there, in order."""
        found = []
        for file in self._files():
            if file.extension == "npy":
                with self._place[0].open_input_file(file.path) as stored:
                    arrays = [np.load(stored, allow_pickle=False) for _ in range(2)]
                found.append((int(file.base_name.removesuffix(".npy")), *arrays))
        return sorted(found, key=lambda version: version[0])

    def _files(self) -> list[pyarrow.fs.FileInfo]:
        """What lies in the folder, half-written files of a killed actor among it."""
        filesystem, path = self._place
        return [file for file in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True)) if file.is_file]


def start_service(name: str, folder: str, keep: int) -> Any:
    """Start a run's actor; it lives until the driver that holds what this returns ends, whatever becomes of the workers.

    ``name``: of this launch alone, in the namespace ``hardshard``, so that two runs of one name on a cluster don't meet;
    ``folder``: the run's, as a pyarrow URI, to store versions in; ``keep``: versions held.
    """
    options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000}
    return ray.remote(DifficultyService).options(**options).remote(folder, keep)


class _Line:
    """Calls to the actor that outlast its restarts and absences, for a thread of a Train worker; and that thread."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say, self.ended = name, say, threading.Event()
        self.failure: Exception | None = None
        self._away_since: float | None = None

    def start(self, work: Callable[[], None]) -> threading.Thread:
        """Run ``work`` in a thread; what it raises is kept for `check`."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self.failure = error

        thread = threading.Thread(target=guarded, name="difficulty", daemon=True)
        thread.start()
        return thread

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self.failure is not None:
            raise self.failure

    def call(self, method: str, *arguments: Any, patience: float = float("inf")) -> Any:
        """The actor's answer; while it is away, tries again each second until `ended` is set (then None), and says so.

        Raises:
            ClusterError: it was away for longer than ``patience`` seconds.
        """
        while not self.ended.is_set():
            if self._away_since is not None and time.monotonic() - self._away_since > patience:
                raise ClusterError(f"the difficulty actor was away for {patience:g} s", self.name, "resume the run")
            try:
                actor = ray.get_actor(self.name, namespace=NAMESPACE)
                answer = ray.get(getattr(actor, method).remote(*arguments), timeout=6 * POLL)
            except AWAY as error:
                if isinstance(error, RayTaskError):  # it is there, and at fault
                    raise
                if self._away_since is None and not self.ended.is_set():
                    self._away_since = time.monotonic()
                    self.say(f"the difficulty actor {self.name} is away ({type(error).__name__})")
                self.ended.wait(1.0)
                continue
            if self._away_since is not None:
                self.say(f"the difficulty actor is back after {time.monotonic() - self._away_since:.0f} s")
                self._away_since = None
            return answer
        return None


class Publisher:
    """Rank 0's end: hands new versions to the actor in the background."""

    def __init__(self, name: str, restored: Sequence[Difficulty], say: Callable[[str], None], patience: float) -> None:
        self._line = _Line(name, say)
        self.check = self._line.check
        self._epoch: int = self._line.call("begin", list(map(tuple, restored)), patience=patience)
        self._queue: deque[Difficulty] = deque()
        self._wake = threading.Event()
        self._thread = self._line.start(self._run)

    def publish(self, difficulty: Difficulty) -> None:
        """Queue a version; returns at once."""
        self._queue.append(difficulty)
        self._wake.set()

    def _run(self) -> None:
        while not self._line.ended.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            while self._queue and not self._line.ended.is_set():
                current = self._line.call("publish", self._epoch, *self._queue[0])
                self._queue.popleft()
                if current is False:
                    raise ClusterError("another incarnation of this run publishes the difficulty vector", self._line.name)

    def close(self) -> None:
        """Hand over what is queued (for at most a few seconds), then end."""
        deadline = time.monotonic() + POLL
        while self._queue and self._line.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self._line.ended.set()
        self._wake.set()
        self._thread.join(POLL)


class Follower:
    """Every rank's end: a thread hands each version newer than ``after`` to ``put``, in order."""

    def __init__(self, name: str, after: int, put: Callable[[Difficulty], None], say: Callable[[str], None]) -> None:
        self._line, self._last, self._put = _Line(name, say), after, put
        self.check = self._line.check
        self._line.start(self._run)

    def _run(self) -> None:
        while not self._line.ended.is_set():
            found: tuple[int, Any] | None = self._line.call("after", self._last, POLL)
            if found is None:
                continue
            number, reference = found
            try:
                cosine, nearest = ray.get(reference)
            except ObjectLostError:  # the actor that owned it died in between: ask its successor
                continue
            self._put(Difficulty(number, cosine, nearest))
            self._last = number

    def close(self) -> None:
        """End; a call under way is left to itself."""
        self._line.ended.set()
