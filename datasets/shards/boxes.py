"""Bounding boxes: which are kept, their table in the index, and how they follow an augmented image.

A box is left, top, right, bottom as fractions of the image's width and height, from 0 to 1. An image that nobody annotated (as
in a target domain) is kept apart from one that was annotated and shows nothing.

M samples, n boxes of all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import InputError

Floats = npt.NDArray[np.float32]


class Box(NamedTuple):
    """One annotated object. ``ignored``: used neither in training nor in evaluation (VOC's difficult ones, COCO's crowds)."""

    left: float
    top: float
    right: float
    bottom: float
    name: str
    ignored: bool = False


def box_within(corners: Sequence[float], sides: tuple[float, float], name: str, *, ignored: bool = False) -> Box | str:
    """Return a box as fractions, clipped to the image, or the reason why it is dropped.

    ``sides``: width and height of the image, in the units of ``corners``. A box is dropped where it has no area, lies outside the
    image, or less than a thousandth of a side remains after clipping.
    """
    if not all(math.isfinite(value) for value in corners):
        return "is not finite"
    left, top, right, bottom = (float(value) / sides[place % 2] for place, value in enumerate(corners))
    if right <= left or bottom <= top:
        return "has no area"
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    if right - left < 1e-3 or bottom - top < 1e-3:
        return "lies outside the image, or is smaller than a thousandth of it"
    return Box(left, top, right, bottom, name, ignored)


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of M samples, concatenated; sample i has the rows ``starts[i]`` to ``starts[i + 1] - 1``."""

    corners: Floats  # [n, 4]
    classes: npt.NDArray[np.int64]  # [n], from 0
    ignored: npt.NDArray[np.bool_]  # [n]
    starts: npt.NDArray[np.int64]  # [M + 1]
    annotated: npt.NDArray[np.bool_]  # [M]

    def rows(self, sample: int) -> slice:
        """Return the rows of a sample's boxes."""
        return slice(int(self.starts[sample]), int(self.starts[sample + 1]))


def table_of_boxes(boxes: Sequence[Sequence[Box] | None], classes: Sequence[str]) -> pa.Table:
    """Return the Parquet table, one row per sample: lists, null where nobody annotated the image."""
    number = {name: i for i, name in enumerate(classes)}
    columns: dict[str, pa.Array] = {
        "corners": pa.array(
            [None if own is None else [v for box in own for v in box[:4]] for own in boxes], pa.list_(pa.float32())
        ),
        "class": pa.array([None if own is None else [number[box.name] for box in own] for own in boxes], pa.list_(pa.int16())),
        "ignored": pa.array([None if own is None else [box.ignored for box in own] for own in boxes], pa.list_(pa.bool_())),
    }
    return pa.table(columns)


def boxes_of_table(table: pa.Table, where: str) -> BoxTable:
    """Invert `table_of_boxes`; raises InputError where its columns disagree."""
    corners, classes, ignored = (table.column(name).combine_chunks() for name in ("corners", "class", "ignored"))
    counts = pc.fill_null(pc.list_value_length(classes), 0).to_numpy().astype(np.int64)
    flat = corners.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(flat) != 4 * counts.sum() or len(ignored.flatten()) != counts.sum():
        raise InputError("the columns of the index's boxes disagree", where, "pack the set again")
    return BoxTable(
        flat.reshape(-1, 4),
        classes.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        ignored.flatten().to_numpy(zero_copy_only=False).astype(np.bool_),
        np.concatenate([[0], np.cumsum(counts)]),
        np.array(classes.is_valid()),
    )


def moved_boxes(corners: Floats, move: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Move boxes [n, 4] with their augmented image (``move``: a row of `Changes.geometry`, without a turn).

    Returns the boxes clipped to the image [n, 4], and which of them to keep [n]: those with more than a third of their area left.
    """
    flip, _, down, right = move
    moved = corners.copy()
    if flip:
        moved[:, 0], moved[:, 2] = 1 - corners[:, 2], 1 - corners[:, 0]
    moved = np.clip(moved + np.array([right, down, right, down], np.float32), 0, 1)
    return moved, _areas(moved) > _areas(corners) / 3


def _areas(corners: Floats) -> Floats:
    areas: Floats = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return areas
