"""Figures of verification, which decides whether two images show the same identity: the cosine of their features decides.

TAR is the fraction of pairs of the same identity that are accepted, FAR that of pairs of different ones.
Shapes: Q queries, G gallery images, D features, n pairs, T thresholds.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.reid.metrics import chunks

BINS = 4001  # of cosines: the threshold is found to 0.0005
FINE = 2**20 + 1  # of cosines: the thresholds of FARs are 2e-6 apart, so that they part the cosines of an untrained model
FOLDS = 10
FARS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}
SLACK = 1e-9  # of an FAR: 1 of 10 pairs is not more than 0.1

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Verification(NamedTuple):
    """``threshold``: images with at least this cosine count as the same identity; ``accuracy``: the balanced accuracy of that."""

    threshold: float
    accuracy: float


class Histograms(NamedTuple):
    """Counts of cosines from -1 to 1, float64: of pairs of different identities, and of the same one."""

    coarse: Tensor  # [2, BINS]
    fine: Tensor  # [2, FINE]

    def __add__(self, other: Any) -> "Histograms":
        return Histograms(self.coarse + other.coarse, self.fine + other.fine)


@torch.no_grad()
def cosine_histograms(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor, chunk: int = 256) -> Histograms:
    """Counts of the cosines of all pairs of a query [Q, D] and a gallery image [G, D]. A chunk takes about 0.3 GB at most."""
    query, gallery = F.normalize(query.float(), dim=1), F.normalize(gallery.float(), dim=1)
    found = Histograms(*(torch.zeros(2, bins, dtype=torch.float64, device=query.device) for bins in (BINS, FINE)))
    for rows in chunks(len(query), len(gallery), chunk, query.device):
        cosines = (query[rows] @ gallery.T).clamp_(-1, 1)
        same = query_pids[rows, None] == gallery_pids[None, :]
        for counts in found:
            counts += _counts(cosines, same, counts.shape[1])
    return found


def _counts(cosines: Tensor, same: Tensor, bins: int) -> Tensor:
    place = (cosines + 1).div_(2).mul_(bins - 1).round_().int()
    place += same.int().mul_(bins)
    return torch.bincount(place.flatten(), minlength=2 * bins).view(2, bins)


def best_threshold(counts: Tensor) -> Verification:
    """The threshold with the highest balanced accuracy, from a histogram [2, BINS].

    Both figures are nan if no pair is of the same identity, or none of different ones.
    """
    totals = counts.sum(dim=1)
    if not totals.all():
        return Verification(float("nan"), float("nan"))
    below = counts.cumsum(dim=1) - counts  # pairs below each threshold
    accuracy = 0.5 * (below[0] / totals[0] + 1 - below[1] / totals[1])
    best = int(torch.argmax(accuracy))
    # All thresholds between two neighbouring cosines are equally accurate: take the middle, which suits new images best.
    plateau = int((accuracy[best:] < accuracy[best]).int().argmax()) or 1
    return Verification((best - 1 + plateau / 2) / (BINS - 1) * 2 - 1, float(accuracy[best]))


def tar_of_histogram(counts: Tensor) -> dict[str, float]:
    """TAR at each FAR (`tar_at`), from a histogram; thresholds lie between two bins."""
    different, same = counts.cpu().numpy()[:, ::-1]
    return tar_at(different.cumsum(), same.cumsum())


def tar_at(accepted_different: npt.NDArray[Any], accepted_same: npt.NDArray[Any]) -> dict[str, float]:
    """The highest TAR at which FAR is at most 1e-1 .. 1e-4, as ``TAR@1e-1`` and so on.

    ``accepted_...``: accepted pairs [T] at falling thresholds; of the last threshold, which accepts all: the number of pairs. An
    FAR that even one pair of different identities exceeds is left out: so few pairs cannot measure it.
    """
    different, same = accepted_different[-1], accepted_same[-1]
    if not different or not same:
        return {}
    figures = {}
    for name, far in FARS.items():
        if different * far >= 1 - SLACK:
            count = int(np.searchsorted(accepted_different, different * far + SLACK, side="right"))
            figures[f"TAR@{name}"] = float(accepted_same[count - 1] / same) if count else 0.0
    return figures


def pair_figures(cosines: Floats, same: Bools) -> dict[str, float]:
    """Figures of n pairs in their published order: accuracy by `FOLDS` folds, area under the ROC, TAR at each FAR.

    ``accuracy`` is the mean over the folds, ``accuracy_std`` their standard deviation. A fold is n / 10 pairs that follow each
    other; it is measured at the threshold that is the most accurate on the other folds (Huang et al., "Labeled Faces in the
    Wild", 2007). ``AUC`` counts equal cosines of a same and a different pair as half. ``threshold`` is the most accurate one on
    all pairs.

    Raises:
        InputError: fewer than `FOLDS` pairs, or none of the same or of different identities outside a fold.
    """
    folds = np.array_split(np.arange(len(cosines)), FOLDS)
    outside = [np.delete(same, fold) for fold in folds]
    if len(cosines) < FOLDS or any(each.all() or not each.any() for each in outside):
        what = f"{int(same.sum())} pairs of the same identity and {int((~same).sum())} of different ones"
        raise InputError(what, "pairs", f"{FOLDS} folds need some of both kinds outside each fold")
    chosen = [accurate_threshold(np.delete(cosines, fold), np.delete(same, fold)) for fold in folds]
    accuracies = [np.mean((cosines[fold] >= t) == same[fold]) for fold, t in zip(folds, chosen, strict=True)]
    different, accepted = roc(cosines, same)
    return {
        "accuracy": float(np.mean(accuracies)), "accuracy_std": float(np.std(accuracies)),
        "AUC": float(np.trapezoid([0, *accepted], [0, *different]) / (accepted[-1] * different[-1])),
        **tar_at(different, accepted), "threshold": accurate_threshold(cosines, same), "pairs": len(cosines),
    }  # fmt: skip


def roc(cosines: Floats, same: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Accepted pairs of different identities and of the same one, at each of the T distinct cosines from the highest down."""
    order = np.argsort(-cosines, kind="stable")
    last = np.append(np.flatnonzero(np.diff(cosines[order])), len(order) - 1)  # of equal cosines
    accepted = np.cumsum(same[order], dtype=np.int64)[last]
    return last + 1 - accepted, accepted


def accurate_threshold(cosines: Floats, same: Bools) -> float:
    """The threshold at which the most pairs are right, of several the highest: the middle between two neighbouring cosines.

    Above the highest cosine, where no pair is accepted, it is the middle to 2; below the lowest one, that to -2.
    """
    different, accepted = roc(cosines, same)
    bounds = np.concatenate([[2.0], np.unique(cosines)[::-1], [-2.0]])
    right = np.append(0, accepted - different)  # up to a constant
    best = int(np.argmax(right))
    return float((bounds[best] + bounds[best + 1]) / 2)
