"""Decodes frame-wise models: the best labelling of frames in which actions last, with the least of jumps. T frames, C classes."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from trainers.tasks.video.ctc_decoding import BLANK, Floats
from trainers.tasks.video.metrics import Int64s, edit_distance

SHORTEST = (1, 2, 4, 8, 12)  # what `best_smoothing` chooses from
PENALTIES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


class Smoothing(NamedTuple):
    """``shortest``: frames that an action lasts at least; ``penalty``: subtracted from the log-probability for each change."""

    shortest: int
    penalty: float


CHOICES = tuple(Smoothing(shortest, penalty) for shortest in SHORTEST for penalty in PENALTIES)


def viterbi(log_probs: Floats, smoothing: Smoothing) -> Int64s:
    """The outputs [T] of frames with the greatest sum of log-probabilities [T, C + 1] minus the penalties of changes, among those
    in which each run of an action has ``shortest`` frames or more (all T, if there are fewer); output 0, no action, may be short.

    A hidden semi-Markov model in which all changes are equally probable.
    """
    frames, outputs = log_probs.shape
    if frames == 0:
        return np.zeros(0, np.int64)
    shortest = np.full(outputs, min(smoothing.shortest, frames))
    shortest[BLANK] = 1
    sums = np.concatenate([np.zeros((1, outputs)), np.cumsum(log_probs, axis=0, dtype=np.float64)])
    entry = np.zeros((frames + 1, outputs))  # best score of the frames before t, if a run of an output begins at t
    entry[1:] = -np.inf
    score = np.full((frames + 1, outputs), -np.inf)  # best score of the frames before t, if a run of an output ends there
    began = np.zeros((frames + 1, outputs), np.int64)  # where that run began
    best, start = np.full(outputs, -np.inf), np.zeros(outputs, np.int64)
    every = np.arange(outputs)
    for t in range(1, frames + 1):
        ready = every[t >= shortest]
        latest = t - shortest[ready]  # the latest start of a run that is long enough
        gain = entry[latest, ready] - sums[latest, ready]
        better = gain > best[ready]
        best[ready[better]], start[ready[better]] = gain[better], latest[better]
        score[t], began[t] = best + sums[t], start
        entry[t] = _best_of_others(score[t]) - smoothing.penalty
    return _traced(score, began)


def _best_of_others(scores: Floats) -> Floats:
    """For each output the best score of the other ones."""
    if len(scores) == 1:
        return np.array([-np.inf])
    second, first = np.argsort(scores)[-2:]
    out: Floats = np.full(len(scores), scores[first])
    out[first] = scores[second]
    return out


def _traced(score: Floats, began: Int64s) -> Int64s:
    """The labelling whose last run has the best score, found backwards."""
    end, path = len(score) - 1, np.zeros(len(score) - 1, np.int64)
    output = int(score[end].argmax())
    while True:
        first = int(began[end, output])
        path[first:end] = output
        if first == 0:
            return path
        others = score[first].copy()
        others[output] = -np.inf
        end, output = first, int(others.argmax())


def actions_of(path: Int64s) -> tuple[int, ...]:
    """The actions of a labelling of frames, in order."""
    return tuple(int(output) - 1 for output, _ in groupby(path.tolist()) if output != BLANK)


def errors_of(tables: Iterable[tuple[Floats, Sequence[int]]]) -> Int64s:
    """The sum of edit distances for each of `CHOICES`, of videos: log-probabilities [T, C + 1] and the true actions."""
    total = np.zeros(len(CHOICES), np.int64)
    for log_probs, true in tables:
        total += [edit_distance(actions_of(viterbi(log_probs, choice)), true) for choice in CHOICES]
    return total


def best_smoothing(errors: Int64s) -> Smoothing:
    """The choice with the fewest errors; of equal ones the first, which smooths least."""
    return CHOICES[int(errors.argmin())]
