"""Figures of the face tasks against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from trainers.reports.confidence_intervals import interval
from trainers.tasks.attributes.metrics import auc, balanced_accuracy, correlation, nme, score, task_figures

scored = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=50)


@given(scored)
def test_classes_against_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    predicted, true = np.array([p[0] / 10 for p in pairs]), np.array([float(p[1]) for p in pairs])
    if len(set(true)) == 2:
        assert auc(predicted, true) == pytest.approx(roc_auc_score(true, predicted))
        assert balanced_accuracy(predicted, true) == pytest.approx(balanced_accuracy_score(true, predicted >= 0.5))
    else:
        assert math.isnan(auc(predicted, true))
        assert math.isnan(balanced_accuracy(predicted, true))


def test_correlation() -> None:
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert correlation(np.array([1.0, 2, 3]), np.array([3.0, 1, 2])) == pytest.approx(-0.5)
    assert math.isnan(correlation(np.ones(3), np.array([1.0, 2, 3])))


def test_nme_is_a_fraction_of_the_distance_of_the_eyes() -> None:
    true, moved = np.array([[0, 0, 1, 0, 0.5, 0.5]]), np.array([[0.1, 0, 0.1, 0, 0.1, 0]])
    assert nme(true + moved, true) == pytest.approx(0.1)
    assert nme(true * 2 + 0.2 / math.sqrt(2), true * 2) == pytest.approx(0.1)


def test_figures_of_what_is_known() -> None:
    predicted, true = np.array([[0.9], [0.2], [0.8], [0.7]]), np.array([[1.0], [0], [0], [np.nan]])
    found = task_figures("gender", predicted, true)
    assert found == {
        "gender.accuracy": pytest.approx(2 / 3),
        "gender.balanced": 0.75,
        "gender.auc": 1,
        "gender.skill": 0.5,
        "gender.n": 3,
    }
    assert task_figures("mask", predicted, np.full((4, 1), np.nan)) == {}


def test_mean_errors_and_skill() -> None:
    true = np.array([[20.0], [30], [40]])
    assert task_figures("age", true + 5, true) == {"age.mae": 5, "age.skill": pytest.approx(0.25), "age.n": 3}
    assert task_figures("age", np.full((3, 1), 30.0), true)["age.skill"] == 0
    angles = np.array([[np.nan, np.nan, 10], [np.nan, np.nan, -10.0]])
    assert task_figures("pose", np.array([[0, 0, 8], [0, 0, -8.0]]), angles) == {
        "pose.roll_mae": 2,
        "pose.skill": 0.8,
        "pose.n": 2,
    }


def test_score_is_the_mean_of_skills() -> None:
    assert score({"a.skill": 0.5, "b.skill": 1.0, "b.accuracy": 0.1}) == {"score": 0.75}
    assert score({"a.accuracy": 0.5}) == {}


def test_interval_by_t() -> None:
    assert interval([1.0, 2, 3]) == (2, pytest.approx(4.303 / math.sqrt(3)))
    assert interval([2.0, 2]) == (2, 0)
    assert interval([1.0])[1] == math.inf
    assert interval([float(i % 2) for i in range(100)])[1] == pytest.approx(2.042 * 0.502519 / 10, rel=1e-4)


def test_what_one_class_alone_does_not_determine_is_left_out() -> None:
    found = task_figures("mask", np.array([[0.9], [0.2]]), np.array([[1.0], [1.0]]))
    assert found == {"mask.accuracy": 0.5, "mask.n": 2}


@pytest.mark.parametrize(("task", "columns"), [("gender", 1), ("quality", 1), ("age", 1), ("keypoints", 10), ("pose", 3)])
def test_labels_that_are_all_the_same_give_no_skill(task: str, columns: int) -> None:
    true = np.full((4, columns), 1.0, np.float32)
    found = task_figures(task, true + np.float32(0.5), true)
    assert f"{task}.n" in found
    assert f"{task}.skill" not in found


def test_labels_that_hardly_differ_do_not_decide_a_score() -> None:
    true = np.full((1000, 1), 30.0)
    true[0] = 31
    assert task_figures("age", true + 5, true)["age.skill"] == -1
