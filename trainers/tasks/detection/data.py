"""Sets with boxes as the detection job uses them: a source and a target, opened, streamed side by side, and evaluated.

b images of this rank, n boxes of all of them. Boxes are in pixels of the images as they are trained at, left, top, right, bottom.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

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
from datasets.shards.index import Index, Split, evaluated_split, read_index, split_of
from trainers.tasks.detection.detector import MIN_SIDE, Detector
from trainers.tasks.detection.metrics import Prediction, Truth, detection_figures

CHUNK = 16  # images evaluated at once
CELL = 16  # pixels that an image's sides are a multiple of


@dataclass(frozen=True)
class BoxSet:
    """A set, opened; every worker does so for itself. ``size``: height and width that its images are brought to."""

    index: Index
    boxes: BoxTable
    train: Split
    etags: dict[str, str]
    size: tuple[int, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        return tuple(self.index.about["classes"])

    @property
    def annotated(self) -> npt.NDArray[np.bool_]:
        """Whether anyone looked for boxes on each training image, by position."""
        of_train: npt.NDArray[np.bool_] = self.boxes.annotated[self.train.samples(np.arange(len(self.train)))]
        return of_train


def open_box_set(url: str, side: int, what: str) -> BoxSet:
    """Open a set whose images get a short side of ``side`` pixels, in the shape that most of them have.

    Raises:
        InputError: there is none, it is not whole, has no training images, or was packed without boxes.
    """
    if not url:
        remedy = "give a shard set, packed by `python -m datasets.pack` as voc, coco or boxes_csv"
        raise InputError(f"no {what} to train on", f"--{what}", remedy)
    index = read_index(url)
    if index.boxes is None:
        raise InputError("the set has no boxes, not even a place for them", url, "pack it as voc, coco or boxes_csv")
    height, width = index.about["size"]
    scale = side / min(height, width)
    size = tuple(max(round(length * scale / CELL), 1) * CELL for length in (height, width))
    return BoxSet(index, index.boxes, split_of(index, "train"), shard_etags(index), (size[0], size[1]))


def classes_of(labelled: BoxSet, target: BoxSet, wanted: Sequence[str]) -> tuple[str, ...]:
    """The classes that are learned: those wanted, else those of the labelled set.

    Raises:
        InputError: a set with boxes lacks one of them, or the names differ and nobody said which to take; the labelled set has
            no boxes of them, or images that nobody annotated.
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
        raise InputError(what, labelled.index.url, "is it the set with boxes, and are the annotations packed with it?")
    if not labelled.annotated.all():
        what = f"{(~labelled.annotated).sum()} of {len(labelled.train)} training images are not annotated"
        raise InputError(what, labelled.index.url, "leave them out when packing: they would teach that nothing is there")
    return names


def checksum_of(sets: Iterable[BoxSet]) -> int:
    """crc32c of what the sets hold and of all boxes: other data has another."""
    parts = [part for s in sets for part in (s.index.checksum.to_bytes(4), s.boxes.corners.tobytes(), s.boxes.classes.tobytes())]
    return reduce(google_crc32c.extend, parts, 0)


def domain_stream(
    labelled: BoxSet, target: BoxSet | None, batch: int, loader: LoaderConfig, augment: AugmentConfig, cache: CacheConfig,
    part: RankSlice, seed: int, start: int, stop: int,
) -> Stream:  # fmt: skip
    """Batches of steps ``start`` .. ``stop`` - 1: of the labelled set alone, or with as many images of the target."""

    def stream(box_set: BoxSet, own: int) -> BatchStream:
        sampler, sized = SamplerConfig(kind="uniform", batch=batch), replace(loader, size=box_set.size)
        return BatchStream(box_set.train, sampler, sized, augment, cache, None, box_set.etags, part, own, start, stop)

    first = stream(labelled, seed * 1009)
    return first if target is None else PairedStream(first, stream(target, seed * 1009 + 1))


def with_boxes(batches: Iterable[Batch], labelled: BoxSet, names: Sequence[str], begin: int) -> Iterator[Batch]:
    """The batches with "boxes" float32 [n, 4] in pixels, "classes" int64 [n] and "counts" int64 [b], moved as the images were;
    and "active", whether the target takes part yet: from step ``begin`` on."""
    table = _training_boxes(labelled, names)
    height, width = labelled.size
    for batch in batches:
        boxes, classes = [], []
        for position, move in zip(batch["positions"].tolist(), batch["moves"].numpy(), strict=False):  # the target's come after
            corners, own = table[position]
            moved, there = moved_boxes(corners, move)
            boxes.append(moved[there] * np.array([width, height, width, height], np.float32))
            classes.append(own[there])
        yield batch | {
            "boxes": torch.from_numpy(np.concatenate(boxes)),
            "classes": torch.from_numpy(np.concatenate(classes)),
            "counts": torch.tensor([len(own) for own in classes]),
            "active": torch.tensor(float(batch["step"] >= begin)),
        }


def _training_boxes(box_set: BoxSet, names: Sequence[str]) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Corners [k, 4] as shares and classes [k] of every training image, by position, without ignored ones and other classes."""
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
    """``figures`` as of `detection_figures`, and "score", which is mAP50; ``bad``: what this rank could not read."""

    figures: dict[str, float]
    bad: list[str]


def held_out_split(box_set: BoxSet) -> Split | None:
    """The split to evaluate on (test, else val), if there is one with boxes."""
    split = evaluated_split(box_set.index)
    return split if split and box_set.boxes.annotated[split.samples(np.arange(len(split)))].any() else None


def sample_split(box_set: BoxSet) -> Split:
    """The split whose first images a report shows, with boxes or without: what is held out, else what is trained on."""
    return evaluated_split(box_set.index) or box_set.train


@torch.no_grad()
def evaluate_boxes(
    detector: Detector, box_set: BoxSet, names: Sequence[str], cache: CacheConfig, device: torch.device,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> Evaluation:  # fmt: skip
    """Figures on the set's held-out images; every rank evaluates its slice, and all get the result.

    Raises:
        InputError: there are no held-out images with boxes.
    """
    split = held_out_split(box_set)
    if split is None:
        raise InputError("no held-out images with boxes", box_set.index.url, "pack with --held-out above 0, or with a test list")
    training = detector.training
    detector.eval()
    told: dict[int, Prediction] = {}
    bad: list[str] = []
    for chunk in load_in_workers(SplitStream(split, box_set.size, cache, box_set.etags, part, CHUNK), workers):
        bad += chunk["bad"]
        if len(chunk["positions"]):
            found = detect(detector, chunk["images"].to(device))
            told |= dict(zip(split.samples(chunk["positions"].numpy()).tolist(), found, strict=True))
    detector.train(training)
    parts: list[Any] = [told]
    if group is not None:
        parts = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, told, group=group)
    everything = dict(sorted(item for part in parts for item in part.items() if box_set.boxes.annotated[item[0]]))
    truth = [_truth(box_set, sample, names) for sample in everything]
    figures = detection_figures(truth, list(everything.values()), names)
    return Evaluation(figures | {"score": figures["mAP50"]}, bad)


@torch.no_grad()
def detect(detector: Detector, images: torch.Tensor) -> list[Prediction]:
    """What a detector finds on images [b, 3, H, W], the best first; boxes as shares of the sides, classes from 0."""
    height, width = images.shape[2:]
    scale = np.array([width, height, width, height], np.float32)
    return [
        Prediction(
            own["boxes"].float().cpu().numpy() / scale, own["labels"].cpu().numpy() - 1, own["scores"].float().cpu().numpy()
        )
        for own in detector(images)
    ]


def check_side(side: int) -> None:
    """Raises InputError for a side that no detector can see anything at."""
    if side < 2 * MIN_SIDE:
        raise InputError(f"side is {side}", "--side", f"give at least {2 * MIN_SIDE} pixels")


class Domains(NamedTuple):
    """The opened sets, and the classes that are learned."""

    labelled: BoxSet
    target: BoxSet
    names: tuple[str, ...]  # not "classes": by that word cloudpickle would want to send torch.classes along, and cannot
