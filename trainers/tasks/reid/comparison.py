"""What re-ID's ``compare`` trains, and its table: samplers, losses and heads with the same budget, over seeds.

The last column is the step at which an arm's mAP first reaches the one that the first arm ends with, over the step at which the
first arm's own does, of the same seed; between two evaluations mAP is taken to be straight. An arm may never get there, so it
is the median over seeds with its sign test's interval: the smallest and largest of six are one of 96.9%.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

from datasets.sampling.sampler import SamplerConfig
from trainers.reports.console import summary_table
from trainers.reports.intervals import interval
from trainers.tasks.reid.config import ReidConfig

Arm = Literal[
    "uniform", "pk", "hardest", "proportional", "pairs", "proportional-default", "pairs-default", "even",
    "softmax", "cosface", "arcface", "sphereface", "triplet",
]  # fmt: skip
Figures = list[dict[str, float]]  # step, mAP, rank1 of each evaluation, in order

FORMULA = {"instances": 4, "uniform_share": 0.5, "temperature": 1.0, "floor": 0.0, "begin": 0}  # as strategies A, B, C have it
DEFAULT = {**FORMULA, "instances": 1, "uniform_share": SamplerConfig.uniform_share, "temperature": SamplerConfig.temperature}
SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {**FORMULA, "kind": "uniform"},
    "pk": {**FORMULA, "kind": "pk"},
    "hardest": {**FORMULA, "kind": "hardest", "uniform_share": 0.75},
    "proportional": {**FORMULA, "kind": "proportional"},
    "pairs": {**FORMULA, "kind": "pairs"},
    "proportional-default": {**DEFAULT, "kind": "proportional"},
    "pairs-default": {**DEFAULT, "kind": "pairs"},
    "even": {**DEFAULT, "kind": "proportional", "floor": 1.0},  # the same draws with no regard to difficulty
}


def arm_of(base: ReidConfig, arm: str) -> dict[str, Any]:
    """The settings by which an arm differs from the others: a sampler, or a loss with the sampler that is set."""
    if arm in SAMPLERS:
        return {"sampler": replace(base.sampler, **SAMPLERS[arm])}
    if arm == "triplet":  # beside the loss that is set; it needs several images of an identity
        return {"sampler": replace(base.sampler, **SAMPLERS["pk"]), "head": replace(base.head, triplet=1.0)}
    kind: Any = arm
    return {"head": replace(base.head, kind=kind, margin=None, scale=None)}


def print_comparison(title: str, runs: Mapping[str, Sequence[Figures]]) -> None:
    """A row an arm: figures at the end, their paired difference to the first arm's, and the steps to the first arm's mAP."""
    first, seeds = next(iter(runs)), len(next(iter(runs.values())))
    rows = [row(arm, figures, runs[first]) for arm, figures in runs.items()]
    columns = ["arm", "mAP %", "Rank-1 %", f"mAP - {first}, paired", f"steps to {first}'s mAP, ratio"]
    summary_table(f"{title}: {seeds} seeds, 95% intervals", columns, rows)


def row(arm: str, runs: Sequence[Figures], firsts: Sequence[Figures]) -> list[str]:
    """The table's row of an arm, its runs paired with those of the first arm."""
    last, goals = [run[-1] for run in runs], [run[-1]["mAP"] for run in firsts]
    cells = [arm, percent([f["mAP"] for f in last]), percent([f["rank1"] for f in last])]
    if runs is firsts:
        return [*cells, "", ""]
    steps = [reached(run, goal) / reached(first, goal) for run, first, goal in zip(runs, firsts, goals, strict=True)]
    return [*cells, percent([f["mAP"] - goal for f, goal in zip(last, goals, strict=True)]), ratio(steps)]


def reached(figures: Figures, goal: float) -> float:
    """The step at which mAP first is ``goal``, straight between evaluations and from 0 at step 0; infinite if it never is."""
    before = {"step": 0.0, "mAP": 0.0}
    for now in figures:
        if now["mAP"] >= goal:
            part = (goal - before["mAP"]) / (now["mAP"] - before["mAP"]) if now["mAP"] > before["mAP"] else 1.0
            return before["step"] + part * (now["step"] - before["step"])
        before = now
    return math.inf


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the order statistics that hold it with 95% by the sign test; 0 and infinity when they are too few."""
    ordered, count = sorted(values), len(values)
    below = accumulate(math.comb(count, k) / 2**count for k in range(count + 1))
    cut = next(k for k, chance in enumerate(below) if chance >= 0.025)  # how many values from either end the bounds stand
    low, high = (ordered[cut - 1], ordered[-cut]) if cut else (0.0, math.inf)
    return statistics.median(ordered), low, high


def percent(values: list[float]) -> str:
    """Mean and, of several, half of its 95% interval, in percent."""
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}" if len(values) > 1 else f"{100 * mean:.1f}"


def ratio(values: list[float]) -> str:
    """Median and, where there is one, its interval."""
    bounds = median_interval(values)
    median, low, high = (f"{value:.2f}" if value < math.inf else "never" for value in bounds)
    return f"{median} ({low} to {high})" if bounds[1] else median
