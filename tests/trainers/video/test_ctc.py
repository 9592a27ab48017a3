"""CTC: its loss and decoding, against a sum over all alignments."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.tasks.video.ctc_decoding import Event, Greedy, greedy, prefix_beam
from trainers.tasks.video.ctc_loss import ctc, even_targets, feasible, frame_wise


def log_probs(frames: int, classes: int, seed: int, sharp: float = 1.0) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(frames, classes + 1)) * sharp
    return raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(output - 1 for output, _ in itertools.groupby(path) if output)


def by_brute_force(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every sequence: the sum over all alignments."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        p = math.exp(sum(table[t, output] for t, output in enumerate(path)))
        sums[collapsed(path)] = sums.get(collapsed(path), 0.0) + p
    return sums


@given(frames=st.integers(1, 5), classes=st.integers(1, 3), seed=st.integers(0, 99), sharp=st.floats(0.1, 4))
@settings(max_examples=30)
def test_prefix_beam_sums_over_alignments(frames: int, classes: int, seed: int, sharp: float) -> None:
    table = log_probs(frames, classes, seed, sharp)
    true = by_brute_force(table)
    found = prefix_beam(table, width=len(true) + 1)
    assert dict(found) == pytest.approx({sequence: math.log(p) for sequence, p in true.items()}, abs=1e-4)
    assert found[0][1] == pytest.approx(math.log(max(true.values())), abs=1e-6)


def test_a_narrow_beam_beats_greedy_where_alignments_add_up() -> None:
    table = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blank-blank 0.36; the action 0.64 in three alignments
    assert greedy(table) == []
    assert prefix_beam(table, width=2)[0] == ((0,), pytest.approx(math.log(0.64)))


@given(frames=st.integers(0, 30), seed=st.integers(0, 99))
def test_greedy_collapses_the_best_path(frames: int, seed: int) -> None:
    table = log_probs(frames, 3, seed)
    events = greedy(table)
    assert tuple(event.action for event in events) == collapsed(tuple(table.argmax(axis=1).tolist()))
    assert all(table[event.frame].argmax() == event.action + 1 for event in events)


@given(seed=st.integers(0, 99), threshold=st.floats(0, 0.9), cuts=st.lists(st.integers(0, 40), max_size=8))
def test_greedy_in_pieces_is_greedy_at_once(seed: int, threshold: float, cuts: list[int]) -> None:
    table, piecewise = log_probs(40, 4, seed, 2.0), Greedy(threshold)
    bounds = [0, *sorted(cuts), 40]
    pieces = [event for a, b in itertools.pairwise(bounds) for event in piecewise.feed(table[a:b])]
    assert pieces == greedy(table, threshold)
    assert all(event.probability > threshold for event in pieces)


def test_an_action_is_reported_in_its_first_frame_above_the_threshold() -> None:
    p = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    assert greedy(np.log(p), 0.75) == [Event(0, 1, pytest.approx(0.9))]
    assert [event.frame for event in greedy(np.log(p))] == [0, 4]


@given(frames=st.integers(1, 5), actions=st.lists(st.integers(0, 2), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_ctc_is_the_sum_over_alignments_and_feasible_says_when_there_are_any(frames: int, actions: list[int], seed: int) -> None:
    table = log_probs(frames, 3, seed)
    p = by_brute_force(table).get(tuple(actions), 0.0)
    assert feasible(frames, actions) == (p > 0)
    padded = torch.full((1, 6), -1)
    padded[0, : len(actions)] = torch.tensor(actions)
    tail = torch.zeros(1, 3, 4)  # frames after the video's end
    loss = ctc(torch.cat([torch.from_numpy(table)[None].float(), tail], dim=1), torch.tensor([frames]), padded)
    assert float(loss) == pytest.approx(-math.log(p) / len(actions) if p else 0.0, abs=1e-4)


def test_frame_wise_losses() -> None:
    table = torch.from_numpy(log_probs(4, 2, 0))[None]
    targets = torch.tensor([[0, -1, 1, 1]])
    expected = -(table[0, 0, 1] + table[0, 1, 0] + table[0, 2, 2]) / 3
    assert float(frame_wise(table, torch.tensor([3]), targets)) == pytest.approx(float(expected))
    even = even_targets(torch.tensor([5, 3]), torch.tensor([[2, 0, -1], [1, 1, 0]]))
    assert even.tolist() == [[2, 2, 2, 0, 0], [1, 1, 0, -1, -1]]
