"""The pictures of a re-ID report: what they show, where, and in which colour."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from drawings import ODD, boxes, columns, decode, near, solid
from hypothesis import given
from hypothesis import strategies as st

from trainers.reports.drawing import DARK, LIGHT, SCALE, Image
from trainers.tasks.reid import pictures

# --- difficulty over time


def heat(picture: Image) -> tuple[Image, Image]:
    """The left and the right half of the plotted area."""
    height, width = picture.shape[:2]
    area = picture[round(0.095 * height) : round(0.855 * height), round(0.065 * width) : round(0.88 * width)]
    left, right = np.array_split(area, 2, axis=1)
    return left, right


def test_difficulty_is_shaded_where_the_identities_are() -> None:
    low, high = np.full(100, 0.1), np.full(100, 0.9)
    left, right = heat(decode(pictures.difficulty_over_time([(100, low), (200, high)])))
    half = left.shape[0] // 2
    left, right = left[:, :-20], right[:, 20:]  # away from the step between the two
    dark = [int(near(part, LIGHT.ink, 40).sum()) for part in (left[:half], left[half:], right[:half], right[half:])]
    assert dark[0] == dark[3] == 0
    assert min(dark[1], dark[2]) > 1000


def test_median_line_lies_at_the_median_of_each_version() -> None:
    first, second = np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.75, 1.0])
    for part, median in zip(heat(decode(pictures.difficulty_over_time([(0, first), (50, second)]))), (0.25, 0.75), strict=True):
        inner = part[:, 20:-20]  # away from the step between the two
        row = np.flatnonzero(near(inner, LIGHT.mark).any(axis=1)).mean()
        assert 1 - row / len(part) == pytest.approx((median + 0.04) / 1.08, abs=0.01)  # a margin of 4% below and above


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted))
def test_labels_of_close_lines_stay_apart(heights: list[float]) -> None:
    places = pictures._apart(heights, 0.065)
    assert all(above - below >= 0.065 - 1e-9 for below, above in itertools.pairwise(places))
    assert 0 <= places[0] <= places[-1] <= 1
    assert all(abs(place - height) <= 3 * 0.065 + 1e-9 for place, height in zip(places, heights, strict=True))
    if min(b - a for a, b in itertools.pairwise([*heights, 1.0])) >= 0.065:
        assert places == pytest.approx(heights)


def test_versions_are_put_in_order_and_the_later_of_one_step_counts() -> None:
    a, b, c = (np.random.default_rng(seed).uniform(-1, 1, 30) for seed in range(3))
    assert pictures.difficulty_over_time([(9, c), (3, b), (3, a)]) == pictures.difficulty_over_time([(3, a), (9, c)])


def test_values_that_are_not_finite_are_left_out() -> None:
    c = np.array([0.2, 0.4, 0.5, np.nan, np.inf])
    assert pictures.difficulty_over_time([(1, c), (2, c[3:])]) == pictures.difficulty_over_time([(1, c[:3])])


@pytest.mark.parametrize("c", [[0.5], [0.5] * 7, [-1.0, 1.0], np.array([0.1, 0.2], np.float32), list(np.linspace(-1, 1, 3000))])
def test_difficulty_of_any_vector_is_drawn(c: npt.ArrayLike) -> None:
    assert decode(pictures.difficulty_over_time([(0, c)])).shape == (340 * SCALE, 960 * SCALE, 3)


# --- sheets


PURE = {"red": (255, 0, 0), "lime": (0, 255, 0), "fuchsia": (255, 0, 255), "yellow": (255, 255, 0)}
HEX = {"red": "#ff0000", "lime": "#00ff00", "fuchsia": "#ff00ff", "yellow": "#ffff00"}


def test_pairs_show_four_images_of_each_side_by_side() -> None:
    sides = {name: [solid(50, 50, *colour)] * 6 for name, colour in PURE.items()}
    sheet = [("red", "lime", 0.97, sides["red"], sides["lime"]), ("f", "y", math.nan, sides["fuchsia"][:1], sides["yellow"][:3])]
    picture = decode(pictures.confusable_pairs(sheet))
    found = {name: boxes(near(picture, colour, 2), 50) for name, colour in HEX.items()}
    assert {name: len(cells) for name, cells in found.items()} == {"red": 4, "lime": 4, "fuchsia": 1, "yellow": 3}
    assert len({cell[2:] for cells in found.values() for cell in cells}) == 1  # of one size
    assert len({cell[1] for cell in found["red"] + found["lime"]}) == 1  # on one line
    assert max(cell[0] for cell in found["red"]) < min(cell[0] for cell in found["lime"])
    assert found["red"][0][1] < found["yellow"][0][1] == found["fuchsia"][0][1]
    right, left = found["red"][-1], found["lime"][0]
    between = picture[right[1] : right[1] + right[3], right[0] + right[2] + 4 : left[0] - 4]
    assert near(between, LIGHT.accent).sum() > 100  # the cosine stands between the two


def test_pairs_of_tall_images_stand_two_on_a_line() -> None:
    tall = [solid(128, 64, 255, 0, 0)] * 4
    picture = decode(pictures.confusable_pairs([("a", "b", 0.9, tall, tall)] * 3))
    found = boxes(near(picture, "#ff0000", 2), 50)
    assert len(found) == 24
    assert [len([cell for cell in found if cell[1] == top]) for top in sorted({cell[1] for cell in found})] == [16, 8]
    assert all(abs(height - 2 * width) <= 2 for _, _, width, height in found)


@pytest.mark.parametrize("dark", [False, True])
def test_galleries_frame_right_in_green_and_wrong_in_red(dark: bool) -> None:
    theme = DARK if dark else LIGHT
    grey = solid(40, 40)
    rights: list[list[bool | None]] = [[True, False, False, True, True], [False, True], [None, None, None]]
    rows = [(grey, "query", [(grey, 0.9, right) for right in row]) for row in rights]
    picture = decode(pictures.ranked_galleries(rows, dark=dark))
    cells = boxes(near(picture, "#808080", 2), 100)
    assert len(cells) == 3 + 10
    tops = sorted({cell[1] for cell in cells})
    for top, row in zip(tops, rights, strict=True):
        line = [cell for cell in cells if cell[1] == top]
        colours = [picture[y + h // 2, x - 3] for x, y, w, h in line]  # in the middle of the frame's left edge
        wanted = {True: theme.right, False: theme.wrong, None: theme.paper}  # a neutral frame is thinner than that
        expected = [theme.accent, *(wanted[right] for right in row)]
        assert ["#" + bytes(colour).hex() for colour in colours] == expected
        for (x, y, w, h), right in zip(line[1:], row, strict=True):  # a sign and the cosine below, in the same colour
            below = picture[y + h + 10 : y + h + 44, x : x + w]
            assert near(below, theme.muted if right is None else expected[line.index((x, y, w, h))]).any()


def test_green_and_red_are_what_they_are_called_and_signs_differ() -> None:
    for theme in (LIGHT, DARK):
        (r, g, b), (r2, g2, b2) = (tuple(bytes.fromhex(colour[1:])) for colour in (theme.right, theme.wrong))
        assert g > max(r, b)
        assert r2 > max(g2, b2)
    white = solid(40, 40, 255, 255, 255)
    shapes = []
    for right, colour in ((True, LIGHT.right), (False, LIGHT.wrong)):
        picture = decode(pictures.ranked_galleries([(white, "q", [(white, 0.5, right)])]))
        below = picture[boxes(near(picture, colour), 100)[0][1] + 200 :]
        shapes.append(near(below, colour, 80))
    assert (shapes[0] != shapes[1]).sum() > 30  # distinguishable without colours, too


def test_galleries_wrap_after_ten() -> None:
    grey = solid(40, 20)
    picture = decode(pictures.ranked_galleries([(grey, "q", [(grey, 0.5, True)] * 23)]))
    cells = boxes(near(picture, "#808080", 2), 50)
    assert [len([cell for cell in cells if cell[1] == top]) for top in sorted({cell[1] for cell in cells})] == [11, 10, 3]


@pytest.mark.parametrize(("cosine", "same"), [(0.8, True), (0.2, False), (-7.0, False), (math.nan, False)])
def test_two_images_show_the_verdict_and_the_scale(cosine: float, same: bool) -> None:
    a, b = solid(30, 30, 255, 0, 0), solid(300, 300, 0, 255, 0)
    picture = decode(pictures.two_images(a, b, cosine, 0.5, same))
    (left,), (right,) = boxes(near(picture, "#ff0000", 2), 100), boxes(near(picture, "#00ff00", 2), 100)
    assert left[1:] == right[1:]
    assert left[0] < right[0]
    colour, other = (LIGHT.accent, LIGHT.mark) if same else (LIGHT.mark, LIGHT.accent)
    assert near(picture, colour).any()
    assert not near(picture, other, 8).any()
    scale = picture[right[1] + right[3] + 150 : right[1] + right[3] + 190]
    marker, threshold = columns(near(scale, colour, 2)), columns(near(scale, LIGHT.ink, 2))
    assert threshold.mean() == pytest.approx((300 + 240 * 0.5) * SCALE, abs=2)
    if math.isnan(cosine):
        assert len(marker) == 0
    else:
        assert marker.mean() == pytest.approx((300 + 240 * max(cosine, -1.0)) * SCALE, abs=2)


ONE = np.zeros((1, 1, 3), np.uint8)
FLAT = np.zeros((1, 700, 3), np.uint8)


@pytest.mark.parametrize(
    "draw",
    [
        lambda dark: pictures.difficulty_over_time([], dark=dark),
        lambda dark: pictures.difficulty_over_time([(0, [])], dark=dark),
        lambda dark: pictures.confusable_pairs([], dark=dark),
        lambda dark: pictures.confusable_pairs([(ODD, "", 1.0, [ONE, FLAT], [])], dark=dark),
        lambda dark: pictures.confusable_pairs([("a", "b", 1.0, [], [])], dark=dark),
        lambda dark: pictures.ranked_galleries([], dark=dark),
        lambda dark: pictures.ranked_galleries([(ONE, ODD, [])], dark=dark),
        lambda dark: pictures.ranked_galleries([(FLAT, ODD, [(ONE, math.nan, None), (ONE, -1.0, True)])], dark=dark),
        lambda dark: pictures.two_images(ONE, FLAT, 1.0, math.nan, True, dark=dark),
    ],
)
def test_boundaries_give_a_picture_on_the_right_ground(draw: Callable[[bool], bytes]) -> None:
    for dark, theme in ((False, LIGHT), (True, DARK)):
        picture = decode(draw(dark))
        assert "#" + bytes(picture[0, 0]).hex() == theme.paper
        assert 0.003 < 1 - near(picture, theme.paper, 2).mean() < 0.999  # something is on it
