"""Computes the difficulty vector during training, and the figures about it in a run's records and report."""

import time

import numpy as np

from datasets.difficulty import Difficulty
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.training import TrainingLog, TrainingRun
from trainers.tasks.reid.model import ReidTask

QUANTILES = 101  # of each version, kept for the report
PAIRS = 12  # most confusable pairs of identities, kept for the report


def measure_difficulty(run: TrainingRun, task: ReidTask) -> Difficulty:
    """Compute the difficulty vector of the current step with all ranks, and note its quantiles and duration for the report."""
    began, config = time.perf_counter(), run.config.sampler
    cosines, numbers = task.neighbours(config.neighbours_needed(task.identities), run.worker.group)
    cosine = cosines[:, 0].contiguous().cpu().numpy()
    difficulty = Difficulty(run.log.step // config.interval, cosine, numbers.int().contiguous().cpu().numpy())
    quantiles = np.quantile(difficulty.cosine, np.linspace(0, 1, QUANTILES)).tolist()
    took = time.perf_counter() - began
    run.log.notes.setdefault("difficulty", []).append({"step": run.log.step, "seconds": took, "quantiles": quantiles})
    return difficulty


def difficulty_figures(config: SamplerConfig, version: int, log: TrainingLog) -> dict[str, float]:
    """Figures for a record of the current step, besides the loop's own.

    ``version`` of the vector that the step's batch was drawn by; its ``age`` in steps and the age at which the next version is
    ``due``; ``difficulty_s``, the seconds it took to compute the last version; and the last ``mAP``.
    """
    figures: dict[str, float] = {"version": version}
    if version:
        figures |= {"age": log.step - version * config.interval, "due": config.interval + config.lag}
    if measured := log.notes.get("difficulty"):
        figures["difficulty_s"] = measured[-1].get("seconds", 0.0)
    if log.evaluations and "mAP" in log.evaluations[-1]:  # rank 0 alone has it
        figures["mAP"] = log.evaluations[-1]["mAP"]
    return figures


def most_confusable(run: TrainingRun, task: ReidTask) -> list[tuple[int, int, float]]:
    """The pairs of identities (a < b) whose rows have the largest cosines, with these; computed with all ranks."""
    cosines, numbers = task.neighbours(1, run.worker.group)
    cosine, nearest = cosines[:, 0], numbers[:, 0]
    highest = cosine.topk(min(4 * PAIRS, len(cosine)))
    rows = zip(highest.indices.tolist(), nearest[highest.indices].tolist(), highest.values.tolist(), strict=True)
    pairs = {(min(a, b), max(a, b)): value for a, b, value in rows}
    return [(a, b, value) for (a, b), value in list(pairs.items())[:PAIRS]]
