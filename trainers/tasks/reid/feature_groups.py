"""Features of images in groups, one group an identity: their sums, their mean cosines, and each group's division in two.

Features have length 1. M images, G groups, D features.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

PRIOR = 3.0  # pairs of images of an average identity that are added to each identity's own: it may have one image
ROWS = 1 << 16  # images divided at a time
POWER, LLOYD = 8, 4  # steps of a division


@dataclass(frozen=True, eq=False)
class Groups:
    """Features [M, D] of length 1, sorted by group; group g has the rows ``starts[g]`` to ``starts[g + 1] - 1``, one or more."""

    features: Singles
    starts: Int64s

    @cached_property
    def counts(self) -> Int64s:
        """Images of each group, [G]."""
        return np.diff(self.starts)

    @cached_property
    def sums(self) -> Singles:
        """Sum of each group's features, [G, D]."""
        return np.add.reduceat(self.features, self.starts[:-1], axis=0)

    @cached_property
    def owner(self) -> Int64s:
        """The group of each row, [M]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def pairs(self) -> Floats:
        """Ordered pairs of different images of each group, [G]."""
        return self.counts * (self.counts - 1.0)

    @cached_property
    def cosines(self) -> Floats:
        """Sum of the cosines of these pairs, [G]."""
        found: Floats = np.square(self.sums, dtype=np.float64).sum(axis=1) - self.counts
        return found

    def within(self, usual: float) -> Floats:
        """Mean cosine of these pairs, [G]; ``usual`` counts as `PRIOR` pairs more."""
        found: Floats = (self.cosines + 2 * PRIOR * usual) / (self.pairs + 2 * PRIOR)
        return found

    @property
    def usual(self) -> float:
        """The median of the mean cosines of groups with two images or more; 1 if there are none."""
        several = self.counts > 1
        return float(np.median(self.cosines[several] / self.pairs[several])) if several.any() else 1.0


def taken(groups: Groups, chosen: Int64s) -> Groups:
    """Chosen groups, [C], in this order; any may come twice."""
    counts = groups.counts[chosen]
    starts = starts_of(counts)
    rows = np.arange(starts[-1]) + np.repeat(groups.starts[chosen] - starts[:-1], counts)
    return Groups(groups.features[rows], starts)


def starts_of(counts: Int64s) -> Int64s:
    return np.concatenate([[0], np.cumsum(counts)])


def divided(groups: Groups) -> Int64s:
    """Divide each group in two, 0 or 1 for each row, [M]: 2-means that starts from the two sides of the main axis."""
    result = np.empty(len(groups.features), np.int64)
    first = 0
    while first < len(groups.counts):
        end = max(int(np.searchsorted(groups.starts, groups.starts[first] + ROWS, side="right")) - 1, first + 1)
        rows = slice(int(groups.starts[first]), int(groups.starts[end]))
        result[rows] = _divided(Groups(groups.features[rows], groups.starts[first : end + 1] - groups.starts[first]))
        first = end
    return result


def main_axis(groups: Groups) -> tuple[Singles, Singles]:
    """Rows without their group's mean, [M, D], and each group's direction of the largest variance, [G, D]."""
    starts, owner = groups.starts[:-1], groups.owner
    means: Singles = (groups.sums / groups.counts[:, None]).astype(np.float32)
    centred: Singles = groups.features - means[owner]
    length = np.einsum("md,md->m", centred, centred)
    axis: Singles = centred[np.lexsort((length, owner))[groups.starts[1:] - 1]]  # begins at the row farthest from the mean
    for _ in range(POWER):
        place = np.einsum("md,md->m", centred, axis[owner])
        axis = np.add.reduceat(centred * place[:, None], starts, axis=0)
        axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    return centred, axis


def _divided(groups: Groups) -> Int64s:
    starts, owner, counts = groups.starts[:-1], groups.owner, groups.counts[:, None]
    centred, axis = main_axis(groups)
    side = np.einsum("md,md->m", centred, axis[owner]) > 0
    for _ in range(LLOYD):  # both parts' means lie on a line through 0, so one is enough
        many = np.add.reduceat(side.astype(np.int64), starts)[:, None]
        mean = np.add.reduceat(centred * side[:, None], starts, axis=0)
        gap = mean / np.maximum(many, 1) + mean / np.maximum(counts - many, 1)  # the sum of all is 0
        middle = (mean / np.maximum(many, 1) - mean / np.maximum(counts - many, 1)) / 2
        side = np.einsum("md,md->m", centred - middle[owner], gap[owner]) > 0
    found: Int64s = side.astype(np.int64)
    return found
