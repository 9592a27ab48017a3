"""Pictures of detections: predicted boxes, and the clusters of regions that are aligned."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from datasets.media.decode import Image
from trainers.reports.drawing import Box, Sheet, Theme, common_aspect, drawing, elide, message

EDGE, GAP, LINE = 20, 16, 17
DOT = 3.0
# colours of clusters, from Okabe and Ito's palette
CLUSTERS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#999999")


class Detections(NamedTuple):
    """An image and the boxes and clusters found on it; all positions are fractions of its sides."""

    image: Image
    title: str
    boxes: Sequence[tuple[float, float, float, float, str]]  # left, top, right, bottom, class
    points: Sequence[tuple[float, float, int]] = ()  # centres of regions: x, y, cluster
    centres: Sequence[tuple[float, float]] = ()  # of clusters: x, y
    weights: Sequence[float] = ()  # w_k of each cluster


def detections_sheet(images: Sequence[Detections], columns: int = 4, cell: float = 230.0, dark: bool = False) -> bytes:
    """A PNG of images with their predicted boxes; regions are dots in their cluster's colour, with the weights w_k below."""
    with drawing(dark) as theme:
        if not images:
            return message("no image to show", theme)
        columns = min(columns, len(images))
        tall = round(cell / common_aspect([one.image for one in images]))
        below = LINE * (3 if any(one.weights for one in images) else 2) + 8
        height = EDGE + math.ceil(len(images) / columns) * (tall + below + GAP)
        kinds = sorted({what for one in images for *_, what in one.boxes})
        sheet = Sheet(2 * EDGE + columns * (cell + GAP) - GAP, height, theme)
        for place, one in enumerate(images):
            left, top = EDGE + place % columns * (cell + GAP), EDGE + place // columns * (tall + below + GAP)
            sheet.image(one.image, (left, top, cell, tall))
            _marks(sheet, theme, one, kinds, (left, top, cell, tall))
            sheet.text(left, top + tall + LINE, elide(one.title, cell, 11), 11, theme.muted)
            counts = Counter(what for *_, what in one.boxes)
            words = ", ".join(f"{kind} {counts[kind]}" for kind in kinds if counts[kind])
            sheet.text(left, top + tall + 2 * LINE, elide(words or "nothing found", cell, 12), 12)
            for number, weight in enumerate(one.weights):
                x = left + number * cell / len(one.weights)
                sheet.fill((x, top + tall + 3 * LINE - 9, 8, 8), CLUSTERS[number % len(CLUSTERS)])
                sheet.text(x + 11, top + tall + 3 * LINE, f"{weight:.2f}", 11)
        return sheet.png()


def _marks(sheet: Sheet, theme: Theme, one: Detections, kinds: Sequence[str], cell: Box) -> None:
    """Draw an image's boxes and clusters; the image is in the middle of ``cell``, a class has one colour on the whole sheet."""
    colours = (theme.accent, theme.wrong, theme.right, theme.mark)
    ratio = min(cell[2] / one.image.shape[1], cell[3] / one.image.shape[0])
    width, height = one.image.shape[1] * ratio, one.image.shape[0] * ratio
    left, top = cell[0] + (cell[2] - width) / 2, cell[1] + (cell[3] - height) / 2
    for x, y, cluster in one.points:
        x, y = min(max(x * width, DOT), width - DOT), min(max(y * height, DOT), height - DOT)
        sheet.fill((left + x - DOT / 2, top + y - DOT / 2, DOT, DOT), CLUSTERS[cluster % len(CLUSTERS)])
    for a, b, c, d, what in one.boxes:
        inside = left + a * width + 1, top + b * height + 1, max((c - a) * width - 2, 1), max((d - b) * height - 2, 1)
        sheet.frame(inside, colours[kinds.index(what) % len(colours)], 1)
    for number, (x, y) in enumerate(one.centres):
        sheet.frame((left + x * width - 3, top + y * height - 3, 6, 6), CLUSTERS[number % len(CLUSTERS)], 2)
