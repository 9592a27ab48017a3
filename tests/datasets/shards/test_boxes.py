"""Boxes: which are valid, their Parquet form, and how they follow an augmented image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.media.augment import AugmentConfig, draw_changes
from datasets.shards.boxes import Box, box_within, boxes_of_table, moved_boxes, table_of_boxes


def test_boxes_survive_their_parquet_form() -> None:
    boxes = [(Box(0, 0, 0.5, 1, "b"), Box(0.25, 0.5, 1, 1, "a", True)), None, (), (Box(0, 0, 1, 1, "a"),)]
    table = boxes_of_table(table_of_boxes(boxes, ("a", "b")), "here")
    assert table.corners.tolist() == [[0, 0, 0.5, 1], [0.25, 0.5, 1, 1], [0, 0, 1, 1]]
    assert table.classes.tolist() == [1, 0, 0]
    assert table.ignored.tolist() == [False, True, False]
    assert table.annotated.tolist() == [True, False, True, True]
    assert [table.rows(i) for i in range(4)] == [slice(0, 2), slice(2, 2), slice(2, 2), slice(2, 3)]
    nobody = boxes_of_table(table_of_boxes([None, None], ()), "here")
    assert nobody.corners.shape == (0, 4)
    assert not nobody.annotated.any()
    damaged = table_of_boxes([(Box(0, 0, 1, 1, "a"),)], ("a",)).set_column(0, "corners", [[[0.0, 1.0]]])
    with pytest.raises(InputError, match="disagree"):
        boxes_of_table(damaged, "here")


number = st.floats(-200, 300) | st.sampled_from([float("nan"), float("inf")])


@given(st.tuples(number, number, number, number))
def test_a_box_lies_within_its_image_and_has_an_area(corners: tuple[float, float, float, float]) -> None:
    box = box_within(corners, (100, 50), "x")
    if isinstance(box, Box):
        assert 0 <= box.left < box.right <= 1
        assert 0 <= box.top < box.bottom <= 1
        assert box.left * 100 == pytest.approx(max(corners[0], 0))
        assert box.bottom * 50 == pytest.approx(min(corners[3], 50))
    else:
        inside = [min(max(v, 0), side) for v, side in zip(corners, (100, 50, 100, 50), strict=True)]
        finite = bool(np.isfinite(corners).all())
        assert not finite or inside[2] - inside[0] < 0.101 or inside[3] - inside[1] < 0.051


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_image(seed: int) -> None:
    """A white rectangle on black, moved as training images are: its box is the rectangle's."""
    height, width = 40, 60
    changes = draw_changes(AugmentConfig(shift=0.2), True, (height, width), 4, seed, 0)
    for row in range(4):
        image = np.zeros((height, width, 3), np.uint8)
        image[10:20, 12:40] = 255
        out = np.empty_like(image)
        changes.apply(row, image, out)
        (move,) = changes.geometry(range(row, row + 1), (height, width))
        moved, there = moved_boxes(np.array([[12 / width, 10 / height, 40 / width, 20 / height]], np.float32), move)
        assert there.all()
        rows, columns = np.nonzero((out == 255).all(axis=2))
        seen = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        np.testing.assert_allclose(moved[0], seen, atol=1e-6)


def test_a_box_that_is_moved_out_is_gone() -> None:
    corners = np.array([[0.0, 0.0, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]], np.float32)
    moved, there = moved_boxes(corners, np.array([0, 0, 0.0, -0.25], np.float32))
    assert there.tolist() == [False, True]
    np.testing.assert_allclose(moved[1], [0.25, 0.5, 0.65, 0.9], atol=1e-6)
