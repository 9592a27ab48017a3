"""The curves of a comparison: an arm's mean at the steps that all its runs have, and arms that have none."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes

from trainers.reports import arm_curves as module
from trainers.reports.arm_curves import COLOURS, DASHES, arm_curves

Runs = list[list[dict[str, float]]]


def pixels(png: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def run(values: Mapping[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "top1": value} for step, value in values.items()]


def test_a_curve_is_the_mean_at_common_steps_within_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Sequence[float], Sequence[float]]] = []
    bands: list[tuple[Sequence[float], Sequence[float]]] = []
    plot, fill = Axes.plot, Axes.fill_between

    def plotted(self: Axes, x: Sequence[float], y: Sequence[float], **how: object) -> object:
        drawn.append((list(x), list(y)))
        return plot(self, x, y, **how)

    def filled(self: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], **how: object) -> object:
        bands.append((list(low), list(high)))
        return fill(self, x, low, high, **how)

    monkeypatch.setattr(module.Axes, "plot", plotted)
    monkeypatch.setattr(module.Axes, "fill_between", filled)
    arms: dict[str, Runs] = {
        "a": [run({0: 0.0, 50: 0.2, 100: 0.4}), run({0: 0.2, 100: 0.8})],
        "none": [],
        "b": [run({0: 0.1, 9: 0.5})],
    }
    assert pixels(arm_curves(arms, {"top1": "top 1", "absent": "absent"})).shape[1] == 1920
    assert drawn == [([0, 100], [pytest.approx(0.1), pytest.approx(0.6)]), ([0, 9], [0.1, 0.5])]
    assert bands == [([0.0, 0.4], [0.2, 0.8])]


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_to_draw_is_said(dark: bool) -> None:
    assert pixels(arm_curves({"a": []}, {"top1": "top 1"}, dark=dark)).size


def test_arms_differ_in_colour_or_dashes() -> None:
    assert len({(c, d) for d in DASHES for c in COLOURS}) == len(COLOURS) * len(DASHES) >= 20
