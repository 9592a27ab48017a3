"""The picture of a sweep: what suits the kind of a setting, and which trial is the best."""

import math

import cv2
import numpy as np
from matplotlib.figure import Figure

from trainers.reports.drawing import LIGHT
from trainers.reports.sweep import relation, relations

TRIALS = [
    ({"lr": 1e-3, "clusters": 2, "weighting": True, "strength": 0.01}, 0.5, True),
    ({"lr": 1.5e-3, "clusters": 8, "weighting": False, "strength": 1.0}, 0.7, False),
    ({"lr": 2e-3, "clusters": 4, "weighting": True, "strength": 0.1}, 0.6, True),
]


def test_axes_suit_their_settings() -> None:
    scales, labels, best = {}, {}, set()
    for name in TRIALS[0][0]:
        panel = Figure().subplots()
        relation(panel, TRIALS, name, LIGHT)
        scales[name] = panel.get_xscale()
        labels[name] = [label.get_text() for label in panel.get_xticklabels()]
        best.add(tuple(panel.lines[-1].get_ydata()))
    assert scales == {"lr": "linear", "clusters": "linear", "weighting": "linear", "strength": "log"}
    assert labels["clusters"] == ["2", "4", "8"]
    assert labels["weighting"] == ["no", "yes"]
    assert best == {(0.6,)}  # the best of those that ran to their end, as best.json


def labels_of(values: list[object]) -> dict[str, float]:
    """The labels under a panel with these values, and their rotations."""
    panel = Figure().subplots()
    relation(panel, [({"x": value}, 0.5, True) for value in values], "x", LIGHT)
    return {label.get_text(): label.get_rotation() for label in panel.get_xticklabels()}


def test_texts_and_missing_values_stand_side_by_side_and_long_ones_are_tilted() -> None:
    assert labels_of(["uniform", "pk", "uniform"]) == {"pk": 0, "uniform": 0}
    assert labels_of([None, 0.5, 0.25]) == {"0.25": 0, "0.5": 0, "None": 0}
    letters = [letter * 4 for letter in "abcdefg"]
    assert labels_of(letters) == dict.fromkeys(letters, 30)
    long = labels_of([f"package.module.models:function_of_{whose}" for whose in ("mine", "yours")])
    assert list(long.values()) == [30, 30]
    assert max(map(len, long)) < 20


def test_the_whole_picture() -> None:
    light, dark = (cv2.imdecode(np.frombuffer(relations(TRIALS, dark), np.uint8), 1) for dark in (False, True))
    assert light.shape == dark.shape == (2 * 290, 2 * 960, 3)
    assert light.mean() > 200 > 60 > dark.mean()
    nothing = relations([({"lr": 1e-3}, math.nan, False)])
    assert cv2.imdecode(np.frombuffer(nothing, np.uint8), 1).shape[0] == 192
    failed = ({"lr": 1e-3, "other": 1.0}, math.nan, False)
    assert relations([*TRIALS, failed]) == relations(TRIALS)
