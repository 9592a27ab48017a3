"""The difficulty vector as it is handed around: computed by `trainers.difficulty.vector`, served by `cluster.difficulty_service`,
seen by loader workers through `datasets.sampling.difficulty_table`, drawn by in `datasets.sampling.sampler`."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Difficulty(NamedTuple):
    """One version of the difficulty vector of N identities."""

    version: int
    """Counts from 1; version k is computed after k * ``sampler.interval`` steps."""
    cosine: npt.NDArray[np.float32]
    """[N]: the largest cosine of each identity's classifier row to another identity's."""
    nearest: npt.NDArray[np.int32]
    """[N]: whose row that is."""
