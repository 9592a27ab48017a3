"""Does drawing by difficulty pay? All samplers on one set with the same budget, over seeds, in one table.

    python -m benchmarks.claim_reid --train.data SHARDS [--arms uniform pk proportional ...] [--seeds 6] [--out FOLDER] [--json]

Every arm trains the same model from the same start on as many samples; only the draw differs. The runs are those of
trainers/reid.py without the cluster: one process, the difficulty vector handed over directly, pinned by step as there.

The last column is the step at which an arm's mAP first reaches the one that the first arm ends with, over the step at which the
first arm's own does, of the same seed; between two evaluations mAP is taken to be straight. An arm may never get there, so it
is the median over seeds with its sign test's interval: the smallest and largest of six are one of 96.9%.
"""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from scipy.stats import binom

from datasets.errors import InputError, run_main
from datasets.index import split_of
from datasets.loader import BatchStream, Share, behind_workers
from datasets.sampling import SamplerConfig, Version
from datasets.versions import VersionTable
from trainers.engine.config import to_json
from trainers.engine.console import summary_table
from trainers.engine.difficulty import difficulty
from trainers.engine.gallery import ALONE, evaluate_retrieval
from trainers.engine.loop import build_optimiser, steps
from trainers.metrics.intervals import interval
from trainers.models.reid import ReidTask
from trainers.reid import Train, open_data

Figures = list[dict[str, float]]  # step, mAP, rank1 of each evaluation, in order

PLAIN = {"instances": 4, "uniform_share": 0.5, "temperature": 1.0, "floor": 0.0, "begin": 0}
DEFAULT = {"instances": 1, "uniform_share": SamplerConfig.uniform_share, "temperature": SamplerConfig.temperature}
ARMS: dict[str, dict[str, Any]] = {  # settings of the sampler, besides those of the source's formulas, PLAIN
    "uniform": {"kind": "uniform"},
    "pk": {"kind": "pk"},
    "hardest": {"kind": "hardest", "uniform_share": 0.75},
    "proportional": {"kind": "proportional"},
    "pairs": {"kind": "pairs"},
    "proportional-default": {"kind": "proportional", **DEFAULT},
    "pairs-default": {"kind": "pairs", **DEFAULT},
    "even": {"kind": "proportional", **DEFAULT, "floor": 1.0},  # the same draws with no regard to difficulty
}


@dataclass(frozen=True)
class Claim:
    """Compare the samplers."""

    train: Train = field(default_factory=Train)
    """The settings that all arms share."""
    arms: tuple[str, ...] = ("uniform", "pk", "hardest", "proportional", "pairs")
    """The first is what the others are compared with."""
    seeds: int = 6
    out: Path | None = None
    """Keep each run's figures in this folder, and go on from those that are there."""
    json: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - set(ARMS):
            raise InputError(f"unknown arms: {', '.join(sorted(unknown))}", "--arms", f"use some of {', '.join(ARMS)}")
        if self.seeds < 1 or not self.arms:
            raise InputError("there is nothing to compare", "--arms and --seeds")


def train_here(config: Train) -> Iterator[tuple[int, ReidTask]]:
    """Train in this process; yields (steps done, the task) after every step."""
    data = open_data(config)
    torch.manual_seed(config.seed)
    task = ReidTask(config.model, config.head, len(data.train.counts))
    task = task.to(memory_format=torch.channels_last)
    table = VersionTable(len(data.train.counts), config.sampler)
    stream = BatchStream(
        data.train, config.sampler, config.loader, config.augment, config.cache, table, data.etags, Share(0, 1), config.seed,
        0, config.optim.steps,
    )  # fmt: skip
    loader = behind_workers(stream, config.loader.workers)
    for step in steps(task, build_optimiser(config.optim, task), config.optim, loader, torch.device("cpu"), config.seed):
        if config.sampler.by_difficulty and step.done % config.sampler.interval == 0:
            cosine, nearest = difficulty(task.classifier)
            table.put(Version(step.done // config.sampler.interval, cosine.numpy(), nearest.numpy()))
        yield step.done, task


def measure(config: Train) -> Figures:
    """The retrieval figures of one run, every ``evaluate_every`` steps and at the end."""
    data, figures = open_data(config), []
    for done, task in train_here(config):
        if done == config.optim.steps or (config.evaluate_every and done % config.evaluate_every == 0):
            result = evaluate_retrieval(
                task.embedder, data.index, data.size, config.cache, data.etags, torch.device("cpu"), ALONE, None, 1
            )
            figures.append({"step": done, "mAP": result.metrics["mAP"], "rank1": result.metrics["rank1"]})
    return figures


def measured(config: Train, arm: str, out: Path | None) -> Figures:
    """As `measure`, or what the folder holds of this arm and seed.

    Raises:
        InputError: it was measured with other settings.
    """
    if out is None:
        return measure(config)
    path, settings = out / f"{arm}-{config.seed}.json", json.loads(to_json(config))
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] != settings:
            raise InputError("this run was measured with other settings", str(path), "give another --out")
        return kept["figures"]  # type: ignore[no-any-return]
    figures = measure(config)
    out.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"settings": settings, "figures": figures}))
    new.replace(path)
    return figures


def reached(figures: Figures, goal: float) -> float:
    """The step at which mAP first is ``goal``, straight between evaluations and from 0 at step 0; infinite if it never is."""
    before = {"step": 0.0, "mAP": 0.0}
    for now in figures:
        if now["mAP"] >= goal:
            share = (goal - before["mAP"]) / (now["mAP"] - before["mAP"]) if now["mAP"] > before["mAP"] else 1.0
            return before["step"] + share * (now["step"] - before["step"])
        before = now
    return math.inf


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the order statistics that hold it with 95% by the sign test; 0 and infinity when they are too few."""
    ordered, count = sorted(values), len(values)
    cut = int(binom.ppf(0.025, count, 0.5))  # how many values from either end the bounds stand
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


def row(arm: str, runs: list[Figures], firsts: list[Figures]) -> list[str]:
    """The table's row of an arm, its runs paired with those of the first arm."""
    last, goals = [run[-1] for run in runs], [run[-1]["mAP"] for run in firsts]
    cells = [arm, percent([f["mAP"] for f in last]), percent([f["rank1"] for f in last])]
    if runs is firsts:
        return [*cells, "", ""]
    steps = [reached(run, goal) / reached(first, goal) for run, first, goal in zip(runs, firsts, goals, strict=True)]
    return [*cells, percent([f["mAP"] - goal for f, goal in zip(last, goals, strict=True)]), ratio(steps)]


def main(options: Claim) -> None:
    """Train every arm with every seed, arms taking turns, and print."""
    runs = {arm: list[Figures]() for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            sampler = replace(options.train.sampler, **(PLAIN | ARMS[arm]))
            runs[arm].append(measured(replace(options.train, seed=seed, sampler=sampler), arm, options.out))
    if options.json:
        print(json.dumps({"options": asdict(options), "runs": runs}, default=str))
        return
    first = options.arms[0]
    rows = [row(arm, figures, runs[first]) for arm, figures in runs.items()]
    index = open_data(options.train).index
    title = f"{len(split_of(index, 'train')):,} images, {options.train.optim.steps} steps, {options.seeds} seeds, 95% intervals"
    summary_table(title, ["draw", "mAP %", "Rank-1 %", f"mAP - {first}, paired", f"steps to {first}'s mAP, ratio"], rows)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Claim)))
