"""Does drawing by difficulty pay? All samplers on one set with the same budget, over seeds, in one table.

    python -m benchmarks.claim_reid --train.data SHARDS [--arms uniform pk proportional ...] [--seeds 5] [--json]

Every arm trains the same model from the same start on as many samples; only the draw differs. The runs are those of
trainers/reid.py without the cluster: one process, the difficulty vector handed over directly, pinned by step as there.
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import tyro
from scipy.stats import t

from datasets.errors import InputError, run_main
from datasets.index import split_of
from datasets.loader import BatchStream, Share, behind_workers
from datasets.sampling import Version
from datasets.versions import VersionTable
from trainers.engine.console import summary_table
from trainers.engine.difficulty import difficulty
from trainers.engine.gallery import ALONE, evaluate_retrieval
from trainers.engine.loop import build_optimiser, steps
from trainers.models.reid import ReidTask
from trainers.reid import Train, open_data

ARMS: dict[str, dict[str, Any]] = {  # settings of the sampler
    "uniform": {"kind": "uniform"},
    "pk": {"kind": "pk"},
    "hardest": {"kind": "hardest", "uniform_share": 0.75},
    "proportional": {"kind": "proportional"},
    "proportional-plain": {"kind": "proportional", "uniform_share": 0.0, "instances": 1},
    "proportional-sharp": {"kind": "proportional", "temperature": 0.25},
    "pairs": {"kind": "pairs"},
    "pairs-sharp": {"kind": "pairs", "temperature": 0.25},
}


@dataclass(frozen=True)
class Claim:
    """Compare the samplers."""

    train: Train = field(default_factory=Train)
    """The settings that all arms share."""
    arms: tuple[str, ...] = ("uniform", "pk", "hardest", "proportional", "pairs")
    seeds: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - set(ARMS):
            raise InputError(f"unknown arms: {', '.join(sorted(unknown))}", "--arms", f"use some of {', '.join(ARMS)}")
        if self.seeds < 1 or not self.arms:
            raise InputError("there is nothing to compare", "--arms and --seeds")


def train_here(config: Train, table: VersionTable | None = None) -> Iterator[tuple[int, ReidTask]]:
    """Train in this process; yields (steps done, the task) after every step. ``table`` receives the versions."""
    data = open_data(config)
    torch.manual_seed(config.seed)
    task = ReidTask(config.model, config.head, len(data.train.counts))
    task = task.to(memory_format=torch.channels_last)
    table = table or VersionTable(len(data.train.counts), config.sampler)
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


def measure(config: Train) -> list[dict[str, float]]:
    """The retrieval figures of one run, every ``evaluate_every`` steps and at the end."""
    data, figures = open_data(config), []
    for done, task in train_here(config):
        if done == config.optim.steps or (config.evaluate_every and done % config.evaluate_every == 0):
            result = evaluate_retrieval(
                task.embedder, data.index, data.size, config.cache, data.etags, torch.device("cpu"), ALONE, None, 1
            )
            figures.append({"step": done, "mAP": result.metrics["mAP"], "rank1": result.metrics["rank1"]})
    return figures


def interval(values: list[float]) -> str:
    """Mean and half of its 95% interval, in percent."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def main(options: Claim) -> None:
    """Train every arm with every seed, arms taking turns, and print."""
    began, runs = time.perf_counter(), {arm: list[list[dict[str, float]]]() for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            sampler = replace(options.train.sampler, **ARMS[arm])
            runs[arm].append(measure(replace(options.train, seed=seed, sampler=sampler)))
    if options.json:
        print(json.dumps({"options": asdict(options), "runs": runs, "seconds": time.perf_counter() - began}))
        return
    rows = []
    for arm, figures in runs.items():
        last = [run[-1] for run in figures]
        differences = [a["mAP"] - b["mAP"] for a, b in zip(last, [run[-1] for run in runs[options.arms[0]]], strict=True)]
        paired = interval(differences) if arm != options.arms[0] else ""
        rows.append([arm, interval([f["mAP"] for f in last]), interval([f["rank1"] for f in last]), paired])
    index = open_data(options.train).index
    title = f"{len(split_of(index, 'train')):,} images, {options.train.optim.steps} steps, {options.seeds} seeds, 95% intervals"
    summary_table(title, ["draw", "mAP %", "Rank-1 %", f"mAP - {options.arms[0]}, paired"], rows)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Claim)))
