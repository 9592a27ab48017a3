"""The difficulty vector's service: a named actor holds its versions, every Train worker follows it into shared memory.

    rank 0: Publisher -> actor (object store; a snapshot in the run's folder) -> each rank: Follower -> loader workers' memory

The actor outlives the training processes: when those restart from a checkpoint they hand it the versions of that
checkpoint (`begin`), and it forgets newer ones, which belong to steps that are about to be made again. When the actor
itself restarts it reads its snapshot. N identities; a version is (number, cosine float32 [N], nearest int64 [N]).
"""

import asyncio
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.fs
import ray
import torch
from ray.exceptions import RayError

from cluster.errors import ClusterError

NAMESPACE = "hardshard"
SCHEMA = 1  # in the actor's name: a detached actor of older code is not taken for ours
SNAPSHOT = "difficulty.npz"
POLL = 5.0  # seconds that one call waits for a version before it asks again: a lost call is noticed


V = TypeVar("V")


class VersionLike(Protocol):
    """What datasets.sampling.Version offers."""

    @property
    def number(self) -> int: ...
    @property
    def cosine(self) -> npt.NDArray[np.float32]: ...
    @property
    def nearest(self) -> npt.NDArray[np.int64]: ...


class _Kept(NamedTuple):
    number: int
    data: Any  # a reference to (cosine, nearest) in the object store, owned by the actor


class DifficultyService:
    """The actor's code. ``keep`` versions are held, and stand in its snapshot in ``folder`` (a pyarrow URI), too."""

    def __init__(self, folder: str, keep: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=keep)
        self._folder = folder
        self._epoch = 0
        self._news = asyncio.Condition()
        for number, cosine, nearest in _read_snapshot(folder):
            self._kept.append(_Kept(number, ray.put((cosine, nearest))))

    async def begin(self, versions: Sequence[tuple[int, Any, Any]]) -> int:
        """Start a new incarnation of the run from these versions alone; returns its epoch. Older publishers go unheard."""
        async with self._news:
            self._epoch = time.time_ns()  # grows across restarts of the actor, too
            self._kept.clear()
            for number, cosine, nearest in versions:
                self._kept.append(_Kept(number, ray.put((cosine, nearest))))
            self._save()
            self._news.notify_all()
        return self._epoch

    async def publish(self, epoch: int, number: int, cosine: Any, nearest: Any) -> bool:
        """Add a version. Adding one again changes nothing. False: this publisher's incarnation is over."""
        async with self._news:
            if self._epoch > epoch:
                return False
            self._epoch = epoch  # after a restart the first publisher tells us which incarnation runs
            if number > max((kept.number for kept in self._kept), default=0):
                self._kept.append(_Kept(number, ray.put((cosine, nearest))))
                self._save()
                self._news.notify_all()
        return True

    async def after(self, number: int, timeout_s: float) -> _Kept | None:
        """The oldest version newer than ``number``, waited for; None when it did not come in time."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: self._next(number) is not None), timeout_s)
            except TimeoutError:
                return None
            return self._next(number)

    def _next(self, number: int) -> _Kept | None:
        return next((kept for kept in self._kept if kept.number > number), None)

    def _save(self) -> None:
        arrays = {}
        for kept in self._kept:
            arrays[f"cosine-{kept.number}"], arrays[f"nearest-{kept.number}"] = ray.get(kept.data)
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self._folder)
        with filesystem.open_output_stream(f"{path}/{SNAPSHOT}.new") as out:
            out.write(sink.getvalue())
        filesystem.move(f"{path}/{SNAPSHOT}.new", f"{path}/{SNAPSHOT}")


def _read_snapshot(folder: str) -> list[tuple[int, Any, Any]]:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(folder)
    path = f"{path}/{SNAPSHOT}"
    if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        return []
    with filesystem.open_input_file(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
        numbers = sorted(int(name.removeprefix("cosine-")) for name in arrays if name.startswith("cosine-"))
        return [(number, arrays[f"cosine-{number}"], arrays[f"nearest-{number}"]) for number in numbers]


def actor_name(run: str) -> str:
    """The name that a run's actor is found by, in the namespace ``hardshard``."""
    return f"difficulty-v{SCHEMA}:{run}"


def start_service(run: str, folder: str, keep: int) -> None:
    """Create a run's actor, or find the one that is there. Detached: it outlives the driver until `stop_service`.

    ``folder``: the run's, as a pyarrow URI, for the snapshot; ``keep``: versions held.
    """
    ray.remote(DifficultyService).options(
        name=actor_name(run), namespace=NAMESPACE, get_if_exists=True, lifetime="detached",
        num_cpus=0, max_restarts=-1, max_concurrency=1000,
    ).remote(folder, keep)  # fmt: skip


def stop_service(run: str) -> None:
    """End a run's actor; nothing happens when there is none."""
    try:
        ray.kill(ray.get_actor(actor_name(run), namespace=NAMESPACE))
    except ValueError:
        return


class _Line:
    """Calls to the actor that outlast its restarts and absences, for a thread of a Train worker."""

    def __init__(self, run: str, say: Callable[[str], None]) -> None:
        self.run, self.say, self.ended = run, say, threading.Event()
        self._away_since: float | None = None

    def call(self, method: str, *arguments: Any, patience: float = float("inf")) -> Any:
        """The actor's answer; while it is away, tries again each second until `ended` is set (then None), and says so.

        Raises:
            ClusterError: it was away for longer than ``patience`` seconds.
        """
        while not self.ended.is_set():
            if self._away_since is not None and time.monotonic() - self._away_since > patience:
                raise ClusterError(f"the difficulty actor was away for {patience:g} s", actor_name(self.run), "resume the run")
            try:
                actor = ray.get_actor(actor_name(self.run), namespace=NAMESPACE)
                answer = ray.get(getattr(actor, method).remote(*arguments))
            except (ValueError, RayError) as error:  # no such actor, dead, restarting, or its objects are lost
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    self.say(f"the difficulty actor {actor_name(self.run)} is away ({type(error).__name__})")
                self.ended.wait(1.0)
                continue
            if self._away_since is not None:
                self.say(f"the difficulty actor is back after {time.monotonic() - self._away_since:.0f} s")
                self._away_since = None
            return answer
        return None


class Publisher:
    """Rank 0's end: hands new versions to the actor in the background, and keeps the recent ones for checkpoints."""

    def __init__(self, run: str, keep: int, restored: Sequence[VersionLike], say: Callable[[str], None], patience: float) -> None:
        self.recent: deque[VersionLike] = deque(restored, maxlen=keep)
        self._line = _Line(run, say)
        versions = [(version.number, version.cosine, version.nearest) for version in restored]
        self._epoch: int = self._line.call("begin", versions, patience=patience)
        self._queue: deque[VersionLike] = deque()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="difficulty-publisher", daemon=True)
        self._thread.start()

    def publish(self, version: VersionLike) -> None:
        """Queue a version; returns at once."""
        self.recent.append(version)
        self._queue.append(version)
        self._wake.set()

    def state(self) -> list[list[Any]]:
        """The recent versions as plain data and tensors, for a checkpoint: number, cosine [N], nearest [N]."""
        return [[v.number, torch.from_numpy(v.cosine), torch.from_numpy(v.nearest)] for v in self.recent]

    def _run(self) -> None:
        while not self._line.ended.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            while self._queue and not self._line.ended.is_set():
                version = self._queue[0]
                heard = self._line.call("publish", self._epoch, version.number, version.cosine, version.nearest)
                self._queue.popleft()
                if heard is False:
                    self._line.say("another incarnation of this run publishes the difficulty vector: this one is over")
                    return

    def close(self) -> None:
        """Hand over what is queued (for at most a few seconds), then end."""
        deadline = time.monotonic() + POLL
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.01)
        self._line.ended.set()
        self._wake.set()
        self._thread.join()


class Follower:
    """Every rank's end: a thread hands each version newer than ``after`` to ``put(make(number, cosine, nearest))``, in order."""

    def __init__(
        self, run: str, after: int, put: Callable[[V], None], make: Callable[[int, Any, Any], V], say: Callable[[str], None]
    ) -> None:
        self._line, self._last = _Line(run, say), after
        self._put: Callable[[int, Any, Any], None] = lambda *parts: put(make(*parts))
        self._thread = threading.Thread(target=self._run, name="difficulty-follower", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._line.ended.is_set():
            kept: _Kept | None = self._line.call("after", self._last, POLL)
            if kept is None:
                continue
            try:
                cosine, nearest = ray.get(kept.data)
            except RayError:  # the actor that owned it died in between: ask its successor
                continue
            self._put(kept.number, cosine, nearest)
            self._last = kept.number

    def close(self) -> None:
        """End; a call under way is left to itself."""
        self._line.ended.set()
