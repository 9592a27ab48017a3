"""Augmentation against a plain implementation; equal on every worker."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.media.augment import MEAN, POOL, AugmentConfig, Changes, colour_changes, draw_changes, resize, turned

EVERYTHING = AugmentConfig(flip=True, shift=0.3, erase=1.0)


def image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, (height, width, 3), dtype=np.uint8)  # never MEAN


def applied(changes: Changes, row: int, pixels: np.ndarray) -> np.ndarray:
    out = np.full_like(pixels, 255)
    changes.apply(row, pixels, out)
    return out


def plainly(changes: Changes, row: int, pixels: np.ndarray) -> np.ndarray:
    """Pixel by pixel: where does it come from?"""
    height, width = pixels.shape[:2]
    out = np.empty_like(pixels)
    top, left, tall, wide = changes.erase[row]
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - changes.down[row], x - changes.right[row]
            if changes.flip[row]:
                from_x = width - 1 - from_x
            inside = 0 <= from_y < height and 0 <= from_x < width
            erased = top <= y < top + tall and left <= x < left + wide
            out[y, x] = pixels[from_y, from_x] if inside and not erased else MEAN
    return out


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_against_a_plain_implementation(height: int, width: int, shift: float, erase: float, flip: bool, step: int) -> None:
    changes = draw_changes(AugmentConfig(flip=flip, shift=shift, erase=erase), False, (height, width), 4, 0, step)
    for row in range(4):
        pixels = image(row, height, width)
        before = pixels.copy()
        np.testing.assert_array_equal(applied(changes, row, pixels), plainly(changes, row, pixels))
        np.testing.assert_array_equal(pixels, before)


def test_narrow_images_take_a_shift_wider_than_they_are() -> None:
    changes = draw_changes(AugmentConfig(shift=0.5), False, (256, 8), 64, 0, 0)
    assert abs(changes.right).max() == 8
    for row in range(64):
        pixels = image(row, 256, 8)
        np.testing.assert_array_equal(applied(changes, row, pixels), plainly(changes, row, pixels))


def test_changes_depend_on_seed_and_step_alone() -> None:
    def of(seed: int, step: int) -> np.ndarray:
        changes = draw_changes(EVERYTHING, True, (32, 16), 8, seed, step)
        return np.column_stack([changes.flip, changes.down, changes.right, changes.erase])

    np.testing.assert_array_equal(of(1, 5), of(1, 5))
    assert not np.array_equal(of(1, 5), of(1, 6))
    assert not np.array_equal(of(1, 5), of(2, 5))


def test_ranges() -> None:
    changes = draw_changes(EVERYTHING, True, (40, 20), 4000, 0, 0)
    assert set(changes.down) == set(changes.right) == set(range(-12, 13))
    assert abs(changes.flip.mean() - 0.5) < 0.05
    top, left, tall, wide = changes.erase.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall).max() == 40
    assert (left + wide).max() == 20
    erased = tall * wide / 800
    assert 0 < erased.mean() < 0.2
    assert erased.max() <= 0.33


@pytest.mark.parametrize(("flip", "mirror", "flips"), [(None, True, 1), (None, False, 0), (True, False, 1), (False, True, 0)])
def test_the_data_set_or_the_option_decides_on_flips(flip: bool | None, mirror: bool, flips: bool) -> None:
    assert draw_changes(AugmentConfig(flip=flip), mirror, (8, 8), 64, 0, 0).flip.any() == flips


def test_nothing_is_changed_when_nothing_is_asked_for() -> None:
    changes = draw_changes(AugmentConfig(flip=False, shift=0, erase=0), True, (8, 6), 3, 0, 0)
    for row in range(3):
        np.testing.assert_array_equal(applied(changes, row, image(row, 8, 6)), image(row, 8, 6))


def test_fraction_of_images_erased() -> None:
    tall = draw_changes(AugmentConfig(erase=0.25), False, (64, 64), 4000, 0, 0).erase[:, 2]
    assert abs((tall > 0).mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    "options", [{"shift": -0.1}, {"shift": 1.1}, {"erase": 2}, {"erase": float("nan")}, {"jitter": 1.5}, {"patch": -1}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a fraction from 0 to 1"):
        AugmentConfig(**options)  # type: ignore[arg-type]


def test_resize() -> None:
    pixels = image(0, 12, 8)
    assert resize(pixels, (12, 8)) is pixels
    for size in [(6, 4), (24, 16), (6, 16), (1, 1)]:
        assert resize(pixels, size).shape == (*size, 3)
    halves = pixels.reshape(6, 2, 4, 2, 3).astype(float).mean(axis=(1, 3))
    assert abs(resize(pixels, (6, 4)) - halves).max() <= 0.5  # shrinking means over areas
    flat = np.full((5, 5, 3), 77, np.uint8)
    assert (resize(flat, (13, 9)) == 77).all()


def test_turned_half_way_round_is_upside_down() -> None:
    pixels = image(3, 12, 9)
    np.testing.assert_array_equal(turned(pixels, 180), pixels[::-1, ::-1])
    np.testing.assert_array_equal(turned(pixels, 0), pixels)


def test_positive_turns_go_clockwise() -> None:
    pixels = np.zeros((41, 41, 3), np.uint8)
    pixels[2:5, 19:22] = 255  # at twelve o'clock
    y, x = (places.mean() for places in np.nonzero(turned(pixels, 90).min(axis=2) > 127))
    assert (y, x) == pytest.approx((20, 37), abs=0.5)


def test_turns_lie_within_their_bound_and_leave_the_other_changes_alone() -> None:
    without, with_turn = (draw_changes(AugmentConfig(flip=True, turn=t), False, (32, 32), 500, 0, 3) for t in (0.0, 25.0))
    assert not without.turn.any()
    assert 20 < np.abs(with_turn.turn).max() <= 25
    assert abs(with_turn.turn.mean()) < 3
    np.testing.assert_array_equal(without.down, with_turn.down)
    with pytest.raises(InputError, match=r"augment\.turn"):
        AugmentConfig(turn=181)


def test_geometry_is_what_moved() -> None:
    changes = draw_changes(AugmentConfig(flip=True, shift=0.25, turn=10), False, (40, 20), 8, 0, 1)
    moves = changes.geometry(range(2, 5), (40, 20))
    np.testing.assert_allclose(moves[:, 0], changes.flip[2:5])
    np.testing.assert_allclose(moves[:, 1], changes.turn[2:5], rtol=1e-6)
    np.testing.assert_allclose(moves[:, 2] * 40, changes.down[2:5], rtol=1e-6)
    np.testing.assert_allclose(moves[:, 3] * 20, changes.right[2:5], rtol=1e-6)


def plain_colour(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """One change after another, in float."""
    luma = np.array([0.299, 0.587, 0.114])
    grey = (pixels @ luma)[..., None]
    out = (saturation * pixels + (1 - saturation) * grey) * brightness
    return np.clip(contrast * out + (1 - contrast) * float(luma @ MEAN), 0, 255)


@given(st.lists(st.floats(0, 2), min_size=3, max_size=3), st.integers(0, 100))
def test_colours_change_as_by_single_steps(factors: list[float], seed: int) -> None:
    pixels = image(seed, 5, 7)
    changes = draw_changes(AugmentConfig(shift=0.0, jitter=0.0), False, (5, 7), 1, 0, seed)
    changes = replace(changes, colour=colour_changes(np.array(factors)[:, None]))
    np.testing.assert_allclose(
        applied(changes, 0, pixels), plain_colour(pixels.astype(float), *factors), atol=1
    )  # OpenCV rounds the matrix to 10 bits


def test_jitter_stays_in_its_range_and_leaves_the_other_draws_alone() -> None:
    without, with_it = (draw_changes(AugmentConfig(erase=0.5, jitter=jitter), True, (64, 32), 512, 3, 9) for jitter in (0.0, 0.2))
    for name in ("flip", "turn", "down", "right", "erase"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_it, name))
    assert without.colour is None
    assert with_it.colour is not None
    product = with_it.colour[:, :, :3].sum(axis=2)  # of a grey pixel: brightness times contrast
    assert 0.8**2 <= product.min() < 0.75
    assert 1.3 < product.max() <= 1.2**2
    assert not any(with_it.nothing)


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000))
@settings(max_examples=30)
def test_patches_are_rectangles_of_the_pool(height: int, width: int, step: int) -> None:
    """Pixel by pixel; pasted onto the moved image, and below what is erased."""
    config = AugmentConfig(flip=True, shift=0.1, erase=0.5, patch=1.0)
    pool = [image(1000 + number, height, width) + 100 for number in range(POOL)]
    changes = draw_changes(config, False, (height, width), 4, 0, step)
    without = replace(changes, patch=np.zeros_like(changes.patch), erase=np.zeros_like(changes.erase))
    for row in range(4):
        pixels = image(row, height, width)
        expected = applied(without, row, pixels)
        tall, wide, number, down, right, top, left = changes.patch[row]
        for y in range(tall):
            for x in range(wide):
                expected[top + y, left + x] = pool[number][down + y, right + x]
        top, left, tall, wide = changes.erase[row]
        expected[top : top + tall, left : left + wide] = MEAN
        out = np.empty_like(pixels)
        changes.apply(row, pixels, out, pool)
        np.testing.assert_array_equal(out, expected)


def test_patches_stay_in_their_ranges_and_leave_the_other_draws_alone() -> None:
    options = {"erase": 0.5, "jitter": 0.2}
    without, with_it = (draw_changes(AugmentConfig(**options, patch=patch), True, (64, 32), 4000, 3, 9) for patch in (0.0, 0.5))  # type: ignore[arg-type]
    for name in ("flip", "turn", "down", "right", "erase", "colour"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_it, name))
    assert not without.patch.any()
    chosen = with_it.patch[with_it.patch[:, 0] > 0]
    assert abs(len(chosen) / 4000 - 0.5) < 0.03
    tall, wide, number, *corners = chosen.T
    areas = tall * wide / (64 * 32)
    assert 0.005 < areas.min() < 0.02
    assert 0.4 < areas.max() <= 0.5
    assert set(number) == set(range(POOL))
    for down, right in (corners[:2], corners[2:]):
        assert (down.min(), (down + tall).max(), right.min(), (right + wide).max()) == (0, 64, 0, 32)
    still = draw_changes(AugmentConfig(flip=False, shift=0.0, patch=0.5), False, (64, 32), 100, 3, 9)
    assert still.nothing == (still.patch[:, 0] == 0).tolist()


def test_erased_rectangles_keep_the_mean_under_jitter() -> None:
    changes = draw_changes(AugmentConfig(shift=0.0, erase=1.0, jitter=1.0), False, (40, 30), 8, 0, 0)
    for row in range(8):
        top, left, tall, wide = changes.erase[row]
        assert (applied(changes, row, image(row, 40, 30))[top : top + tall, left : left + wide] == MEAN).all()
