"""Sets of labelled faces as the jobs use them: opened, mixed, with their labels in the batches, and evaluated.

b images of this rank, C columns of labels.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, LoaderConfig, RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.mixed import MixedStream, parts_of
from datasets.loading.store import shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig, turned
from datasets.sampling.sampler import SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, Split, evaluated_split, read_index, split_of
from datasets.shards.labels import COLUMNS, Floats, labels_by_position, moved_labels
from datasets.splits import evaluation_split
from trainers.tasks.attributes.losses import TASKS
from trainers.tasks.attributes.metrics import score, task_figures
from trainers.tasks.attributes.model import Attributes

CHUNK = 128  # images evaluated at once


@dataclass(frozen=True)
class MixConfig:
    """How several sets are mixed."""

    weights: tuple[float, ...] = ()
    """Each set's weight in a batch; empty: all the same."""
    unit: int = 4
    """A set's part of a batch is a multiple of this; the number of workers must divide it."""


@dataclass(frozen=True)
class FaceSet:
    """A set, opened; every worker does so for itself."""

    index: Index
    train: Split
    etags: dict[str, str]


def open_sets(urls: Sequence[str]) -> tuple[FaceSet, ...]:
    """Open sets of labelled faces.

    Raises:
        InputError: there is none, or one is not whole or has no labels.
    """
    if not urls:
        raise InputError("no data to train on", "--data", "give one or more shard sets, packed by `python -m datasets.pack`")
    sets = []
    for url in urls:
        index = read_index(url)
        if not index.labels:
            raise InputError("the set has no labels", url, "pack it by a layout of faces: celeba, utkface, attributes_csv, ...")
        sets.append(FaceSet(index, split_of(index, "train"), shard_etags(index)))
    return tuple(sets)


def checksum_of(sets: Sequence[FaceSet]) -> int:
    """crc32c of what the sets hold and of all labels: other data has another."""
    parts = [face_set.index.checksum.to_bytes(4) for face_set in sets]
    parts += [values.tobytes() for face_set in sets for values in face_set.index.labels.values()]
    return reduce(google_crc32c.extend, parts, 0)


def can_evaluate(sets: Sequence[FaceSet]) -> bool:
    """Whether any set has images to evaluate on: a split test, or val."""
    return any(evaluation_split(face_set.index.splits) for face_set in sets)


def labelled_columns(sets: Sequence[FaceSet], *, make_roll: bool) -> tuple[str, ...]:
    """The columns of which at least one training image has a label. ``make_roll``: turned images have a roll."""
    known = [known_labels(face_set.train, tuple(COLUMNS), make_roll=make_roll).any(axis=0) for face_set in sets]
    return tuple(column for column, there in zip(COLUMNS, np.any(known, axis=0), strict=True) if there)


def known_labels(split: Split, columns: Sequence[str], *, make_roll: bool) -> npt.NDArray[np.bool_]:
    """Which labels each image has in training, [M, C]: half a point is none, and with ``make_roll`` all have a roll."""
    still = np.zeros((len(split), 4), np.float32)
    return ~np.isnan(moved_labels(labels_by_position(split, columns), columns, still, (1, 1), make_roll=make_roll))


class Part(NamedTuple):
    """What a set gives to the batches of a stage: ``each`` samples of each, out of those that have a label of its tasks."""

    number: int  # of the set among the run's
    faces: FaceSet
    each: int


def mixed_parts(sets: Sequence[FaceSet], mix: MixConfig, batch: int, tasks: Collection[str], *, make_roll: bool) -> list[Part]:
    """What each set gives to a global batch of a stage that trains these tasks; a set without a label of them gives nothing.

    Raises:
        InputError: the weights are not one for each set, no set has such a label, or a set has too few such images.
    """
    weights = mix.weights or (1.0,) * len(sets)
    if len(weights) != len(sets):
        raise InputError(f"{len(weights)} weights for {len(sets)} sets", "--mix.weights", "give one for each set of --data")
    columns = [column for task in tasks for column in TASKS[task].columns]
    told = [np.logical_or.reduce(known_labels(face_set.train, columns, make_roll=make_roll), axis=1) for face_set in sets]
    chosen = {n: replace(sets[n], train=sets[n].train.only(has)) for n, has in enumerate(told) if has.any()}
    if not chosen:
        raise InputError(f"no training image has a label of {', '.join(tasks)}", sets[0].index.url, "train other tasks")
    counts = parts_of(batch, [weights[number] for number in chosen], mix.unit)
    for faces, count in zip(chosen.values(), counts, strict=True):
        if count > len(faces.train):
            what = f"{count} of {batch} samples of a batch come from a set of {len(faces.train)} training images"
            where = f"{faces.index.url}, labels of {', '.join(tasks)}"
            raise InputError(what, where, "lower --batch, or the set's share by --mix.weights")
    return [Part(number, faces, count) for (number, faces), count in zip(chosen.items(), counts, strict=True)]


def mixed_stream(
    parts: Sequence[Part], loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig, part: RankSlice, seed: tuple[int, int],
    first: int, start: int, stop: int,
) -> MixedStream:  # fmt: skip
    """Batches of steps ``start`` .. ``stop`` - 1 of a stage that begins with step ``first``; each set is drawn evenly, every
    sample once before any comes twice. ``seed``: the run's, and the stage's number."""
    streams = []
    for one in parts:
        sampler = SamplerConfig(kind="uniform", batch=one.each)
        own = int(generator(seed[0], "stage", seed[1], one.number).integers(2**62))  # else all sets' images change alike
        streams.append(BatchStream(
            one.faces.train, sampler, loader, augment, cache, None, one.faces.etags, part, own, start - first, stop - first
        ))  # fmt: skip
    return MixedStream(streams, first)


def with_targets(
    batches: Iterable[Batch], parts: Sequence[Part], columns: Sequence[str], size: tuple[int, int], *, make_roll: bool
) -> Iterator[Batch]:
    """The batches of `mixed_stream` with "targets", float32 [b, C]: the labels, changed as the images were; NaN where absent."""
    tables = [labels_by_position(part.faces.train, columns) for part in parts]
    starts = np.cumsum([0, *(len(table) for table in tables)])
    labels = np.concatenate(tables)
    for batch in batches:
        rows = labels[starts[batch["set"].numpy()] + batch["positions"].numpy()]
        moved = moved_labels(rows, columns, batch["moves"].numpy(), size, make_roll=make_roll)
        yield batch | {"targets": torch.from_numpy(moved)}


@dataclass(frozen=True)
class Evaluation:
    """``figures`` as of `task_figures`, and "score"; ``bad``: what this rank could not read."""

    figures: dict[str, float]
    bad: list[str]


@torch.no_grad()
def evaluate_faces(
    model: Attributes, sets: Sequence[FaceSet], size: tuple[int, int], cache: CacheConfig, device: torch.device, turn: float,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> Evaluation:  # fmt: skip
    """Figures on the test split (else val) of all sets together; every rank evaluates its share, and all get the result.

    ``turn`` above 0: images without a roll are shown once more, turned by up to so many degrees, always the same ones by the
    same angle; these have the roll to be told.

    Raises:
        InputError: no set has a held-out split.
    """
    training = model.training
    model.eval()
    told, true, bad = [], [], list[str]()
    for face_set in sets:
        if (split := evaluated_split(face_set.index)) is None:
            continue
        labels = labels_by_position(split, model.columns)
        angles = generator(0, "turned for evaluation").uniform(-turn, turn, len(split)).astype(np.float32)
        stream = SplitStream(split, size, cache, face_set.etags, part, CHUNK)
        for chunk in load_in_workers(stream, workers):
            bad += chunk["bad"]
            places = chunk["positions"].numpy()
            if len(places):
                told_here = model(chunk["images"].to(device)).float().cpu().numpy()
                true_here = labels[places]
                if turn:
                    _tell_rolls(model, chunk["images"], angles[places], told_here, true_here, device)
                told.append(told_here)
                true.append(true_here)
    model.train(training)
    parts: list[Any] = [(told, true)]
    if group is not None:
        parts = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, (told, true), group=group)
    told, true = [t for part in parts for t in part[0]], [t for part in parts for t in part[1]]
    if not told:
        raise InputError("no set has a split test or val", sets[0].index.url, "pack with --held-out above 0")
    return Evaluation(_figures(model, np.concatenate(told), np.concatenate(true)), bad)


def _tell_rolls(
    model: Attributes, images: torch.Tensor, angles: Floats, told: Floats, true: Floats, device: torch.device
) -> None:
    """Where the roll is not known, put in what the model tells of the turned image, and the angle."""
    if "roll" not in model.columns:
        return
    column = model.columns.index("roll")
    unknown = np.isnan(true[:, column])
    upright = images.permute(0, 2, 3, 1).numpy()
    tilted = np.stack([turned(image, float(angle)) for image, angle in zip(upright, angles, strict=True)])
    again = model(torch.from_numpy(tilted).permute(0, 3, 1, 2).to(device))[:, column].float().cpu().numpy()
    told[unknown, column], true[unknown, column] = again[unknown], angles[unknown]


def _figures(model: Attributes, told: Floats, true: Floats) -> dict[str, float]:
    figures: dict[str, float] = {}
    for task in model.tasks:
        places = [model.columns.index(column) for column in TASKS[task].columns]
        figures |= task_figures(task, told[:, places], true[:, places])
    return figures | {"score": score(figures)}
