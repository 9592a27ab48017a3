"""Labels: their ranges, and that they follow the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.media.augment import AugmentConfig, draw_changes
from datasets.shards.labels import COLUMNS, KEYPOINTS, POINTS, check_label, moved_labels


def test_absent_labels() -> None:
    assert [check_label("age", text, "here") for text in ("", " ", "nan", "NaN")] == [None] * 4


@pytest.mark.parametrize(("column", "text"), [("age", "0"), ("age", "120"), ("roll", "-180"), ("gender", "1"), ("nose_x", "1.5")])
def test_bounds_belong_to_the_range(column: str, text: str) -> None:
    assert check_label(column, text, "here") == float(text)


@pytest.mark.parametrize(
    ("column", "text", "values"),
    [("age", "-3", "age is -3, outside 0..120"), ("roll", "400", "roll is 400, outside -180..180"), ("age", "inf", "age is inf"),
     ("gender", "2", "gender is 2"), ("age", "old", "age is 'old', not a number"), ("yaw", "180.01", "yaw is 180.01")],
)  # fmt: skip
def test_what_is_out_of_range_is_named(column: str, text: str, values: str) -> None:
    with pytest.raises(InputError) as error:
        check_label(column, text, "line 7 of labels.csv")
    assert str(error.value).startswith(values)
    assert "line 7 of labels.csv" in str(error.value)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40)
def test_a_point_stays_on_what_it_marks(step: int, flip: bool) -> None:
    """The independent implementation is the image itself: a bright spot is changed, and found again."""
    size, name = (96, 64), POINTS[step % len(POINTS)]
    config = AugmentConfig(flip=flip, shift=0.1, turn=40)
    changes = draw_changes(config, False, size, 1, 0, step)
    x, y = (np.random.default_rng(step).uniform(0.35, 0.65, 2) * [64, 96]).astype(int)
    image = np.zeros((*size, 3), np.uint8)
    image[y - 1 : y + 2, x - 1 : x + 2] = 255
    out = np.empty_like(image)
    changes.apply(0, image, out)
    grey = out.min(axis=2) > 127  # the border's MEAN is not
    found_y, found_x = (places.mean() for places in np.nonzero(grey))
    labels = np.full((1, len(KEYPOINTS)), 0.5, np.float32)
    labels[0, KEYPOINTS.index(f"{name}_x")], labels[0, KEYPOINTS.index(f"{name}_y")] = (x + 0.5) / 64, (y + 0.5) / 96
    moved = moved_labels(labels, KEYPOINTS, changes.geometry(range(1), size), size, make_roll=False)[0]
    swapped = {"left_eye": "right_eye", "right_eye": "left_eye", "left_mouth": "right_mouth", "right_mouth": "left_mouth"}
    name = swapped.get(name, name) if changes.flip[0] else name
    assert moved[KEYPOINTS.index(f"{name}_x")] * 64 - 0.5 == pytest.approx(found_x, abs=0.6)
    assert moved[KEYPOINTS.index(f"{name}_y")] * 96 - 0.5 == pytest.approx(found_y, abs=0.6)


def moved(columns: dict[str, float], moves: tuple[float, float, float, float], make_roll: bool = True) -> dict[str, float]:
    rows = np.array([list(columns.values())], np.float32)
    out = moved_labels(rows, list(columns), np.array([moves], np.float32), (64, 64), make_roll=make_roll)
    return dict(zip(columns, out[0].tolist(), strict=True))


def test_angles_follow_mirror_and_turn() -> None:
    values = moved({"yaw": 30, "pitch": 10, "roll": 5}, (1, 20, 0, 0))
    assert values == pytest.approx({"yaw": -30, "pitch": 10, "roll": 15})
    assert moved({"roll": 170}, (0, 20, 0, 0)) == pytest.approx({"roll": -170})


def test_a_roll_is_made_only_where_asked_for() -> None:
    assert moved({"roll": np.nan, "age": 30}, (0, 12, 0, 0)) == {"roll": 12, "age": 30}
    assert np.isnan(moved({"roll": np.nan}, (0, 12, 0, 0), make_roll=False)["roll"])
    assert np.isnan(moved({"yaw": np.nan}, (1, 12, 0, 0))["yaw"])


def test_other_labels_and_still_images_stay() -> None:
    values = {name: low + 0.25 * (high - low) for name, (low, high) in COLUMNS.items()}
    assert moved(values, (0, 0, 0, 0)) == pytest.approx(values, abs=1e-6)
    after = moved(values, (1, 30, 0.1, 0.1))
    assert {n: after[n] for n in ("gender", "age", "smile", "quality")} == {
        n: values[n] for n in ("gender", "age", "smile", "quality")
    }
