"""Pictures of boxes and clusters: what is drawn lies where it was found."""

import cv2
import numpy as np
import pytest

from trainers.reports.drawing import LIGHT
from trainers.tasks.detection.pictures import CLUSTERS, EDGE, Detections, detections_sheet


def pixels(png: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def places(picture: np.ndarray, colour: str) -> np.ndarray:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((np.abs(picture.astype(int) - rgb) <= 2).all(axis=2))


def test_boxes_and_clusters_lie_where_they_were_found() -> None:
    image = np.full((100, 200, 3), 250, np.uint8)
    seen = Detections(image, "one", [(0.25, 0.5, 0.75, 1.0, "a")], [(0.1, 0.2, 1)], [(0.5, 0.1)], [0.25])
    picture = pixels(detections_sheet([seen], cell=200))
    frame = places(picture, LIGHT.accent) / 2 - EDGE  # CSS pixels within the image
    assert frame.min(axis=0) == pytest.approx([50, 50], abs=1)
    assert frame.max(axis=0) == pytest.approx([100, 150], abs=1)
    dot = places(picture, CLUSTERS[1]) / 2 - EDGE
    assert dot.mean(axis=0) == pytest.approx([20, 20], abs=1)
    assert len(places(picture, CLUSTERS[0])) > 8


@pytest.mark.parametrize("dark", [False, True])
def test_odd_things_are_drawn(dark: bool) -> None:
    edge = Detections(
        np.zeros((4, 300, 3), np.uint8), "x" * 300, [(0, 0, 1e-4, 1e-4, "a"), (0.99, 0.99, 1, 1, "b")], [(0, 0, 9), (1, 1, 0)]
    )
    for sheet in ([edge, Detections(np.zeros((50, 9, 3), np.uint8), "", [])], []):
        assert pixels(detections_sheet(sheet, dark=dark)).std() > 1  # something is on it
