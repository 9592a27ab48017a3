"""Shard sets with boxes, a source and a target: opened, read as batches, and evaluated.

A rank's batch has b images and all their n boxes: left, top, right, bottom, in pixels of the resized images by default.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, LoaderConfig, RankSlice, SplitStream, Stream
from datasets.loading.cache import CacheConfig
from datasets.loading.mixed import PairedStream
from datasets.loading.store import shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.sampling.sampler import SamplerConfig
from datasets.shards.boxes import BoxTable, moved_boxes
from datasets.shards.index import Index, Split, evaluated_split, read_index, split_of, whole_set
from trainers.engine.distributed import gather_items
from trainers.tasks.detection.detector import MIN_SIDE, Detector
from trainers.tasks.detection.metrics import Prediction, Truth, detection_figures

CHUNK = 16  # images evaluated at once
CELL = 16  # pixels; an image's sides are multiples of it


@dataclass(frozen=True)
class BoxSet:
    """An opened set; every worker opens its own. ``held_out``: the images to evaluate on, None without any; ``size``: height and
    width that images are resized to."""

    index: Index
    boxes: BoxTable
    train: Split
    held_out: Split | None
    etags: dict[str, str]
    size: tuple[int, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        return tuple(self.index.about["classes"])

    @property
    def annotated(self) -> npt.NDArray[np.bool_]:
        """Whether each training image was annotated, by position; an annotated image may have no boxes."""
        return _annotated(self.boxes, self.train)


class Fold(NamedTuple):
    """One of the N parts of a cross-validation."""

    number: int  # from 0
    of: int  # N


def open_box_set(url: str, side: int, what: str, fold: Fold | None = None) -> BoxSet:
    """Open a set; its images are resized to the set's most frequent shape, with a short side of ``side`` pixels.

    ``what``: the option that names the set, for errors. ``fold``: the part of its annotated images, of all splits, that is held
    out, while all other images are for training; None: the set's own splits, of which test, else val, is held out.

    Raises:
        InputError: there is no such set, it is not complete, has no training images, was packed without boxes, or has too few
            annotated images for so many folds.
    """
    if not url:
        remedy = "give a shard set, packed by `python -m datasets.pack` as voc, coco or boxes_csv"
        raise InputError(f"no {what} to train on", f"--{what}", remedy)
    index = read_index(url)
    if index.boxes is None:
        raise InputError("the set was packed without boxes", url, "pack it as voc, coco or boxes_csv")
    height, width = index.about["size"]
    scale = side / min(height, width)
    size = tuple(max(round(length * scale / CELL), 1) * CELL for length in (height, width))
    train, held_out = folded(index, index.boxes, fold) if fold else (split_of(index, "train"), evaluated_split(index))
    return BoxSet(index, index.boxes, train, held_out, shard_etags(index), (size[0], size[1]))


def folded(index: Index, boxes: BoxTable, fold: Fold) -> tuple[Split, Split]:
    """The training images and the held-out ones of a fold.

    The annotated images are dealt to the folds in the order of their keys' hashes, so that folds differ by at most one image.

    Raises:
        InputError: there are fewer annotated images than folds.
    """
    every = whole_set(index)
    annotated = np.flatnonzero(_annotated(boxes, every))
    if len(annotated) < fold.of:
        what = f"{len(annotated)} annotated images for {fold.of} folds"
        raise InputError(what, index.url, "lower --folds")
    keys = [index.keys[sample] for sample in every.samples(annotated)]
    order = np.argsort([hashlib.sha256(key.encode()).hexdigest() for key in keys])
    held_out = np.zeros(len(every), np.bool_)
    held_out[annotated[order[fold.number :: fold.of]]] = True
    return every.only(~held_out), every.only(held_out)


def _annotated(boxes: BoxTable, split: Split) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = boxes.annotated[split.samples(np.arange(len(split)))]
    return found


def classes_of(labelled: BoxSet, target: BoxSet, wanted: Sequence[str]) -> tuple[str, ...]:
    """The classes to train: ``wanted``, or if empty those of the labelled set.

    Raises:
        InputError: a set with boxes lacks a wanted class; or none are wanted and the sets have different classes; or the labelled
            set has no boxes of these classes, or images that are not annotated.
    """
    for box_set in (labelled, target):
        if missing := [name for name in wanted if name not in box_set.classes and box_set.annotated.any()]:
            where, there = box_set.index.url, ", ".join(box_set.classes) or "none"
            raise InputError(f"no class {', '.join(missing)}", where, f"it has: {there}; rename them by --rename when packing")
    if not wanted and labelled.classes and target.classes and set(labelled.classes) != set(target.classes):
        what = f"the classes differ: {', '.join(labelled.classes)} and {', '.join(target.classes)}"
        remedy = "name common ones by --classes, or rename them by --rename when packing"
        raise InputError(what, f"{labelled.index.url} and {target.index.url}", remedy)
    names = tuple(wanted) or labelled.classes
    if not sum(len(boxes) for boxes, _ in _training_boxes(labelled, names)):
        what = f"no boxes at all of {', '.join(names) or 'any class'} in the training images"
        raise InputError(what, labelled.index.url, "check that this is the set with boxes, packed with its annotations")
    if not labelled.annotated.all():
        what = f"{(~labelled.annotated).sum()} of {len(labelled.train)} training images are not annotated"
        raise InputError(what, labelled.index.url, "leave them out when packing: training would take them for empty images")
    return names


def checksum_of(sets: Iterable[BoxSet]) -> int:
    """crc32c of the sets' contents and boxes; changes when the data changes."""
    parts = [part for s in sets for part in (s.index.checksum.to_bytes(4), s.boxes.corners.tobytes(), s.boxes.classes.tobytes())]
    return reduce(google_crc32c.extend, parts, 0)


def domain_stream(
    labelled: BoxSet, target: BoxSet | None, batch: int, loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig,
    part: RankSlice, seed: int, start: int, stop: int,
) -> Stream:  # fmt: skip
    """Batches of the steps ``start`` to ``stop`` - 1: of the labelled set, and as many images of ``target`` if it is given."""

    def stream(box_set: BoxSet, own: int) -> BatchStream:
        sampler, sized = SamplerConfig(kind="uniform", batch=batch), replace(loader, size=box_set.size)
        return BatchStream(box_set.train, sampler, sized, augment, cache, None, box_set.etags, part, own, start, stop)

    first = stream(labelled, seed * 1009)
    return first if target is None else PairedStream(first, stream(target, seed * 1009 + 1))


def with_boxes(batches: Iterable[Batch], labelled: BoxSet, names: Sequence[str], begin: int) -> Iterator[Batch]:
    """Add to each batch its "boxes" float32 [n, 4] in pixels, transformed as the images were, "classes" int64 [n] and "counts"
    int64 [b]; and "active", 1 from step ``begin`` on, when the target counts in the loss."""
    table = _training_boxes(labelled, names)
    height, width = labelled.size
    for batch in batches:
        boxes, classes = [], []
        for position, move in zip(batch["positions"].tolist(), batch["moves"].numpy(), strict=False):  # the target's come after
            corners, own = table[position]
            moved, visible = moved_boxes(corners, move)
            boxes.append(moved[visible] * np.array([width, height, width, height], np.float32))
            classes.append(own[visible])
        yield batch | {
            "boxes": torch.from_numpy(np.concatenate(boxes)),
            "classes": torch.from_numpy(np.concatenate(classes)),
            "counts": torch.tensor([len(own) for own in classes]),
            "active": torch.tensor(float(batch["step"] >= begin)),
        }


def _training_boxes(box_set: BoxSet, names: Sequence[str]) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """The boxes [k, 4], as fractions of the sides, and classes [k] of each training image, by position; only boxes of the classes
    ``names`` that are not ignored."""
    return [
        (truth.boxes[~truth.ignored], truth.classes[~truth.ignored])
        for truth in (_truth(box_set, int(sample), names) for sample in box_set.train.samples(np.arange(len(box_set.train))))
    ]


def _truth(box_set: BoxSet, sample: int, names: Sequence[str]) -> Truth:
    rows = box_set.boxes.rows(sample)
    numbers = np.array([names.index(name) if name in names else -1 for name in box_set.classes] or [-1], np.int64)
    classes = numbers[box_set.boxes.classes[rows]]
    known = classes >= 0
    return Truth(box_set.boxes.corners[rows][known], classes[known], box_set.boxes.ignored[rows][known])


class Evaluation(NamedTuple):
    """``figures``: `detection_figures`, and "score": mAP50, if there are true boxes; ``bad``: the images that this rank could not
    read."""

    figures: dict[str, float]
    bad: list[str]


def held_out_split(box_set: BoxSet) -> Split | None:
    """The images to evaluate on; None if there are none, or none of them is annotated."""
    split = box_set.held_out
    return split if split and _annotated(box_set.boxes, split).any() else None


def sample_split(box_set: BoxSet) -> Split:
    """The images whose first ones the report shows: held-out ones, else those for training; they need no boxes."""
    return box_set.held_out or box_set.train


@torch.no_grad()
def evaluate_boxes(
    detector: Detector, box_set: BoxSet, names: Sequence[str], cache: CacheConfig, device: torch.device,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> Evaluation:  # fmt: skip
    """Metrics on the set's held-out images; every rank evaluates its slice, and all ranks get the result.

    Raises:
        InputError: there are no held-out images with boxes.
    """
    split = held_out_split(box_set)
    if split is None:
        raise InputError("no held-out images with boxes", box_set.index.url, "pack with --held-out above 0, or with a test list")
    training = detector.training
    detector.eval()
    predicted: dict[int, Prediction] = {}
    bad: list[str] = []
    for chunk in load_in_workers(SplitStream(split, box_set.size, cache, box_set.etags, part, CHUNK), workers):
        bad += chunk["bad"]
        if len(chunk["positions"]):
            found = detect(detector, chunk["images"].to(device))
            predicted |= dict(zip(split.samples(chunk["positions"].numpy()).tolist(), found, strict=True))
    detector.train(training)
    gathered = gather_items(list(predicted.items()), group)
    everything = dict(sorted(item for item in gathered if box_set.boxes.annotated[item[0]]))
    truth = [_truth(box_set, sample, names) for sample in everything]
    figures = detection_figures(truth, list(everything.values()), names)
    counted = any(name.startswith("AP50.") for name in figures)  # without a true box, no model can score
    return Evaluation(figures | ({"score": figures["mAP50"]} if counted else {}), bad)


@torch.no_grad()
def detect(detector: Detector, images: torch.Tensor) -> list[Prediction]:
    """A detector's boxes on images [b, 3, H, W], by falling score; as fractions of the sides, classes from 0."""
    height, width = images.shape[2:]
    scale = np.array([width, height, width, height], np.float32)
    return [
        Prediction(
            own["boxes"].float().cpu().numpy() / scale, own["labels"].cpu().numpy() - 1, own["scores"].float().cpu().numpy()
        )
        for own in detector(images)
    ]


def check_side(side: int) -> None:
    """Raise InputError for a side that is too small for a feature map."""
    if side < 2 * MIN_SIDE:
        raise InputError(f"side is {side}", "--side", f"give at least {2 * MIN_SIDE} pixels")


class Domains(NamedTuple):
    """The opened sets and the classes to train."""

    labelled: BoxSet
    target: BoxSet
    names: tuple[str, ...]  # not "classes": cloudpickle would take the name for torch.classes, which it cannot send
