"""How well single actions are told. N clips, C classes."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
TOP = 5


def clip_figures(logits: Floats, labels: Int64s) -> dict[str, float]:
    """ "top1" and "top5" accuracy, "mean_class", the mean over the classes' accuracies, and "n"; of logits [N, C], labels [N].

    A class whose logit equals the true one's stands before it: who gives all classes the same logit has found none.
    """
    ahead = logits.shape[1] - 1 - (logits < np.take_along_axis(logits, labels[:, None], axis=1)).sum(axis=1)
    first, counts = ahead == 0, np.bincount(labels)
    by_class = np.bincount(labels, first)[counts > 0] / counts[counts > 0]
    top1, top5 = float(first.mean()), float((ahead < TOP).mean())
    return {"top1": top1, "top5": top5, "mean_class": float(by_class.mean()), "n": len(labels)}


def confusion(logits: Floats, labels: Int64s) -> Int64s:
    """How many clips of a class (row) are told to be of a class (column), the first of equal logits, [C, C]."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
