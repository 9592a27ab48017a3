"""What tests of pictures look for in them: areas of a colour, boxes, columns."""

import cv2
import numpy as np
import numpy.typing as npt

from datasets.media.decode import Image

Mask = npt.NDArray[np.bool_]
ODD = "中文 $\\frac$ \udcff\t<script>\n" + "long " * 100  # what a folder may be called


def decode(png: bytes) -> Image:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def near(picture: npt.NDArray[np.uint8], colour: str, distance: int = 24) -> Mask:
    """Where ``picture`` has ``colour`` ("#rrggbb"), give or take smoothing."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return np.asarray(np.abs(picture.astype(int) - wanted).max(axis=2) <= distance)


def boxes(mask: Mask, at_least: int) -> list[tuple[int, int, int, int]]:
    """Connected areas at least so wide and high: (left, top, width, height), in reading order."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:]
    found = [(int(x), int(y), int(w), int(h)) for x, y, w, h, _ in stats if w >= at_least and h >= at_least]
    return sorted(found, key=lambda box: (box[1] // 20, box[0]))


def solid(height: int, width: int, *colour: int) -> Image:
    return np.full((height, width, 3), colour or (128, 128, 128), np.uint8)


def columns(mask: Mask) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask.any(axis=0))
