"""The type of the difficulty vector.

`trainers.difficulty.vector` computes it, `cluster.difficulty_service` serves it, loader workers read it from
`datasets.sampling.difficulty_table`, and `datasets.sampling.sampler` draws batches by it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Difficulty(NamedTuple):
    """How easily each of the N training identities is confused with another one: one version of it, as computed at some step."""

    version: int
    """Counts from 1; version k is computed after k * ``sampler.interval`` steps."""
    cosine: npt.NDArray[np.float32]
    """[N]: for each identity, the largest cosine between its row of the classifier and the row of any other identity."""
    neighbours: npt.NDArray[np.int32]
    """[N, k]: the k identities whose rows have the largest cosines with that row, the largest first; k is 1 or more. All are -1
    in versions of before the draw by neighbours begins."""

    @property
    def begun(self) -> bool:
        """Whether draws by neighbours have begun."""
        return bool(self.neighbours[0, 0] >= 0)

    @property
    def nearest(self) -> npt.NDArray[np.int32]:
        """[N]: the identity to which each one has that largest cosine."""
        return self.neighbours[:, 0]
