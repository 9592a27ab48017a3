"""Versions of the difficulty vector in shared memory, for the loader workers of a rank: no lock, no Ray.

The training process writes, and the loader workers that it forks read. The memory is anonymous, so nothing is left behind when
a process dies.
"""

import mmap
import os
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datasets.difficulty import Difficulty
from datasets.errors import InputError, UnreachableError
from datasets.sampling.sampler import SamplerConfig


class DifficultyTable:
    """The last versions of the difficulty vector of N identities, with the k neighbours of each that the draws need.

    Versions are written to slots in turn. There is one slot more than versions that a reader may still use. A slot takes
    4 N (1 + k) bytes.
    """

    def __init__(self, identities: int, config: SamplerConfig) -> None:
        self.config = config
        slots = config.versions_alive + 1
        self._numbers = _shared(slots, np.int64)
        self._done = _shared(1, np.int64)
        self._cosine = _shared(slots * identities, np.float32).reshape(slots, identities)
        needed = config.neighbours_needed(identities)
        self._neighbours = _shared(slots * identities * needed, np.int32).reshape(slots, identities, needed)

    def note(self, done: int) -> None:
        """Publish how many steps are done: a version is overdue only after the step that computes it."""
        self._done[0] = done

    def put(self, difficulty: Difficulty) -> None:
        """Publish a version; does nothing if it is already there.

        Raises:
            InputError: its arrays are not [N] and [N, k]: it was computed by another program or with other settings.
        """
        shapes = self._cosine.shape[1:], self._neighbours.shape[1:]
        if (found := (difficulty.cosine.shape, difficulty.neighbours.shape)) != shapes:
            what = (
                f"version {difficulty.version} of the difficulty vector has arrays {_text(found)}, the draws need {_text(shapes)}"
            )
            raise InputError(what, "sampler", "was its checkpoint stored with other settings? Start a new run")
        slot = difficulty.version % len(self._numbers)
        if self._numbers[slot] == difficulty.version:
            return
        self._numbers[slot] = 0  # so that readers never see a version that is only half written
        self._cosine[slot], self._neighbours[slot] = difficulty.cosine, difficulty.neighbours
        self._numbers[slot] = difficulty.version

    def get(self, number: int) -> Difficulty | None:
        """Return a version by its number; None if it is not here (yet)."""
        slot = number % len(self._numbers)
        if number <= 0 or self._numbers[slot] != number:
            return None
        return Difficulty(number, self._cosine[slot], self._neighbours[slot])

    def latest(self) -> Difficulty | None:
        """Return the newest version; None if there is none."""
        return self.get(int(self._numbers.max()))

    def all(self) -> list[Difficulty]:
        """Return all versions that are here, oldest first."""
        found = (self.get(number) for number in sorted(map(int, self._numbers)))
        return [difficulty for difficulty in found if difficulty is not None]

    def ready(self, step: int) -> bool:
        """Whether a step can be drawn without waiting."""
        number = self.config.version_at(step)
        return number == 0 or self.config.mode == "freshest" or self.get(number) is not None

    def at(self, step: int) -> Difficulty | None:
        """Return the version that a step uses, in pinned mode after waiting for it. None: the step draws evenly.

        Raises:
            UnreachableError: it did not arrive within the sampler's patience. The run then restarts from its checkpoint.
        """
        number = self.config.version_at(step)
        if number == 0:
            return None
        if self.config.mode == "freshest":
            return self.latest()
        overdue, parent = None, os.getppid()
        while (difficulty := self.get(number)) is None:
            if os.getppid() != parent:
                raise SystemExit(1)  # the process that writes versions is dead
            if overdue is None and self._done[0] >= number * self.config.interval:
                overdue = time.monotonic() + self.config.patience
            if overdue is not None and time.monotonic() > overdue:
                what = f"version {number} of the difficulty vector, for step {step}, did not arrive in {self.config.patience:g} s"
                raise UnreachableError(what, "sampler", "is the difficulty actor alive? Else use --sampler.mode freshest")
            time.sleep(0.002)
        return difficulty


def _text(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)


def _shared(count: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(dtype).itemsize), dtype)[:count]
