"""Metrics of single actions and of action sequences. N clips, C classes; a frame's class -1 is "no action"."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
TOP = 5


def classification_figures(logits: Floats, labels: Int64s) -> dict[str, float]:
    """ "top1" and "top5" accuracy, "mean_class" (the mean of the classes' accuracies), and "n"; of logits [N, C], labels [N].

    A class whose logit equals the true class's is ranked before it: a model that gives all classes the same logit scores 0.
    """
    ahead = logits.shape[1] - 1 - (logits < np.take_along_axis(logits, labels[:, None], axis=1)).sum(axis=1)
    first, counts = ahead == 0, np.bincount(labels)
    by_class = np.bincount(labels, first)[counts > 0] / counts[counts > 0]
    top1, top5 = float(first.mean()), float((ahead < TOP).mean())
    return {"top1": top1, "top5": top5, "mean_class": float(by_class.mean()), "n": len(labels)}


def confusion(logits: Floats, labels: Int64s) -> Int64s:
    """Confusion matrix [C, C]: clips by true class (row) and predicted class (column); of equal logits the first is predicted."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def edit_distance(predicted: Sequence[int], true: Sequence[int]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn one sequence into the other."""
    row = list(range(len(true) + 1))
    for i, a in enumerate(predicted, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(true, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def aligned(predicted: Sequence[int], true: Sequence[int]) -> list[tuple[int, int]]:
    """The places (in ``predicted``, in ``true``) of the actions that an alignment with the fewest errors matches, ascending."""
    table = [[edit_distance(predicted[:i], true[:j]) for j in range(len(true) + 1)] for i in range(len(predicted) + 1)]
    pairs, i, j = [], len(predicted), len(true)
    while i and j:
        if predicted[i - 1] == true[j - 1] and table[i][j] == table[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif table[i][j] == table[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
        elif table[i][j] == table[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def report_delays(predicted: Sequence[tuple[int, int]], true: Sequence[int], frame_labels: Int64s) -> list[int]:
    """Frames from the last frame of each correctly recognised action to its report, below 0 if it is reported before it ends.

    ``predicted``: actions and the frames of their reports. ``frame_labels`` [T]: the class of each frame, -1 for none; if its
    runs are not the ``true`` actions in order, there are no delays.
    """
    ends = np.flatnonzero(np.diff(frame_labels, append=-1)).tolist()  # the last frames of all runs, also of those without action
    ends = [end for end in ends if frame_labels[end] >= 0]
    if [int(frame_labels[end]) for end in ends] != list(true):
        return []
    return [predicted[i][1] - ends[j] for i, j in aligned([action for action, _ in predicted], true)]


def sequence_figures(predicted: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> dict[str, float]:
    """ "edit": the sum of edit distances over the number of true actions (it can be above 1); "exact": the fraction of sequences
    without an error."""
    distances = [edit_distance(a, b) for a, b in zip(predicted, true, strict=True)]
    exact = sum(distance == 0 for distance in distances) / len(distances)
    return {"edit": sum(distances) / sum(len(b) for b in true), "exact": exact}


def frame_counts(predicted: Int64s, true: Int64s, classes: int) -> Int64s:
    """Numbers of frames by class [3, C]: predicted correctly, predicted, true."""
    hits = predicted[predicted == true]
    return np.stack([np.bincount(part[part >= 0], minlength=classes) for part in (hits, predicted, true)])


def frame_f1(counts: Int64s) -> float:
    """F1 = 2 * hits / (predicted + true), the mean over the classes that occur; of `frame_counts` [3, C] summed over videos."""
    hits, predicted, true = counts
    occurs = true > 0
    return float((2 * hits[occurs] / (predicted + true)[occurs]).mean()) if occurs.any() else float("nan")
