"""Sets of labelled faces: opening them, mixing them in batches, and the labels of a batch.

b images of this rank in a batch, M images of a split, C columns of labels.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.mixed import MixedStream, parts_of
from datasets.loading.store import shard_etags
from datasets.media.augment import AugmentConfig
from datasets.sampling.sampler import SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, Split, read_index, split_of
from datasets.shards.labels import COLUMNS, labels_by_position, moved_labels
from trainers.tasks.attributes.losses import TASKS


@dataclass(frozen=True)
class MixConfig:
    """How several sets are mixed."""

    weights: tuple[float, ...] = ()
    """Weight of each set in a batch, in the order of --data; empty: equal weights."""
    unit: int = 4
    """The samples that a set gives to a batch are a multiple of this; the number of workers must divide it."""


@dataclass(frozen=True)
class FaceSet:
    """An opened set of labelled faces."""

    index: Index
    train: Split
    etags: dict[str, str]


def open_sets(urls: Sequence[str]) -> tuple[FaceSet, ...]:
    """Open sets of labelled faces; every worker opens them by itself.

    Raises:
        InputError: ``urls`` is empty, or a set is incomplete or has no labels.
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
    """crc32c of the sets' samples and labels, by which a resumed run notices changed data."""
    parts = [face_set.index.checksum.to_bytes(4) for face_set in sets]
    parts += [values.tobytes() for face_set in sets for values in face_set.index.labels.values()]
    return reduce(google_crc32c.extend, parts, 0)


def labelled_columns(sets: Sequence[FaceSet], *, make_roll: bool) -> tuple[str, ...]:
    """The columns for which at least one training image has a label. ``make_roll``: as in `known_labels`."""
    known = [known_labels(face_set.train, tuple(COLUMNS), make_roll=make_roll).any(axis=0) for face_set in sets]
    return tuple(column for column, found in zip(COLUMNS, np.any(known, axis=0), strict=True) if found)


def known_labels(split: Split, columns: Sequence[str], *, make_roll: bool) -> npt.NDArray[np.bool_]:
    """Which labels each image has in training, [M, C].

    A keypoint with only one coordinate counts as absent. ``make_roll``: every image has a roll, the angle by which it is turned.
    """
    still = np.zeros((len(split), 4), np.float32)
    return ~np.isnan(moved_labels(labels_by_position(split, columns), columns, still, (1, 1), make_roll=make_roll))


class Part(NamedTuple):
    """What one set gives to the batches of a stage."""

    number: int
    """The set's place in --data, from 0."""
    faces: FaceSet
    """The set, reduced to the images that have a label of the stage's tasks."""
    each: int
    """Samples in each global batch."""


def mixed_parts(sets: Sequence[FaceSet], mix: MixConfig, batch: int, tasks: Collection[str], *, make_roll: bool) -> list[Part]:
    """Divide a global batch among the sets that have labels of these tasks.

    Raises:
        InputError: there is not one weight for each set, no set has such a label, or a set has too few images with one.
    """
    weights = mix.weights or (1.0,) * len(sets)
    if len(weights) != len(sets):
        raise InputError(f"{len(weights)} weights for {len(sets)} sets", "--mix.weights", "give one for each set of --data")
    columns = [column for task in tasks for column in TASKS[task].columns]
    labelled = [np.logical_or.reduce(known_labels(face_set.train, columns, make_roll=make_roll), axis=1) for face_set in sets]
    chosen = {n: replace(sets[n], train=sets[n].train.only(has)) for n, has in enumerate(labelled) if has.any()}
    if not chosen:
        raise InputError(f"no training image has a label of {', '.join(tasks)}", sets[0].index.url, "train other tasks")
    counts = parts_of(batch, [weights[number] for number in chosen], mix.unit)
    for faces, count in zip(chosen.values(), counts, strict=True):
        if count > len(faces.train):
            what = f"{count} of {batch} samples of a batch come from a set of {len(faces.train)} training images"
            where = f"{faces.index.url}, labels of {', '.join(tasks)}"
            raise InputError(what, where, "lower --batch, or the set's weight in --mix.weights")
    return [Part(number, faces, count) for (number, faces), count in zip(chosen.items(), counts, strict=True)]


def computing_of_single(parts: Sequence[Part], tasks: Sequence[str], *, make_roll: bool) -> float:
    """The images that models for one task each are trained on in a step, over those that one model for all tasks is."""
    seen = 0.0
    for part in parts:
        known = [known_labels(part.faces.train, TASKS[task].columns, make_roll=make_roll).any(axis=1).mean() for task in tasks]
        seen += part.each * float(sum(known))
    return seen / sum(part.each for part in parts)


def mixed_stream(
    parts: Sequence[Part], loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig, part: RankSlice,
    seed: tuple[int, int], first: int, start: int, stop: int,
) -> MixedStream:  # fmt: skip
    """The batches of steps ``start`` .. ``stop`` - 1 of a stage whose first step is ``first``; steps count from the
    beginning of the run.

    Each set is drawn evenly: every sample once before any comes twice. ``seed``: the run's seed and the stage's number.
    """
    streams = []
    for one in parts:
        sampler = SamplerConfig(kind="uniform", batch=one.each)
        own = int(
            generator(seed[0], "stage", seed[1], one.number).integers(2**62)
        )  # another for each set: else the images of all sets would be augmented alike
        streams.append(BatchStream(
            one.faces.train, sampler, loader, augment, cache, None, one.faces.etags, part, own, start - first, stop - first
        ))  # fmt: skip
    return MixedStream(streams, first)


def with_targets(
    batches: Iterable[Batch], parts: Sequence[Part], columns: Sequence[str], size: tuple[int, int], *, make_roll: bool
) -> Iterator[Batch]:
    """Add "targets" float32 [b, C] to the batches of `mixed_stream`: the labels after augmentation, NaN where absent."""
    tables = [labels_by_position(part.faces.train, columns) for part in parts]
    starts = np.cumsum([0, *(len(table) for table in tables)])
    labels = np.concatenate(tables)
    for batch in batches:
        rows = labels[starts[batch["set"].numpy()] + batch["positions"].numpy()]
        moved = moved_labels(rows, columns, batch["moves"].numpy(), size, make_roll=make_roll)
        yield batch | {"targets": torch.from_numpy(moved)}
