"""From each frame's probabilities to a sequence of actions. T frames, C classes; outputs [T, C + 1], 0 the blank."""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BLANK = 0
NEGLIGIBLE = math.log(1e-9)  # of an action in a frame: the beam search does not follow it
Floats = npt.NDArray[np.floating[Any]]


class Event(NamedTuple):
    """An action that was recognised: its class, the frame that told it, and its probability there."""

    action: int
    frame: int
    probability: float


class Greedy:
    """Greedy decoding that may be fed in pieces: the best output of each frame, repeats collapsed, blanks left out.

    An action is told in the first frame of its run whose probability is above ``threshold``; with 0 that is the run's first.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold, self.frame = threshold, 0
        self._last, self._told = BLANK, False

    def feed(self, log_probs: Floats) -> list[Event]:
        """The next frames' log-probabilities [t, C + 1]; the actions that they tell, with frames counted from the start."""
        events = []
        for row in log_probs:
            best = int(row.argmax())
            if best != self._last:
                self._last, self._told = best, False
            probability = math.exp(float(row[best]))
            if best != BLANK and not self._told and probability > self.threshold:
                self._told = True
                events.append(Event(best - 1, self.frame, probability))
            self.frame += 1
        return events


def greedy(log_probs: Floats, threshold: float = 0.0) -> list[Event]:
    """Greedy decoding of a whole video, [T, C + 1]."""
    return Greedy(threshold).feed(log_probs)


def prefix_beam(log_probs: Floats, width: int = 8) -> list[tuple[tuple[int, ...], float]]:
    """Prefix beam search (Graves, 2012; Hannun et al., arXiv 1408.2873): sequences with the log of their probability, best first.

    Alignments of one sequence are summed up as long as it stays among the ``width`` best.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # log p of ending in a blank, and in an action
    for row in np.asarray(log_probs, np.float64):
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        candidates = np.flatnonzero(row[1:] > NEGLIGIBLE).tolist()
        for prefix, (blank, action) in beams.items():
            both = np.logaddexp(blank, action)
            grown[prefix][0] = np.logaddexp(grown[prefix][0], both + row[BLANK])
            if prefix:
                grown[prefix][1] = np.logaddexp(grown[prefix][1], action + row[prefix[-1] + 1])
            for new in candidates:
                before = blank if prefix and prefix[-1] == new else both  # the same action again needs a blank between
                longer = grown[(*prefix, new)]
                longer[1] = np.logaddexp(longer[1], before + row[new + 1])
        totals = {prefix: float(np.logaddexp(parts[0], parts[1])) for prefix, parts in grown.items()}
        best = sorted((prefix for prefix in grown if totals[prefix] > -math.inf), key=lambda prefix: -totals[prefix])[:width]
        beams = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [(prefix, float(np.logaddexp(*parts))) for prefix, parts in beams.items()]
