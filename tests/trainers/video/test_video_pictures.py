"""Pictures of clips: they show what they are given, whatever it is."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from matplotlib.image import imread

from trainers.tasks.video.pictures import FILM, Film, confusion_picture, film_of, films_picture, timeline

FRAME = np.full((24, 32, 3), 200, np.uint8)
TABLE = np.log(np.random.default_rng(0).dirichlet(np.ones(13), 40))
TIMES = np.arange(40) / 25
NAMES = ["a very long name of an action that must be cut somewhere", "$x_1$", "été", *"defghijkl"]


def draw_timeline(film: list[np.ndarray], dark: bool = False) -> bytes:
    return timeline(TABLE, TIMES, [(NAMES[0], 0.2), (NAMES[1], 1.5)], NAMES, film, NAMES[:3], dark=dark)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        partial(draw_timeline, []), partial(draw_timeline, [FRAME] * 3), partial(timeline, TABLE[:1], TIMES[:1], [], NAMES),
        partial(confusion_picture, np.eye(12, dtype=np.int64), NAMES),
        partial(confusion_picture, np.ones((99, 99), np.int64), ["x"] * 99),
        partial(films_picture, [([FRAME] * FILM, NAMES[0] * 5), ([FRAME[:9]], "b")]),
    ],
)  # fmt: skip
def test_pictures_are_drawn(draw: Callable[..., bytes], dark: bool) -> None:
    pixels = imread(io.BytesIO(draw(dark=dark)))
    assert pixels.shape[1] >= 1900
    assert pixels[..., :3].std() > 0.01
    assert (pixels[2, 2, :3].mean() < 0.5) == dark


def test_nothing_to_show_is_said() -> None:
    for picture in (
        timeline(TABLE[:0], TIMES[:0], [], NAMES),
        confusion_picture(np.zeros((3, 3), np.int64), NAMES[:3]),
        films_picture([]),
    ):
        assert imread(io.BytesIO(picture))[..., :3].std() > 0.001  # something is on it


@pytest.mark.parametrize("count", [0, 1, FILM, 95])
def test_a_film_is_evenly_spread(count: int) -> None:
    images = [np.full((2, 2, 3), number, np.uint8) for number in range(count)]
    shown = [int(image[0, 0, 0]) for image in film_of(images)]
    assert shown == sorted(set(shown))
    assert len(shown) == min(count, FILM)
    film = Film()
    for image in images:
        film.add(image)
    kept = [int(image[0, 0, 0]) for image in film.images]
    assert min(count, FILM) <= len(kept) <= 2 * FILM
    assert len(set(np.diff(kept))) <= 1
