"""The versions of the difficulty vector as a node's loader workers see them: shared memory, no lock, no Ray.

One process (the Train worker) writes, the loader workers that it forks read. The memory is anonymous: nothing is left
behind when a process dies, however it dies.
"""

import mmap
import os
import time

import numpy as np
import numpy.typing as npt

from datasets.difficulty import Difficulty
from datasets.errors import UnreachableError
from datasets.sampling.sampler import SamplerConfig


class DifficultyTable:
    """The last few versions of the difficulty vector of N identities.

    Slots are filled in turn, and there is one more than a reader can still be drawing by.
    """

    def __init__(self, identities: int, config: SamplerConfig) -> None:
        self.config = config
        slots = config.versions_alive + 1
        self._numbers = _shared(slots, np.int64)
        self._done = _shared(1, np.int64)
        self._cosine = _shared(slots * identities, np.float32).reshape(slots, identities)
        self._nearest = _shared(slots * identities, np.int32).reshape(slots, identities)

    def note(self, done: int) -> None:
        """Tell the readers how many steps are done: a version is overdue only once the step that it is made at is."""
        self._done[0] = done

    def put(self, difficulty: Difficulty) -> None:
        """Make a version visible. One that is there already is left as it is."""
        slot = difficulty.version % len(self._numbers)
        if self._numbers[slot] == difficulty.version:
            return
        self._numbers[slot] = 0  # readers who look now find nothing, rather than half of it
        self._cosine[slot], self._nearest[slot] = difficulty.cosine, difficulty.nearest
        self._numbers[slot] = difficulty.version

    def get(self, number: int) -> Difficulty | None:
        """A version by its number, or None when it is not here (yet)."""
        slot = number % len(self._numbers)
        if number <= 0 or self._numbers[slot] != number:
            return None
        return Difficulty(number, self._cosine[slot], self._nearest[slot])

    def latest(self) -> Difficulty | None:
        """The newest version that is here."""
        return self.get(int(self._numbers.max()))

    def all(self) -> list[Difficulty]:
        """Every version that is here, oldest first."""
        found = (self.get(number) for number in sorted(map(int, self._numbers)))
        return [difficulty for difficulty in found if difficulty is not None]

    def ready(self, step: int) -> bool:
        """Whether a step can be drawn without waiting."""
        number = self.config.version_at(step)
        return number == 0 or self.config.mode == "freshest" or self.get(number) is not None

    def at(self, step: int) -> Difficulty | None:
        """The version that a step draws by; waits for it in pinned mode. None: the step draws evenly.

        Raises:
            UnreachableError: it did not come within the sampler's patience. The run then begins again from its checkpoint.
        """
        number = self.config.version_at(step)
        if number == 0:
            return None
        if self.config.mode == "freshest":
            return self.latest()
        overdue, parent = None, os.getppid()
        while (difficulty := self.get(number)) is None:
            if os.getppid() != parent:
                raise SystemExit(1)  # the process that would bring it is dead
            if overdue is None and self._done[0] >= number * self.config.interval:
                overdue = time.monotonic() + self.config.patience
            if overdue is not None and time.monotonic() > overdue:
                what = f"version {number} of the difficulty vector, for step {step}, did not come in {self.config.patience:g} s"
                raise UnreachableError(what, "sampler", "is the difficulty actor alive? Else use --sampler.mode freshest")
            time.sleep(0.002)
        return difficulty


def _shared(count: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(dtype).itemsize), dtype)[:count]
