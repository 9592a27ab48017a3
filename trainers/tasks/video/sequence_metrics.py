"""How well action sequences are told. C classes; a frame's class -1 is "none"."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def edit_distance(told: Sequence[int], true: Sequence[int]) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that lead from one to the other."""
    row = list(range(len(true) + 1))
    for i, a in enumerate(told, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(true, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def sequence_figures(told: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> dict[str, float]:
    """ "edit": edit distances by actions that there are (it may be above 1); "exact": share told without a fault."""
    distances = [edit_distance(a, b) for a, b in zip(told, true, strict=True)]
    exact = sum(distance == 0 for distance in distances) / len(distances)
    return {"edit": sum(distances) / sum(len(b) for b in true), "exact": exact}


def frame_counts(told: Int64s, true: Int64s, classes: int) -> Int64s:
    """By class, frames [3, C]: told and true, told, true."""
    hits = told[told == true]
    return np.stack([np.bincount(part[part >= 0], minlength=classes) for part in (hits, told, true)])


def frame_f1(counts: Int64s) -> float:
    """The mean over the classes that there are of 2 * hits / (told + true), of counts [3, C] summed over videos."""
    hits, told, true = counts
    there = true > 0
    return float((2 * hits[there] / (told + true)[there]).mean()) if there.any() else float("nan")
