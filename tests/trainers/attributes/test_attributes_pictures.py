"""Faces with their predictions: nothing overlaps the neighbour, and keypoints can be seen on any face."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from datasets.shards.labels import COLUMNS
from trainers.reports.drawing import SCALE, elide
from trainers.tasks.attributes.pictures import CELL, EDGE, label_lines, labelled_faces


@pytest.mark.parametrize("end", [0, 1])
def test_every_line_fits_under_its_face(end: int) -> None:
    predicted = {name: limits[end] for name, limits in COLUMNS.items()}
    lines = [line for line, _ in label_lines(predicted, {**predicted, "gender": 1 - end, "smile": 1 - end})]
    assert lines[-2:] == (["yaw -180°, pitch -180°", "roll -180°"] if end == 0 else ["yaw 180°, pitch 180°", "roll 180°"])
    assert [elide(line, CELL, 12) for line in lines] == lines


def test_right_and_wrong_are_distinguished() -> None:
    predicted = {"gender": 0.9, "glasses": 0.2, "mask": 0.8, "age": 24.2}
    true = {"gender": 1.0, "glasses": 1.0, "age": 31.0, "yaw": 3.0}
    lines = [("✓ female 90%", True), ("age 24, is 31", None), ("✗ no glasses", False), ("mask", None)]
    assert label_lines(predicted, true) == lines


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_keypoint_shows_on_any_face(grey: int) -> None:
    face = np.full((100, 100, 3), grey, np.uint8)
    png = labelled_faces([(face, "a.jpg", {"nose_x": 0.5, "nose_y": 0.5}, {})])
    pixels = np.round(imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    top, size = EDGE * SCALE, round(CELL * SCALE)
    cell = pixels[top : top + size, top : top + size]
    seen = np.argwhere(np.abs(cell - grey).sum(axis=2) > 100)
    assert len(seen) >= (4 * SCALE) ** 2  # the dot, whatever becomes of its rim
    np.testing.assert_allclose(seen.mean(axis=0), size / 2, atol=2)


def test_no_face_and_no_label_are_drawn_too() -> None:
    for picture in (labelled_faces([]), labelled_faces([(np.zeros((9, 7, 3), np.uint8), "x" * 200, {}, {})], dark=True)):
        assert imread(io.BytesIO(picture))[..., :3].std() > 0.001  # something is on it
