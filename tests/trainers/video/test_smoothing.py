"""Viterbi decoding of frame-wise models: against a search through all labellings, and that smoothing is chosen by errors."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.tasks.video.smoothing import CHOICES, Smoothing, actions_of, best_smoothing, errors_of, viterbi


def runs_of(path: tuple[int, ...]) -> list[tuple[int, int]]:
    """Each run of equal outputs: the output, and its length."""
    return [(output, len(list(run))) for output, run in itertools.groupby(path)]


@given(
    seed=st.integers(0, 10**6), frames=st.integers(0, 6), outputs=st.integers(1, 3), shortest=st.integers(1, 4),
    penalty=st.sampled_from([0.0, 0.5, 3.0]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_viterbi_finds_the_best_of_all_labellings(seed: int, frames: int, outputs: int, shortest: int, penalty: float) -> None:
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(outputs), frames))

    def score(path: tuple[int, ...]) -> float:
        runs = runs_of(path)
        if any(output and length < min(shortest, frames) for output, length in runs):
            return -np.inf
        return float(log_probs[np.arange(frames), list(path)].sum()) - penalty * max(len(runs) - 1, 0)

    path = viterbi(log_probs, Smoothing(shortest, penalty))
    assert path.shape == (frames,)
    best = max(score(other) for other in itertools.product(range(outputs), repeat=frames))
    np.testing.assert_allclose(score(tuple(path.tolist())), best, atol=1e-9)


def test_the_smoothing_with_the_fewest_errors_is_chosen() -> None:
    """An action of 8 frames, in which single frames look like another one: without smoothing these are errors."""
    log_probs = np.log(np.full((8, 3), 0.1))
    log_probs[:, 1] = np.log(0.8)
    log_probs[3] = np.log([0.1, 0.2, 0.7])
    errors = errors_of([(log_probs, (0,))])
    assert errors[CHOICES.index(Smoothing(1, 0.0))] == 2
    best = best_smoothing(errors)
    assert best == Smoothing(1, 1.0)
    assert actions_of(viterbi(log_probs, best)) == (0,)
    assert actions_of(np.array([0, 1, 1, 0, 1, 3, 0])) == (0, 0, 2)
