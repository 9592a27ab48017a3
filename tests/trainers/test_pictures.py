import math
import string
from collections.abc import Callable

import numpy as np
import pytest
from drawings import ODD, columns, decode, near, solid
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from trainers.reports import curves as pictures
from trainers.reports.drawing import DARK, FONT, LIGHT, SCALE, Sheet, common_aspect, drawable, elide

# --- curves


def test_curves_draw_a_panel_for_each_name_that_has_values() -> None:
    history = [{"step": step, "loss": 3.0 - step / 50, "accuracy": step / 100} for step in range(0, 101, 10)]
    picture = decode(pictures.curves(history, ["loss", "lr", "accuracy"]))
    thirds = [near(part, LIGHT.accent) for part in np.array_split(picture[100:], 3, axis=1)]  # below the titles
    assert [bool(part.any()) for part in thirds] == [True, False, True]
    for part, falls in ((thirds[0], True), (thirds[2], False)):
        where = columns(part)
        first, last = (np.flatnonzero(part[:, column]).mean() for column in (where[2], where[-3]))
        assert (last > first + 100) == falls


def test_curves_wrap_after_three_panels() -> None:
    history: list[dict[str, float]] = [{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0}]
    heights = [decode(pictures.curves(history, ["a"] * count)).shape[0] for count in (1, 3, 4)]
    assert heights[0] == heights[1] < heights[2]


def test_curves_mark_the_step_from_which_draws_go_by_difficulty() -> None:
    history: list[dict[str, float]] = [{"step": step, "loss": 1.0} for step in range(101)]
    assert not near(decode(pictures.curves(history, ["loss"])), LIGHT.mark).any()
    picture = decode(pictures.curves(history, ["loss"], hard_from=25))
    curve, mark = columns(near(picture[100:], LIGHT.accent)), columns(near(picture[300:], LIGHT.mark))  # below its words
    assert abs(mark.mean() - (curve[0] + 0.25 * (curve[-1] - curve[0]))) < 6


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_curves_leave_a_gap_where_a_value_is_not_finite_and_say_so(broken: float) -> None:
    history = [{"step": step, "loss": broken if 70 <= step < 80 else 1.0} for step in range(101)]
    picture = decode(pictures.curves(history, ["loss"]))
    blue = columns(near(picture[100:], LIGHT.accent))
    gap = int(np.argmax(np.diff(blue)))
    assert np.diff(blue)[gap] > 0.08 * (blue[-1] - blue[0])
    red = columns(near(picture, LIGHT.wrong))
    assert ((red > blue[gap]) & (red < blue[gap + 1])).any()
    assert not near(decode(pictures.curves(history[:70], ["loss"])), LIGHT.wrong).any()


def test_curves_of_a_step_keep_the_last_record() -> None:
    replayed = [{"step": step, "loss": float(loss)} for step, loss in [(0, 9), (1, 8), (2, 7), (1, 3), (2, 2), (3, 1)]]
    direct = [{"step": step, "loss": float(loss)} for step, loss in [(0, 9), (1, 3), (2, 2), (3, 1)]]
    assert pictures.curves(replayed, ["loss"]) == pictures.curves(direct, ["loss"])


def test_only_jagged_curves_are_smoothed() -> None:
    step = np.arange(400)
    schedule = np.minimum(step / 50, 1) * (1 + np.cos(np.pi * step / 400))
    assert not pictures._jagged(schedule)
    assert pictures._jagged(np.random.default_rng(0).normal(size=400))


def test_rolling_mean_is_the_plain_one() -> None:
    values = np.random.default_rng(1).normal(size=50)
    values[[0, 7, 20, 21, 49]] = np.nan
    got = pictures._rolling_mean(values, 5)
    for at in range(50):
        window = values[max(0, at - 2) : at + 3]
        assert got[at] == pytest.approx(np.nanmean(window), nan_ok=True) if np.isfinite(values[at]) else np.isnan(got[at])


# --- sheets


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)), st.integers(1, 60), st.integers(1, 60),
    st.integers(0, 20), st.integers(0, 20),
)  # fmt: skip
@settings(max_examples=40)
def test_an_image_keeps_its_shape_in_its_cell(shape: tuple[int, int], width: int, height: int, left: int, top: int) -> None:
    sheet = Sheet(100, 100, LIGHT)
    sheet.image(solid(*shape, 255, 0, 0), (left, top, width, height))
    ys, xs = np.nonzero(near(sheet.pixels, "#ff0000", 2))
    got = np.ptp(ys) + 1, np.ptp(xs) + 1
    assert len(ys) == got[0] * got[1]  # one whole rectangle
    ratio = min(height * SCALE / shape[0], width * SCALE / shape[1])
    assert got == pytest.approx((max(1, shape[0] * ratio), max(1, shape[1] * ratio)), abs=0.51)
    assert max(got[0] - height * SCALE, got[1] - width * SCALE) <= 0
    assert abs(ys.min() + ys.max() + 1 - (2 * top + height) * SCALE) <= 1  # centred
    assert abs(xs.min() + xs.max() + 1 - (2 * left + width) * SCALE) <= 1
    blank = near(sheet.pixels, LIGHT.blank, 0).sum()
    assert blank == width * height * SCALE**2 - len(ys)


@given(st.text(max_size=80) | st.text(string.ascii_letters + "il中", max_size=2000), st.integers(20, 400))
@settings(max_examples=40)
def test_names_are_cut_to_fit_and_drawable(name: str, width: int) -> None:
    shown = elide(name, width, 12)
    assert drawable(shown) == shown
    if len(shown) > 2:  # TextPath measures independently: outlines, not the grid-fitted glyphs
        assert (
            TextPath((0, 0), shown.replace(" ", "_"), size=12, prop=FontProperties(family=FONT)).get_extents().width
            < width * 1.1 + 12
        )
    if "…" not in shown:
        assert shown == drawable(name)


def test_names_keep_both_their_ends() -> None:
    shown = elide("alphabet/" + "x" * 200 + "/0879_02.png", 200, 12)
    head, tail = shown.split("…")
    assert shown.startswith("alphabet/")
    assert shown.endswith("/0879_02.png")
    assert 0 <= len(head) - len(tail) <= 1


def test_the_cell_suits_most_images_and_stays_in_bounds() -> None:
    assert common_aspect([]) == 1.0
    assert common_aspect([solid(200, 100)] * 3 + [solid(1, 900)]) == 0.5
    assert common_aspect([solid(900, 1)]) == 0.4
    assert common_aspect([solid(1, 900)]) == 2.0


@pytest.mark.parametrize(
    "draw",
    [
        lambda dark: pictures.curves([], ["loss"], dark=dark),
        lambda dark: pictures.curves([{"step": 1, "loss": 2.0}], [], dark=dark),
        lambda dark: pictures.curves([{"loss": 2.0}], ["loss"], dark=dark),
        lambda dark: pictures.curves([{"step": 1, "loss": 2.0}], ["loss", ODD], hard_from=1, dark=dark),
        lambda dark: pictures.curves([{"step": 1, "loss": math.nan}], ["loss"], hard_from=10**9, dark=dark),
        lambda dark: pictures.curves([{"step": s, "loss": 1e30 * (-1) ** s} for s in range(300)], ["loss"], dark=dark),
    ],
)
def test_boundaries_give_a_picture_on_the_right_ground(draw: Callable[[bool], bytes]) -> None:
    for dark, theme in ((False, LIGHT), (True, DARK)):
        picture = decode(draw(dark))
        assert "#" + bytes(picture[0, 0]).hex() == theme.paper
        assert 0.003 < 1 - near(picture, theme.paper, 2).mean() < 0.999  # something is on it


def test_pictures_leave_the_settings_of_matplotlib_alone() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.family": "no such font", "text.usetex": True, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        odd = pictures.curves([{"step": 0, "a": 1.0}], ["a"])
        assert dict(matplotlib.rcParams) == before
    assert odd == pictures.curves([{"step": 0, "a": 1.0}], ["a"])
