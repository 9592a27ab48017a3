"""What a detector (the student) learns on images of the target from a moving mean of itself (the teacher).

The teacher sees the images as they are, the student strongly augmented views of them; nothing is moved, so boxes stay where they
are. Losses are sums with the number of their terms, as `Detector.losses` returns them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.detection.detector import Detector
from trainers.tasks.detection.strong_augment import strong_views

Sums = dict[str, tuple[Tensor, Tensor | int]]
DISTILLED = ("objectness", "proposal", "class", "box")
PSEUDO = ("objectness", "class")


@dataclass(frozen=True)
class TeacherConfig:
    """The moving mean of the weights (the teacher), and what is learned from it."""

    decay: float = 0.99
    """Fraction of the old mean that is kept at each step; smaller in the first steps."""
    threshold: float = 0.7
    """Minimum score of a box to become a pseudo-label, or of aldi a box whose surroundings are sampled."""
    weight: float = 1.0
    """Weight of the losses on the target's images."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or not 0 < self.threshold < 1 or self.weight < 0:
            what = "teacher.decay must be in [0, 1), teacher.threshold in (0, 1), teacher.weight at least 0"
            raise InputError(what, "teacher")


def pseudo_label_sums(student: Detector, teacher: Detector, images: Tensor, threshold: float) -> tuple[Sums, int]:
    """The student's losses on the teacher's confident boxes, and how many images have such boxes: the others are left out.

    Only the classification losses count, not those of positions, as in Unbiased Teacher (Liu et al., ICLR 2021).
    """
    with torch.no_grad():
        targets = [confident(own, threshold) for own in teacher(images)]
    some = [i for i, own in enumerate(targets) if len(own["boxes"])]  # no confident box does not mean no object
    if not some:
        return no_sums(images, PSEUDO), 0
    sums, _ = student.losses(strong_views(images[some]), [targets[i] for i in some])
    return {name: sums[name] for name in PSEUDO}, len(some)


def distillation_sums(student: Detector, teacher: Detector, images: Tensor, threshold: float) -> Sums:
    """Soft distillation of all that the detector's two stages say (Kay et al., "Align and Distill", TMLR 2025).

    The anchors and regions that are compared are sampled as in training, by the teacher's confident boxes. The regions are the
    student's proposals, which the teacher classifies on its own features.
    """
    views, sizes = strong_views(images), [(images.shape[2], images.shape[3])] * len(images)
    own = student.maps(views)
    with torch.no_grad():
        taught = teacher.maps(images)
        targets = [confident(found, threshold) for found in teacher.detections(taught, images)]
        positive, sampled = student.sampled_anchors(own, images, targets)
        boxes = student.sampled_regions(student.proposals(own, images), targets)
        of_anchors, of_regions = teacher.of_anchors(taught), teacher.of_regions(teacher.pooled(taught, boxes, sizes))
    regions = student.of_regions(student.pooled(own, boxes, sizes))
    return {**anchor_sums(student.of_anchors(own), of_anchors, positive, sampled), **region_sums(regions, of_regions)}


def anchor_sums(own: tuple[Tensor, Tensor], taught: tuple[Tensor, Tensor], positive: Tensor, sampled: Tensor) -> Sums:
    """ "objectness": cross-entropy with the teacher's probabilities, of the sampled anchors; "proposal": L1 distance of the box
    offsets, of the positive ones.

    ``own``, ``taught``: logits [A] and offsets [A, 4]; ``positive``, ``sampled``: masks [A].
    """
    (logits, offsets), (aims, aimed) = own, taught
    of_object = F.binary_cross_entropy_with_logits(logits[sampled], torch.sigmoid(aims[sampled]), reduction="sum")
    of_box = F.l1_loss(offsets[positive], aimed[positive], reduction="sum")
    return {"objectness": (of_object, sampled.sum()), "proposal": (of_box, 4 * positive.sum())}


def region_sums(own: tuple[Tensor, Tensor], taught: tuple[Tensor, Tensor]) -> Sums:
    """ "class": cross-entropy with the teacher's probabilities; "box": L1 distance of the offsets for the teacher's class, of the
    regions that it does not take for background, over all regions.

    ``own``, ``taught``: logits [R, C + 1], the background first, and offsets [R, 4 (C + 1)].
    """
    (logits, offsets), (aims, aimed) = own, taught
    of_class = F.cross_entropy(logits, aims.softmax(dim=1), reduction="sum")
    best = aims.argmax(dim=1)
    rows = torch.nonzero(best)[:, 0]
    mine, theirs = (each.view(len(each), -1, 4)[rows, best[rows]] for each in (offsets, aimed))
    of_box = F.l1_loss(mine, theirs, reduction="sum")
    return {"class": (of_class, len(logits)), "box": (of_box, len(logits))}


def no_sums(images: Tensor, names: Sequence[str]) -> Sums:
    """Losses of nothing."""
    return {name: (images.new_zeros((), dtype=torch.float32), 0) for name in names}


def confident(predicted: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The predicted boxes and labels of an image whose score is at least ``threshold``."""
    chosen = predicted["scores"] >= threshold
    return {"boxes": predicted["boxes"][chosen], "labels": predicted["labels"][chosen]}
