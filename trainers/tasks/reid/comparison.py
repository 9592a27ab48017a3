"""The arms of re-ID's ``compare`` (samplers and losses at the same budget) and its table.

The last column compares speed. The goal is the mAP with which the first arm ends; the figure is the step at which an arm reaches
the goal over the step at which the first arm does, with the same seed. mAP is interpolated linearly between evaluations. An arm
may never reach the goal, so the table has the median over seeds with the interval of the sign test: of six seeds, minimum to
maximum (96.9%).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

from datasets.errors import InputError
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.run import HISTORY, Run
from trainers.reports.confidence_intervals import interval
from trainers.reports.console import summary_table
from trainers.tasks.reid.config import ReidConfig

Arm = Literal[
    "uniform", "pk", "hardest", "proportional", "pairs", "neighbours", "proportional-default", "pairs-default", "even",
    "softmax", "cosface", "arcface", "adaface", "sphereface", "triplet", "soft_triplet", "circle", "supcon",
]  # fmt: skip
Figures = list[dict[str, float]]  # one run: step, mAP and rank1 of each evaluation, in order

FORMULA = {"instances": 4, "uniform_share": 0.5, "temperature": 1.0, "floor": 0.0, "begin": 0}  # of the source's A, B, C
DEFAULT = {**FORMULA, "instances": 1, "uniform_share": SamplerConfig.uniform_share, "temperature": SamplerConfig.temperature}
SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {**FORMULA, "kind": "uniform"},
    "pk": {**FORMULA, "kind": "pk"},
    "hardest": {**FORMULA, "kind": "hardest", "uniform_share": 0.75},
    "proportional": {**FORMULA, "kind": "proportional"},
    "pairs": {**FORMULA, "kind": "pairs"},
    "neighbours": {**FORMULA, "kind": "neighbours"},
    "proportional-default": {**DEFAULT, "kind": "proportional"},
    "pairs-default": {**DEFAULT, "kind": "pairs"},
    "even": {**DEFAULT, "kind": "proportional", "floor": 1.0},  # control: as the default, but difficulty is ignored
}
PAIR_LOSSES = ("triplet", "soft_triplet", "circle", "supcon")


def arm_of(base: ReidConfig, arm: str) -> dict[str, Any]:
    """The settings that an arm replaces in ``base``: its sampler or its loss."""
    if arm in SAMPLERS:
        return {"sampler": replace(base.sampler, **SAMPLERS[arm])}
    kind: Any = arm
    if arm in PAIR_LOSSES:  # added to the loss that is set; needs several images of an identity
        pair = replace(base.pair, kind=kind, margin=None, scale=None)
        return {"sampler": replace(base.sampler, **SAMPLERS["pk"]), "pair": pair}
    return {"head": replace(base.head, kind=kind, margin=None, scale=None)}


def evaluations_of(run: Run) -> list[dict[str, float]]:
    """The figures of each evaluation after step 0; raises InputError if the set has no held-out identities."""
    evaluations: list[dict[str, float]] = run.read_json(HISTORY)["evaluations"]
    if not evaluations or "mAP" not in evaluations[0]:
        raise InputError("nothing was held out to compare by", run.url, "pack with --held-out above 0")
    return [{name: each[name] for name in ("step", "mAP", "rank1")} for each in evaluations if each["step"]]


def print_comparison(title: str, runs: Mapping[str, Sequence[Figures]]) -> None:
    """Print one row per arm: final figures, paired difference to the first arm, and the ratio of steps to the first arm's mAP."""
    first, seeds = next(iter(runs)), len(next(iter(runs.values())))
    rows = [row(arm, figures, runs[first]) for arm, figures in runs.items()]
    columns = ["arm", "mAP %", "Rank-1 %", f"mAP - {first}, paired", f"steps to {first}'s mAP, ratio"]
    summary_table(f"{title}: {seeds} seeds, 95% intervals", columns, rows)


def row(arm: str, runs: Sequence[Figures], firsts: Sequence[Figures]) -> list[str]:
    """The table's row of an arm. ``runs`` and ``firsts``, the first arm's, have the same seeds in the same order."""
    last, goals = [run[-1] for run in runs], [run[-1]["mAP"] for run in firsts]
    cells = [arm, percent([f["mAP"] for f in last]), percent([f["rank1"] for f in last])]
    if runs is firsts:
        return [*cells, "", ""]
    steps = [reached(run, goal) / reached(first, goal) for run, first, goal in zip(runs, firsts, goals, strict=True)]
    return [*cells, percent([f["mAP"] - goal for f, goal in zip(last, goals, strict=True)]), ratio(steps)]


def reached(figures: Figures, goal: float) -> float:
    """The step at which mAP first reaches ``goal``, interpolated from 0 at step 0; infinite if it never does."""
    before = {"step": 0.0, "mAP": 0.0}
    for now in figures:
        if now["mAP"] >= goal:
            fraction = (goal - before["mAP"]) / (now["mAP"] - before["mAP"]) if now["mAP"] > before["mAP"] else 1.0
            return before["step"] + fraction * (now["step"] - before["step"])
        before = now
    return math.inf


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median and its 95% interval by the sign test: two order statistics, or 0 and infinity for fewer than six values."""
    ordered, count = sorted(values), len(values)
    below = accumulate(math.comb(count, k) / 2**count for k in range(count + 1))
    cut = next(k for k, chance in enumerate(below) if chance >= 0.025)  # the bounds are the cut-th value from either end
    low, high = (ordered[cut - 1], ordered[-cut]) if cut else (0.0, math.inf)
    return statistics.median(ordered), low, high


def percent(values: list[float]) -> str:
    """Mean in percent and, for several values, half of its 95% interval."""
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}" if len(values) > 1 else f"{100 * mean:.1f}"


def ratio(values: list[float]) -> str:
    """Format ratios of steps, one a seed: the median and, from six values on, its 95% interval; "never" for an infinite one."""
    bounds = median_interval(values)
    median, low, high = (f"{value:.2f}" if value < math.inf else "never" for value in bounds)
    return f"{median} ({low} to {high})" if bounds[1] else median
