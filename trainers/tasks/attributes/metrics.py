"""Figures of labels that were told right or wrong, on NumPy arrays of the n samples whose label is known.

``skill`` puts tasks on one scale: 0 is the best constant answer, 1 is without fault.
"""

import numpy as np
import numpy.typing as npt

from trainers.tasks.attributes.losses import TASKS, Task

Floats = npt.NDArray[np.floating]


def balanced_accuracy(told: Floats, true: Floats) -> float:
    """Mean of the shares of either class [n] (0 or 1) that are told right by a probability of 0.5; NaN without both."""
    right = (told >= 0.5) == (true >= 0.5)
    sides = [right[(true >= 0.5) == side] for side in (False, True)]
    return float(np.mean([side.mean() for side in sides])) if all(len(side) for side in sides) else float("nan")


def auc(told: Floats, true: Floats) -> float:
    """The probability that a positive scores above a negative, ties counting half (Mann-Whitney); NaN without both."""
    positive = true >= 0.5
    few, many = int(positive.sum()), int((~positive).sum())
    if not few or not many:
        return float("nan")
    _, place, counts = np.unique(told, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # ties share their mean rank
    return float((ranks[positive].sum() - few * (few + 1) / 2) / (few * many))


def correlation(told: Floats, true: Floats) -> float:
    """Pearson's r; NaN where either is constant."""
    if len(told) < 2 or np.ptp(told) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(np.corrcoef(told, true)[0, 1])


def nme(told: Floats, true: Floats) -> float:
    """Mean distance of points [n, 2 P] (x, y, x, y, ...), as a share of the distance between the first two, the eyes."""
    a, b = told.reshape(len(told), -1, 2), true.reshape(len(true), -1, 2)
    eyes = np.linalg.norm(b[:, 0] - b[:, 1], axis=1)
    return float((np.linalg.norm(a - b, axis=2).mean(axis=1) / np.maximum(eyes, 1e-6)).mean())


def task_figures(name: str, told: Floats, true: Floats) -> dict[str, float]:
    """The figures of a task on told and true labels [n, C], NaN in ``true`` where absent: by ``<task>.<figure>``, with
    ``<task>.n``. What the known labels do not determine (an AUC of one class) is left out; empty when nothing is known."""
    task = TASKS[name]
    found = _angles(task, told, true) if task.figure == "mae" else _whole(task, told, true)
    return {f"{name}.{figure}": value for figure, value in found.items() if not np.isnan(value)}


def _whole(task: Task, told: Floats, true: Floats) -> dict[str, float]:
    known = ~np.isnan(true).any(axis=1)
    told, true = told[known], true[known]
    if not len(true):
        return {}
    if task.figure == "nme":
        error, constant = nme(told, true), nme(np.broadcast_to(np.median(true, axis=0), true.shape), true)
        return {"nme": error, "skill": 1 - error / max(constant, 1e-9), "n": len(true)}
    told, true = told[:, 0], true[:, 0]
    if task.figure == "correlation":
        r = correlation(told, true)
        return {"correlation": r, "skill": float(np.nan_to_num(r)), "n": len(true)}
    balanced = balanced_accuracy(told, true)
    accuracy = float(((told >= 0.5) == (true >= 0.5)).mean())
    skill = float(np.nan_to_num(2 * balanced - 1))
    return {"accuracy": accuracy, "balanced": balanced, "auc": auc(told, true), "skill": skill, "n": len(true)}


def _angles(task: Task, told: Floats, true: Floats) -> dict[str, float]:
    """Mean absolute errors, a column at a time: of a pose, the images with a yaw need not have a roll."""
    found: dict[str, float] = {}
    skills = []
    for i, column in enumerate(task.columns):
        known = ~np.isnan(true[:, i])
        if known.any():
            error = float(np.abs(told[known, i] - true[known, i]).mean())
            constant = float(np.abs(np.median(true[known, i]) - true[known, i]).mean())
            found["mae" if len(task.columns) == 1 else f"{column}_mae"] = error
            skills.append(1 - error / max(constant, 1e-9))
    return found | {"skill": float(np.mean(skills)), "n": int((~np.isnan(true)).any(axis=1).sum())} if found else {}


def score(figures: dict[str, float]) -> float:
    """One number for all tasks: the mean of their skills; 0 where there is none."""
    skills = [value for name, value in figures.items() if name.endswith(".skill")]
    return float(np.mean(skills)) if skills else 0.0
