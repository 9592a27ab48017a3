"""Computes the difficulty vector during training, and the figures about it in a run's records and report."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datasets.difficulty import Difficulty
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.distributed import sum_over_ranks
from trainers.engine.loop import Step
from trainers.engine.training import TrainingLog, TrainingRun
from trainers.tasks.reid.model import ReidTask

QUANTILES = 101  # of each version, kept for the report
PAIRS = 12  # most confusable pairs of identities, kept for the report
RECENT = 4  # versions over which the share of hard images is averaged


def measure_difficulty(run: TrainingRun, task: ReidTask, step: Step) -> Difficulty:
    """Compute the difficulty vector after a step with all ranks, and note its quantiles and duration for the report.

    While draws by neighbours have not begun (`neighbours_begin`), its neighbours are all -1.
    """
    began, config, measured = time.perf_counter(), run.config.sampler, run.log.notes.setdefault("difficulty", [])
    group = run.worker.group
    note: dict[str, Any] = {"step": step.done}
    if "hard" in step.results:
        world = group.size() if group is not None else 1
        note["hard"] = (sum_over_ranks(step.results["hard"].clone(), group) / world).item()  # the same on all ranks
    note["begun"] = neighbours_begin(config, [*measured, note])
    needed = config.neighbours_needed(task.identities)
    cosines, numbers = task.neighbours(needed if note["begun"] else 1, group)
    cosine, near = cosines[:, 0].contiguous().cpu().numpy(), numbers.int().contiguous().cpu().numpy()
    if not note["begun"]:
        near = np.full((task.identities, needed), -1, np.int32)
    note["quantiles"] = np.quantile(cosine, np.linspace(0, 1, QUANTILES)).tolist()
    measured.append({**note, "seconds": time.perf_counter() - began})
    return Difficulty(step.done // config.interval, cosine, near)


def neighbours_begin(config: SamplerConfig, measured: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last of the ``measured`` versions is one to draw neighbours by, or the draw goes on as ``pk``.

    Look-alikes pay once batches of random identities teach little: when less than ``begin_below`` of their images are hard
    (`trainers.tasks.reid.pair_losses.hard_share`), as the mean over the last versions. Once begun, they stay. Other draws, and
    runs without a pair loss, where nothing is measured, begin at once.
    """
    if config.kind != "neighbours" or "hard" not in measured[-1]:
        return True
    shares = [version["hard"] for version in measured[-RECENT:] if "hard" in version]
    return any(version.get("begun", True) for version in measured[:-1]) or sum(shares) / len(shares) < config.begin_below


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
