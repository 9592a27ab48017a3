"""Metrics of single actions and of sequences: against scikit-learn and by their properties."""

import math
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, top_k_accuracy_score

from trainers.tasks.video.metrics import (
    aligned,
    classification_figures,
    confusion,
    edit_distance,
    frame_counts,
    frame_f1,
    report_delays,
    sequence_figures,
)


@given(
    a=st.lists(st.integers(0, 3), max_size=8),
    b=st.lists(st.integers(0, 3), max_size=8),
    c=st.lists(st.integers(0, 3), max_size=8),
)
def test_edit_distance_is_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    distance = edit_distance(a, b)
    assert distance == edit_distance(b, a)
    assert (distance == 0) == (a == b)
    assert distance <= edit_distance(a, c) + edit_distance(c, b)
    matched = sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b), len(a) + len(b) - 2 * matched)


def test_edit_distance_by_example() -> None:
    assert edit_distance("kitten", "sitting") == 3  # type: ignore[arg-type]
    assert sequence_figures([[1, 2], [], [3, 3]], [[1, 2], [1, 2], [3]]) == {"edit": 3 / 5, "exact": 1 / 3}


@given(a=st.lists(st.integers(0, 3), max_size=8), b=st.lists(st.integers(0, 3), max_size=8))
def test_an_alignment_explains_the_edit_distance(a: list[int], b: list[int]) -> None:
    """What lies between two matched actions is replaced, inserted or left out, and this costs what the distance says."""
    pairs = aligned(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    ends = [(-1, -1), *pairs, (len(a), len(b))]
    gaps = [(i2 - i1 - 1, j2 - j1 - 1) for (i1, j1), (i2, j2) in pairwise(ends)]
    assert min(min(gap) for gap in gaps) >= 0
    assert sum(max(gap) for gap in gaps) == edit_distance(a, b)


def test_delays_count_from_the_end_of_an_action() -> None:
    labels = np.array([0, 0, 0, -1, -1, 1, 1, 1, -1, 1, 1])
    assert report_delays([(0, 1), (1, 9), (1, 13)], [0, 1, 1], labels) == [-1, 2, 3]
    assert report_delays([(2, 1), (1, 9)], [0, 1, 1], labels) in ([2], [-1])  # one of the two equal actions was found
    assert report_delays([(0, 1)], [0, 1], labels) == []  # the labels have another order of actions
    assert report_delays([(0, 1)], [], np.zeros(0, np.int64)) == []


def test_frame_f1_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(-1, 4, 200), rng.integers(-1, 3, 200)
    counts = sum(frame_counts(predicted[part], true[part], 5) for part in (slice(90), slice(90, None)))
    occurring = [0, 1, 2]
    assert frame_f1(counts) == pytest.approx(f1_score(true, predicted, labels=occurring, average="macro"))  # type: ignore[arg-type]
    assert math.isnan(frame_f1(frame_counts(predicted, np.full(200, -1), 5)))


def test_classification_figures_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 9)).astype(np.float32), rng.integers(0, 9, 300)
    figures = classification_figures(logits, labels)
    assert figures["top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1))
    assert figures["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert confusion(logits, labels).sum() == 300
    assert figures["mean_class"] == pytest.approx(np.mean([(logits.argmax(1) == c)[labels == c].mean() for c in range(9)]))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_equal_logits_count_as_errors(seed: int, classes: int) -> None:
    """Against scikit-learn on logits among which many are equal, the true one's being lowered by next to nothing."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 4, (40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    lowered = logits.copy()
    lowered[np.arange(40), labels] -= 0.5
    figures, every = classification_figures(logits, labels), list(range(classes))
    for name, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, lowered, k=k, labels=every) if k < classes else 1
        assert figures[name] == pytest.approx(expected)
    right = (lowered.argmax(1) == labels) & (np.sort(lowered)[:, -1] > np.sort(lowered)[:, -2])
    assert figures["mean_class"] == pytest.approx(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def test_a_model_that_gives_equal_logits_scores_0() -> None:
    labels = np.arange(12) % 6
    for logits in (np.zeros((12, 6), np.float32), np.full((12, 6), np.nan, np.float32)):
        figures = classification_figures(logits, labels)
        assert [figures[name] for name in ("top1", "top5", "mean_class")] == [0, 0, 0]
    all_five = classification_figures(np.zeros((4, 5), np.float32), labels[:4])
    assert all_five["top5"] == 1  # of five classes all are among the first five
