"""Detection metrics: COCO's mean average precision, computed by pycocotools, and Pascal VOC's at an overlap (IoU) of 0.5.

The n boxes of an image [n, 4]: left, top, right, bottom, all in the same unit, whichever it is.
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
    """The true boxes of an image. An ``ignored`` one counts neither as missed nor, if it is found, as an error."""

    boxes: Floats  # [n, 4]
    classes: npt.NDArray[np.int64]  # [n], from 0
    ignored: npt.NDArray[np.bool_]  # [n]


class Prediction(NamedTuple):
    """The predicted boxes of an image."""

    boxes: Floats  # [n, 4]
    classes: npt.NDArray[np.int64]  # [n]
    scores: Floats  # [n]


def detection_figures(truth: Sequence[Truth], predicted: Sequence[Prediction], names: Sequence[str]) -> dict[str, float]:
    """Metrics over all images: "mAP50", "mAP" (COCO's, over overlaps of 0.5 to 0.95) and "vocAP50"; for each class
    "AP50.<class>", "AP.<class>", "vocAP50.<class>" and the number of true boxes "n.<class>". The means leave out classes without
    true boxes."""
    precision = _coco_precision(truth, predicted, len(names))  # [T, R, C], -1 for a class without true boxes
    figures: dict[str, float] = {}
    for number, name in enumerate(names):
        figures[f"n.{name}"] = float(sum(int(((t.classes == number) & ~t.ignored).sum()) for t in truth))
        if figures[f"n.{name}"]:
            figures[f"AP50.{name}"] = float(precision[0, :, number].mean())
            figures[f"AP.{name}"] = float(precision[:, :, number].mean())
            figures[f"vocAP50.{name}"] = voc_ap50(truth, predicted, number)
    for total, part in (("mAP50", "AP50."), ("mAP", "AP."), ("vocAP50", "vocAP50.")):
        own = [value for name, value in figures.items() if name.startswith(part)]
        figures[total] = float(np.mean(own)) if own else 0.0
    return figures


def voc_ap50(truth: Sequence[Truth], predicted: Sequence[Prediction], number: int) -> float:
    """VOC's average precision of a class as of 2010: the area under the whole curve of precision, made monotonic, over recall.

    Predicted boxes are taken by falling score, equal scores in the order of the images. A box is correct if the true box that it
    overlaps most, by at least 0.5, has not been matched before; otherwise it is an error, and matches nothing. This is the rule
    of the development kit's VOCevaldet.m, except that a side's length is right - left, not right - left + 1 pixels.
    """
    scores, correct, total = [], [], 0
    for true, found in zip(truth, predicted, strict=True):
        own, mine = true.classes == number, found.classes == number
        boxes, ignored, matched = true.boxes[own], true.ignored[own], set[int]()
        total += int((~ignored).sum())
        for place in np.argsort(-found.scores[mine], kind="stable"):
            overlaps = _overlaps(found.boxes[mine][place], boxes)
            best = int(overlaps.argmax()) if len(overlaps) else -1
            hit = best >= 0 and overlaps[best] >= OVERLAP
            if hit and ignored[best]:
                continue
            scores.append(found.scores[mine][place])
            correct.append(hit and best not in matched)
            if hit:
                matched.add(best)
    if not total:
        return float("nan")
    hits = np.array(correct, np.float64)[np.argsort(-np.array(scores), kind="stable")]
    recall = np.concatenate([[0], hits.cumsum() / total])
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * falling).sum())


def _overlaps(box: Floats, boxes: Floats) -> npt.NDArray[np.float64]:
    """Intersection over union of one box [4] with others [n, 4]; 0 if neither has an area."""
    one, others = box.astype(np.float64), boxes.astype(np.float64)
    inner = np.maximum(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0).prod(axis=1)
    union = (others[:, 2:] - others[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod() - inner
    overlaps: npt.NDArray[np.float64] = inner / np.maximum(union, np.finfo(np.float64).tiny)
    return overlaps


def _coco_precision(truth: Sequence[Truth], predicted: Sequence[Prediction], classes: int) -> npt.NDArray[np.float64]:
    """COCO's precision by overlap, recall and class [T, R, C]."""
    annotations = [
        {"image_id": image, "category_id": int(c), "bbox": _sides(box), "area": math.prod(_sides(box)[2:]), "iscrowd": int(i)}
        for image, own in enumerate(truth) for box, c, i in zip(own.boxes, own.classes, own.ignored, strict=True)
    ]  # fmt: skip
    found = [
        {"image_id": image, "category_id": int(c), "bbox": _sides(box), "score": float(score)}
        for image, own in enumerate(predicted) for box, c, score in zip(own.boxes, own.classes, own.scores, strict=True)
    ]  # fmt: skip
    truths = COCO()
    truths.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truth))],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, 1)],
        "categories": [{"id": number} for number in range(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        truths.createIndex()
        if not found:
            return np.zeros((10, 101, classes))
        evaluation = COCOeval(truths, truths.loadRes(found), "bbox")
        evaluation.params.maxDets = [1, 10, MAX_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    return precision


def _sides(box: Floats) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]
