"""Evaluates a face model on the held-out images of its sets, with all ranks. n images, C columns of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.workers import load_in_workers
from datasets.media.augment import turned
from datasets.seeding import generator
from datasets.shards.index import evaluated_split
from datasets.shards.labels import Floats, labels_by_position
from datasets.splits import evaluation_split
from trainers.tasks.attributes.data import FaceSet
from trainers.tasks.attributes.losses import TASKS
from trainers.tasks.attributes.metrics import score, task_figures
from trainers.tasks.attributes.model import Attributes

CHUNK = 128  # images evaluated at once


@dataclass(frozen=True)
class Evaluation:
    """``figures``: those of `task_figures` for all tasks, and "score" if any task has a skill; ``bad``: the images that this rank
    could not read."""

    figures: dict[str, float]
    bad: list[str]


def can_evaluate(sets: Sequence[FaceSet]) -> bool:
    """Whether any set has held-out images: a split test or val."""
    return any(evaluation_split(face_set.index.splits) for face_set in sets)


@torch.no_grad()
def evaluate_faces(
    model: Attributes, sets: Sequence[FaceSet], size: tuple[int, int], cache: CacheConfig, device: torch.device, turn: float,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> Evaluation:  # fmt: skip
    """Figures on the held-out images of all sets together. Every rank evaluates its slice; all ranks get the same figures.

    ``turn`` above 0: images without a roll label are evaluated a second time, turned by up to so many degrees, and that angle is
    their roll label. Each image has the same angle in every evaluation.

    Raises:
        InputError: no set has a held-out split.
    """
    training = model.training
    model.eval()
    predicted, true, bad = list[Floats](), list[Floats](), list[str]()
    for face_set in sets:
        if (split := evaluated_split(face_set.index)) is None:
            continue
        labels = labels_by_position(split, model.columns)
        angles = generator(0, "turned for evaluation").uniform(-turn, turn, len(split)).astype(np.float32)
        stream = SplitStream(split, size, cache, face_set.etags, part, CHUNK)
        for chunk in load_in_workers(stream, workers):
            bad += chunk["bad"]
            positions = chunk["positions"].numpy()
            if len(positions):
                predicted.append(model(chunk["images"].to(device)).float().cpu().numpy())
                true.append(labels[positions])
                if turn:
                    _predict_rolls(model, chunk["images"], angles[positions], predicted[-1], true[-1], device)
    model.train(training)
    parts: list[Any] = [(predicted, true)]
    if group is not None:
        parts = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, (predicted, true), group=group)
    predicted, true = ([chunk for part in parts for chunk in part[side]] for side in (0, 1))
    if not predicted:
        raise InputError("no set has a split test or val", sets[0].index.url, "pack with --held-out above 0")
    return Evaluation(_figures(model, np.concatenate(predicted), np.concatenate(true)), bad)


def _predict_rolls(
    model: Attributes, images: torch.Tensor, angles: Floats, predicted: Floats, true: Floats, device: torch.device
) -> None:
    """Where an image has no roll label, put in the roll predicted for the turned image, and the angle as its label."""
    if "roll" not in model.columns:
        return
    column = model.columns.index("roll")
    unknown = np.isnan(true[:, column])
    upright = images.permute(0, 2, 3, 1).numpy()
    tilted = np.stack([turned(image, float(angle)) for image, angle in zip(upright, angles, strict=True)])
    again = model(torch.from_numpy(tilted).permute(0, 3, 1, 2).to(device))[:, column].float().cpu().numpy()
    predicted[unknown, column], true[unknown, column] = again[unknown], angles[unknown]


def _figures(model: Attributes, predicted: Floats, true: Floats) -> dict[str, float]:
    figures: dict[str, float] = {}
    for task in model.tasks:
        columns = [model.columns.index(column) for column in TASKS[task].columns]
        figures |= task_figures(task, predicted[:, columns], true[:, columns])
    return figures | score(figures)
