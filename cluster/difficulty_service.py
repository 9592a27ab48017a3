"""Serves the versions of the difficulty vector: an actor holds them, and every rank copies new ones into shared memory.

    rank 0: Publisher -> actor (object store; copies in the run's folder) -> each rank: Follower -> loader workers' memory

The actor lives as long as the driver, longer than the training processes. An *incarnation* is one life of these, from their start
to their next restart. When they restart from a checkpoint, rank 0 hands that checkpoint's versions to the actor (`begin`), which
drops newer ones: the steps that they belong to are repeated. When the actor restarts, it reads the versions that it stored.

Of N identities, a version is (number, cosine float32 [N], neighbours int32 [N, k]).
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
POLL = 5.0  # seconds that one call waits for a new version; the next call then notices if the actor has died
UNREACHABLE = (ValueError, RayActorError, ObjectLostError, GetTimeoutError)  # ValueError: there is no actor of that name

log = logging.getLogger(__name__)


class _HeldVersion(NamedTuple):
    number: int
    data: Any  # reference to (cosine, neighbours) in the object store, owned by the actor
    arrays: tuple[Any, Any]  # the same arrays, for the storage


class DifficultyService:
    """The actor's code: holds the last ``keep`` versions, and stores them in ``folder`` (a pyarrow URI)."""

    def __init__(self, folder: str, keep: int) -> None:
        self._held: deque[_HeldVersion] = deque(maxlen=keep)
        self._store = _Store(folder)
        self._epoch = 0
        self._changed, self._saving, self._saves = asyncio.Condition(), asyncio.Lock(), set[asyncio.Task[None]]()
        try:
            for version in self._store.read():
                self._hold(*version)
        except (OSError, ValueError, EOFError) as error:  # Ray would not restart an actor that fails here
            log.warning("the versions in %s cannot be read, they will be computed again: %s", folder, error)

    def _hold(self, number: int, cosine: Any, neighbours: Any) -> None:
        self._held.append(_HeldVersion(number, ray.put((cosine, neighbours)), (cosine, neighbours)))

    async def begin(self, versions: Sequence[tuple[int, Any, Any]]) -> int:
        """Start a new incarnation with only these versions; returns its epoch. Publishers of older epochs are then ignored."""
        async with self._changed:
            self._epoch = time.time_ns()  # grows across restarts of the actor, too
            self._held.clear()
            for version in versions:
                self._hold(*version)
            self._changed.notify_all()
        await self._save()
        return self._epoch

    async def publish(self, epoch: int, number: int, cosine: Any, neighbours: Any) -> bool:
        """Add a version; adding one twice changes nothing. False: a newer incarnation has begun, and this one must end."""
        async with self._changed:
            if self._epoch > epoch:
                return False
            self._epoch = epoch  # a restarted actor learns it from the first publisher that calls
            if number > max((held.number for held in self._held), default=0):
                self._hold(number, cosine, neighbours)
                self._changed.notify_all()
        await self._save()
        return True

    async def after(self, number: int, timeout_s: float) -> tuple[int, Any] | None:
        """Wait for a version newer than ``number``: the oldest such one's number and reference; None: none came in time."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._next(number) is not None), timeout_s)
            except TimeoutError:
                return None
            held = self._next(number)
            return (held.number, held.data) if held else None

    def _next(self, number: int) -> _HeldVersion | None:
        return next((held for held in self._held if held.number > number), None)

    async def _save(self) -> None:
        """Store the versions held; returns after a few seconds in any case, and a slow storage is then written on."""
        save = asyncio.create_task(self._stored())
        self._saves.add(save)
        save.add_done_callback(self._saves.discard)
        await asyncio.wait({save}, timeout=POLL)

    async def _stored(self) -> None:
        try:
            async with self._saving:
                await asyncio.to_thread(self._store.keep, list(self._held))
        except OSError as error:  # tried again with the next version
            log.warning("the difficulty vector cannot be stored in %s: %s", self._store.folder, error)


class _Store:
    """The versions stored in a run's folder: a file each, named by its number: cosine, then neighbours, in numpy's npy format."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._written: dict[int, Any] = {}  # the reference of each number whose file is written

    @cached_property
    def _location(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """File system and path. Not in ``__init__``: it may send requests to S3, which may fail."""
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self.folder)
        return filesystem, f"{path}/{STORED}"

    def keep(self, versions: Sequence[_HeldVersion]) -> None:
        """Store these versions, and delete all others."""
        filesystem, path = self._location
        filesystem.create_dir(path)
        current = {f"{held.number}.npy": held for held in versions}
        for file in self._files():
            if file.base_name not in current:
                filesystem.delete_file(file.path)
        for name, held in current.items():
            if self._written.get(held.number) is not held.data:  # a new incarnation may compute the same number again
                with filesystem.open_output_stream(f"{path}/{name}.new") as out:
                    for array in held.arrays:
                        np.save(out, array, allow_pickle=False)
                filesystem.move(f"{path}/{name}.new", f"{path}/{name}")
        self._written = {held.number: held.data for held in versions}

    def read(self) -> list[tuple[int, Any, Any]]:
        """The stored versions, by number."""
        found = []
        for file in self._files():
            if file.extension == "npy":
                with self._location[0].open_input_file(file.path) as stored:
                    arrays = [np.load(stored, allow_pickle=False) for _ in range(2)]
                found.append((int(file.base_name.removesuffix(".npy")), *arrays))
        return sorted(found, key=lambda version: version[0])

    def _files(self) -> list[pyarrow.fs.FileInfo]:
        """All files in the folder, also those that a killed actor left half written."""
        filesystem, path = self._location
        return [file for file in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True)) if file.is_file]


def start_service(name: str, folder: str, keep: int) -> Any:
    """Start a run's actor; returns its handle. It lives as long as the driver keeps the handle, even if all workers die.

    ``name``: unique to this launch, in the namespace ``hardshard``: two runs of one name on a cluster then have an actor each.
    ``folder``: the run's, as a pyarrow URI, where versions are stored. ``keep``: number of versions held.
    """
    options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000}
    return ray.remote(DifficultyService).options(**options).remote(folder, keep)


class _ActorThread:
    """A thread of a worker that calls the actor, and repeats calls while the actor restarts or is unreachable."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say, self.ended = name, say, threading.Event()
        self.failure: Exception | None = None
        self._unreachable_since: float | None = None

    def start(self, work: Callable[[], None]) -> threading.Thread:
        """Run ``work`` in the thread; `check` raises what it raises."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self.failure = error

        thread = threading.Thread(target=guarded, name="difficulty", daemon=True)
        thread.start()
        return thread

    def check(self) -> None:
        """Raise the error that ended the thread, if there was one."""
        if self.failure is not None:
            raise self.failure

    def call(self, method: str, *arguments: Any, patience: float = float("inf")) -> Any:
        """What the actor returns. While it is unreachable, says so and tries again each second; None once `ended` is set.

        Raises:
            ClusterError: it was unreachable for longer than ``patience`` seconds.
        """
        while not self.ended.is_set():
            if self._unreachable_since is not None and time.monotonic() - self._unreachable_since > patience:
                raise ClusterError(f"the difficulty actor was unreachable for {patience:g} s", self.name, "resume the run")
            try:
                actor = ray.get_actor(self.name, namespace=NAMESPACE)
                answer = ray.get(getattr(actor, method).remote(*arguments), timeout=6 * POLL)
            except UNREACHABLE as error:
                if isinstance(error, RayTaskError):  # the actor answered: its method raised this
                    raise
                if self._unreachable_since is None and not self.ended.is_set():
                    self._unreachable_since = time.monotonic()
                    self.say(f"the difficulty actor {self.name} is unreachable ({type(error).__name__}); retrying")
                self.ended.wait(1.0)
                continue
            if self._unreachable_since is not None:
                self.say(f"the difficulty actor answers again after {time.monotonic() - self._unreachable_since:.0f} s")
                self._unreachable_since = None
            return answer
        return None


class Publisher:
    """Rank 0's end: sends new versions to the actor, in a thread.

    Starts a new incarnation with the ``restored`` versions. ``say`` prints notices.

    Raises:
        ClusterError: the actor was unreachable for longer than ``patience`` seconds.
    """

    def __init__(self, name: str, restored: Sequence[Difficulty], say: Callable[[str], None], patience: float) -> None:
        self._actor = _ActorThread(name, say)
        self.check = self._actor.check
        self._epoch: int = self._actor.call("begin", list(map(tuple, restored)), patience=patience)
        self._queue: deque[Difficulty] = deque()
        self._wake = threading.Event()
        self._thread = self._actor.start(self._run)

    def publish(self, difficulty: Difficulty) -> None:
        """Queue a version; returns at once."""
        self._queue.append(difficulty)
        self._wake.set()

    def _run(self) -> None:
        while not self._actor.ended.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            while self._queue and not self._actor.ended.is_set():
                current = self._actor.call("publish", self._epoch, *self._queue[0])
                self._queue.popleft()
                if current is False:
                    raise ClusterError("another incarnation of this run publishes the difficulty vector", self._actor.name)

    def close(self) -> None:
        """Send what is queued, within a few seconds, then end the thread."""
        deadline = time.monotonic() + POLL
        while self._queue and self._actor.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self._actor.ended.set()
        self._wake.set()
        self._thread.join(POLL)


class Follower:
    """Every rank's end: a thread passes each version newer than ``after`` to ``put``, in order. ``say`` prints notices."""

    def __init__(self, name: str, after: int, put: Callable[[Difficulty], None], say: Callable[[str], None]) -> None:
        self._actor, self._last, self._put = _ActorThread(name, say), after, put
        self.check = self._actor.check
        self._actor.start(self._run)

    def _run(self) -> None:
        while not self._actor.ended.is_set():
            found: tuple[int, Any] | None = self._actor.call("after", self._last, POLL)
            if found is None:
                continue
            number, reference = found
            try:
                cosine, neighbours = ray.get(reference)
            except ObjectLostError:  # the actor that owned it has died: ask the restarted one
                continue
            self._put(Difficulty(number, cosine, neighbours))
            self._last = number

    def close(self) -> None:
        """End the thread; does not wait for a call that it is making."""
        self._actor.ended.set()
