"""Figures of predicted labels against true ones. NumPy arrays; n samples, C columns of a task.

``skill`` puts all tasks on one scale: 1 for a perfect prediction, 0 for the best constant one, -1 for the worst. Labels that are
all the same determine none: then every constant prediction of them is perfect.
"""

import numpy as np
import numpy.typing as npt

from trainers.tasks.attributes.losses import TASKS, Task

Floats = npt.NDArray[np.floating]


def balanced_accuracy(predicted: Floats, true: Floats) -> float:
    """Mean over classes 0 and 1 of the fraction predicted correctly, at a threshold of 0.5; NaN unless both occur."""
    right = (predicted >= 0.5) == (true >= 0.5)
    sides = [right[(true >= 0.5) == side] for side in (False, True)]
    return float(np.mean([side.mean() for side in sides])) if all(len(side) for side in sides) else float("nan")


def auc(predicted: Floats, true: Floats) -> float:
    """Area under the ROC curve, ties counting half (Mann-Whitney); NaN unless both classes occur."""
    positive = true >= 0.5
    few, many = int(positive.sum()), int((~positive).sum())
    if not few or not many:
        return float("nan")
    _, place, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # ties have their mean rank
    return float((ranks[positive].sum() - few * (few + 1) / 2) / (few * many))


def correlation(predicted: Floats, true: Floats) -> float:
    """Pearson's r; NaN if either is constant."""
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(np.corrcoef(predicted, true)[0, 1])


def nme(predicted: Floats, true: Floats) -> float:
    """Mean distance of points [n, 2 P] (x, y, x, y, ...) as a fraction of the distance between the first two, the eyes."""
    a, b = predicted.reshape(len(predicted), -1, 2), true.reshape(len(true), -1, 2)
    eyes = np.linalg.norm(b[:, 0] - b[:, 1], axis=1)
    return float((np.linalg.norm(a - b, axis=2).mean(axis=1) / np.maximum(eyes, 1e-6)).mean())


def task_figures(name: str, predicted: Floats, true: Floats) -> dict[str, float]:
    """A task's figures as ``<task>.<figure>``, and ``<task>.n``, the number of samples; labels [n, C], NaN in ``true`` if absent.

    Figures that the labels do not determine, such as an AUC or the skill of one class, are left out; empty if all are absent.
    """
    task = TASKS[name]
    found = _angles(task, predicted, true) if task.figure == "mae" else _whole(task, predicted, true)
    return {f"{name}.{figure}": value for figure, value in found.items() if not np.isnan(value)}


def _whole(task: Task, predicted: Floats, true: Floats) -> dict[str, float]:
    known = ~np.isnan(true).any(axis=1)
    predicted, true = predicted[known], true[known]
    if not len(true):
        return {}
    if task.figure == "nme":
        error, constant = nme(predicted, true), nme(np.broadcast_to(np.median(true, axis=0), true.shape), true)
        return {"nme": error, "skill": _skill(error, constant), "n": len(true)}
    predicted, true = predicted[:, 0], true[:, 0]
    if task.figure == "correlation":
        r = correlation(predicted, true)
        varies = len(true) > 1 and np.ptp(true) > 0
        return {"correlation": r, "skill": float(np.nan_to_num(r)) if varies else float("nan"), "n": len(true)}
    balanced = balanced_accuracy(predicted, true)
    accuracy = float(((predicted >= 0.5) == (true >= 0.5)).mean())
    return {"accuracy": accuracy, "balanced": balanced, "auc": auc(predicted, true), "skill": 2 * balanced - 1, "n": len(true)}


def _angles(task: Task, predicted: Floats, true: Floats) -> dict[str, float]:
    """Mean absolute errors, each column on its own labels: an image may have a roll without a yaw."""
    found: dict[str, float] = {}
    skills = []
    for i, column in enumerate(task.columns):
        known = ~np.isnan(true[:, i])
        if known.any():
            error = float(np.abs(predicted[known, i] - true[known, i]).mean())
            constant = float(np.abs(np.median(true[known, i]) - true[known, i]).mean())
            found["mae" if len(task.columns) == 1 else f"{column}_mae"] = error
            skills.append(_skill(error, constant))
    varying = [skill for skill in skills if not np.isnan(skill)]
    mean = float(np.mean(varying)) if varying else float("nan")
    return found | {"skill": mean, "n": int((~np.isnan(true)).any(axis=1).sum())} if found else {}


def _skill(error: float, constant: float) -> float:
    """The skill of predictions with this mean error, if the best constant one has the error ``constant``; NaN if that is 0."""
    return max(1 - error / constant, -1.0) if constant > 1e-9 else float("nan")


def score(figures: dict[str, float]) -> dict[str, float]:
    """One number for all tasks: "score", the mean of their skills; nothing if no task has one."""
    skills = [value for name, value in figures.items() if name.endswith(".skill")]
    return {"score": float(np.mean(skills))} if skills else {}
