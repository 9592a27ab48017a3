"""How well boxes are found: COCO's mean average precision, by COCO's own code, and Pascal VOC's at an overlap of one half.

n boxes of an image [n, 4]: left, top, right, bottom, in any unit that is one for all of them.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Floats = npt.NDArray[np.float32]
OVERLAP = 0.5
MAX_BOXES = 100  # boxes of an image that COCO counts


class Truth(NamedTuple):
    """What is on an image. What is ``ignored`` need not be found, and finding it is no mistake."""

    boxes: Floats  # [n, 4]
    classes: npt.NDArray[np.int64]  # [n], from 0
    ignored: npt.NDArray[np.bool_]  # [n]


class Prediction(NamedTuple):
    """What was found on it."""

    boxes: Floats  # [n, 4]
    classes: npt.NDArray[np.int64]  # [n]
    scores: Floats  # [n]


def detection_figures(truth: Sequence[Truth], told: Sequence[Prediction], names: Sequence[str]) -> dict[str, float]:
    """Figures of all images together: mAP50, mAP (COCO's, over overlaps of 0.5 .. 0.95), vocAP50; of each class AP50, AP, vocAP50
    and the number of true boxes, as in ``n.<class>``. Classes without any are left out of means."""
    precision = _coco_precision(truth, told, len(names))  # [T, R, C], -1 where nothing is true
    figures: dict[str, float] = {}
    for number, name in enumerate(names):
        figures[f"n.{name}"] = float(sum(int(((t.classes == number) & ~t.ignored).sum()) for t in truth))
        if figures[f"n.{name}"]:
            figures[f"AP50.{name}"] = float(precision[0, :, number].mean())
            figures[f"AP.{name}"] = float(precision[:, :, number].mean())
            figures[f"vocAP50.{name}"] = voc_ap50(truth, told, number)
    for total, part in (("mAP50", "AP50."), ("mAP", "AP."), ("vocAP50", "vocAP50.")):
        own = [value for name, value in figures.items() if name.startswith(part)]
        figures[total] = float(np.mean(own)) if own else 0.0
    return figures


def voc_ap50(truth: Sequence[Truth], told: Sequence[Prediction], number: int) -> float:
    """VOC's average precision of a class (2010 and later: the area under the whole curve, precision made to fall).

    By falling score, a found box is right if the true box that it overlaps most, by at least a half, was not found before. One
    that overlaps none by a half is a mistake, and leaves the true boxes to others. Equal scores are in the order of the images.
    The rule is that of the development kit's VOCevaldet.m; a box's far edges are not counted as pixels of their own, as there.
    """
    scores, right, total = [], [], 0
    for true, found in zip(truth, told, strict=True):
        own, mine = true.classes == number, found.classes == number
        boxes, ignored, seen = true.boxes[own], true.ignored[own], set[int]()
        total += int((~ignored).sum())
        for place in np.argsort(-found.scores[mine], kind="stable"):
            overlaps = _overlaps(found.boxes[mine][place], boxes)
            best = int(overlaps.argmax()) if len(overlaps) else -1
            hit = best >= 0 and overlaps[best] >= OVERLAP
            if hit and ignored[best]:
                continue
            scores.append(found.scores[mine][place])
            right.append(hit and best not in seen)
            if hit:
                seen.add(best)
    if not total:
        return float("nan")
    hits = np.array(right, np.float64)[np.argsort(-np.array(scores), kind="stable")]
    recall = np.concatenate([[0], hits.cumsum() / total])
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * falling).sum())


def _overlaps(box: Floats, boxes: Floats) -> npt.NDArray[np.float64]:
    """Intersection over union of one box [4] with others [n, 4]; 0 of two without an area."""
    one, others = box.astype(np.float64), boxes.astype(np.float64)
    inner = np.maximum(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0).prod(axis=1)
    union = (others[:, 2:] - others[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod() - inner
    overlaps: npt.NDArray[np.float64] = inner / np.maximum(union, np.finfo(np.float64).tiny)
    return overlaps


def _coco_precision(truth: Sequence[Truth], told: Sequence[Prediction], classes: int) -> npt.NDArray[np.float64]:
    """COCO's precision at overlaps T, recalls R, by class [T, R, C]."""
    annotations = [
        {"image_id": image, "category_id": int(c), "bbox": _sides(box), "area": math.prod(_sides(box)[2:]), "iscrowd": int(i)}
        for image, own in enumerate(truth) for box, c, i in zip(own.boxes, own.classes, own.ignored, strict=True)
    ]  # fmt: skip
    found = [
        {"image_id": image, "category_id": int(c), "bbox": _sides(box), "score": float(score)}
        for image, own in enumerate(told) for box, c, score in zip(own.boxes, own.classes, own.scores, strict=True)
    ]  # fmt: skip
    truths = COCO()
    truths.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truth))],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, 1)],
        "categories": [{"id": number} for number in range(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        truths.createIndex()
        if not found:
            return np.zeros((10, 101, classes))
        rated = COCOeval(truths, truths.loadRes(found), "bbox")
        rated.params.maxDets = [1, 10, MAX_BOXES]
        rated.evaluate()
        rated.accumulate()
    precision: npt.NDArray[np.float64] = rated.eval["precision"][:, :, :, 0, -1]
    return precision


def _sides(box: Floats) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]
