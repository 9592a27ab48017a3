"""Decodes the probabilities of frames to a sequence of actions. T frames, C classes; outputs [T, C + 1], 0 the blank."""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BLANK = 0
NEGLIGIBLE = math.log(1e-9)  # the beam search ignores actions of lower probability in a frame
Floats = npt.NDArray[np.floating[Any]]


class Event(NamedTuple):
    """A recognised action: its class, the frame in which it was recognised, and its probability there."""

    action: int
    frame: int
    probability: float


class Greedy:
    """Greedy decoding, chunk by chunk: the best output of each frame, with repeats collapsed and blanks removed.

    A run of frames with the same best output is one action. It is reported in the first frame of the run whose probability is
    above ``threshold``, with threshold 0 in the run's first frame.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold, self.frame = threshold, 0
        self._last, self._reported = BLANK, False

    def feed(self, log_probs: Floats) -> list[Event]:
        """Decode the next frames' log-probabilities [t, C + 1]; returns new actions, with frames counted from the first call."""
        events = []
        for row in log_probs:
            best = int(row.argmax())
            if best != self._last:
                self._last, self._reported = best, False
            probability = math.exp(float(row[best]))
            if best != BLANK and not self._reported and probability > self.threshold:
                self._reported = True
                events.append(Event(best - 1, self.frame, probability))
            self.frame += 1
        return events


def greedy(log_probs: Floats, threshold: float = 0.0) -> list[Event]:
    """Greedy CTC decoding of a whole video: the most probable class of each frame, repeats merged and blanks dropped.

    ``log_probs`` [T, C + 1], column 0 is the blank. An action is returned with the first frame whose probability for it exceeds
    ``threshold`` (0..1).
    """
    return Greedy(threshold).feed(log_probs)


def prefix_beam(log_probs: Floats, width: int = 8) -> list[tuple[tuple[int, ...], float]]:
    """Prefix beam search (Graves, 2012; Hannun et al., arXiv 1408.2873): sequences and their log-probabilities, best first.

    ``log_probs`` [T, C + 1]. The probabilities of a sequence's alignments are summed while it is among the ``width`` best.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {
        (): (0.0, -math.inf)
    }  # log-probabilities: ends in a blank, ends in an action
    for row in np.asarray(log_probs, np.float64):
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        candidates = np.flatnonzero(row[1:] > NEGLIGIBLE).tolist()
        for prefix, (blank, action) in beams.items():
            both = np.logaddexp(blank, action)
            grown[prefix][0] = np.logaddexp(grown[prefix][0], both + row[BLANK])
            if prefix:
                grown[prefix][1] = np.logaddexp(grown[prefix][1], action + row[prefix[-1] + 1])
            for new in candidates:
                before = blank if prefix and prefix[-1] == new else both  # a repeated action needs a blank in between
                longer = grown[(*prefix, new)]
                longer[1] = np.logaddexp(longer[1], before + row[new + 1])
        totals = {prefix: float(np.logaddexp(parts[0], parts[1])) for prefix, parts in grown.items()}
        best = sorted((prefix for prefix in grown if totals[prefix] > -math.inf), key=lambda prefix: -totals[prefix])[:width]
        beams = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [(prefix, float(np.logaddexp(*parts))) for prefix, parts in beams.items()]
