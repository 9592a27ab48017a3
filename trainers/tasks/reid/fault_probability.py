"""Probabilities of faults: candidates are compared with simulated faults by a few statistics of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from trainers.tasks.reid.feature_groups import Floats

NEWTON = 25  # steps
RIDGE = 0.03  # of the ranking, whose sides may lie far apart, so that each statistic keeps its weight
CLEAR = 20.0  # evidence for faults, in nats
BELOW = 100  # candidates below the simulated faults that the form of the others is fitted to, at least
# Of the fit: bounds of a, g, b and d; starts, as one alone may lead to a local optimum; the largest share of faults among
# candidates, as features that tell nothing apart would allow more, with the weight of that limit; the logarithm of no share.
BOUNDS = ((-20.0, 0.0), (0.0, 3.0), (-30.0, 5.0), (0.3, 30.0))
STARTS = ((-3, 0, -5, 2), (-3, 1.5, -5, 6), (-5, 0, -5, 6), (-5, 1.5, -5, 2))
MOST, FIRM = 0.3, 1e6
NEVER = -40


class Logistic:
    """A logistic regression of statistics, yes [Y, S] against no [N, S], by Newton's method; ``even``: both weigh the same."""

    def __init__(self, yes: Floats, no: Floats, *, even: bool, ridge: float) -> None:
        rows = np.concatenate([no, yes])
        self._middle, self._scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
        label = np.arange(len(rows)) >= len(no)
        weight = np.where(label, 0.5 / max(len(yes), 1), 0.5 / max(len(no), 1)) if even else np.full(len(rows), 1 / len(rows))
        rows = self._columns(rows)
        self._factor = np.zeros(rows.shape[1])
        for _ in range(NEWTON):
            chance = sigmoid(rows @ self._factor)
            slope = rows.T @ (weight * (label - chance)) - ridge * self._factor
            curve = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + ridge * np.eye(len(self._factor))
            self._factor = self._factor + np.linalg.solve(curve, slope)

    def scores(self, rows: Floats) -> Floats:
        """The log odds of rows [R, S], [R]."""
        found: Floats = self._columns(rows) @ self._factor
        return found

    def chance(self, rows: Floats) -> Floats:
        """The probabilities of rows [R, S], [R]."""
        return sigmoid(self.scores(rows))

    def _columns(self, rows: Floats) -> Floats:
        return np.concatenate([(rows - self._middle) / self._scale, np.ones((len(rows), 1))], axis=1)


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return found


class Posterior(NamedTuple):
    """Probabilities of the candidates, [C], and the evidence for faults among them: the log likelihood gained by their term."""

    probability: Floats
    evidence: float


def first_clear(tried: Sequence[Posterior]) -> Posterior:
    """The first of several simulations that gives clear evidence; the very first if none does."""
    return next((fitted for fitted in tried if fitted.evidence > CLEAR), tried[0])


def posterior(candidates: Floats, faults: Floats) -> Posterior:
    """The probability that a candidate is a fault, from the statistics of the candidates [C, S] and of simulated faults [F, S].

    A logistic regression of simulated faults against candidates gives each a score u. Among the candidates are faults and others.
    The ratio of the candidates' density to that of simulated faults is modelled as

        r(u) = exp(a - g u) + exp(b - (g + d) u),   d > 0

    The second term is the others': it falls with u. The first one is the faults': were the simulation exact, it would be their
    share, and g = 0. A model that was trained with faults has partly learnt them, so that they look less like faults than
    simulated ones. That is what g >= 0 makes up for: densities of one form, moved, differ by such a factor. The four numbers
    have the largest likelihood for which scores are candidates' and which are simulated, and the probability is the first term's
    share of r. Only scores near and above the simulated ones take part, as the form holds there.
    """
    if not len(candidates) or not len(faults):
        return Posterior(np.zeros(len(candidates)), 0.0)
    ranks = Logistic(faults, candidates, even=True, ridge=RIDGE)
    scores, simulated = ranks.scores(candidates), ranks.scores(faults)
    middle, scale = np.median(simulated), max(float(simulated.std()), 1e-9)
    scores, simulated = (scores - middle) / scale, (simulated - middle) / scale
    level = _lowest(scores, simulated)
    seen, drawn = scores[scores >= level], simulated[simulated >= level]
    counts = np.log(len(scores) / len(simulated))

    def terms(u: Floats, x: Sequence[float]) -> tuple[Floats, Floats]:
        return x[0] - x[1] * u, x[2] - (x[1] + x[3]) * u

    def cost(x: Sequence[float]) -> float:
        odds = counts + np.logaddexp(*terms(seen, x)), counts + np.logaddexp(*terms(drawn, x))
        excess = np.exp(np.minimum(terms(drawn, x)[0], 30)).mean() - MOST
        return float(
            np.logaddexp(0, -odds[0]).sum() + np.logaddexp(0, odds[1]).sum() + x[1] ** 2 / 2 + FIRM * max(excess, 0) ** 2
        )

    tried = [minimize(cost, start, bounds=BOUNDS, method="L-BFGS-B") for start in STARTS]
    best = min(tried, key=lambda result: float(result.fun))
    without = minimize(lambda x: cost([NEVER, 0, *x]), (-5, 3), bounds=BOUNDS[2:], method="L-BFGS-B")
    if (evidence := float(without.fun - best.fun)) < 2:  # Akaike's criterion: without faults, two numbers fewer
        return Posterior(np.zeros(len(candidates)), 0.0)
    fault, other = terms(scores, best.x)
    return Posterior(sigmoid(fault - other), evidence)


def _lowest(scores: Floats, simulated: Floats) -> float:
    """The score above which nearly all simulated faults are, and half as many more candidates as are among them."""
    level = float(np.quantile(simulated, 0.01))
    among = int((scores >= level).sum())
    place = min(among + max(among // 2, BELOW), len(scores) - 1)
    return min(level, float(np.sort(scores)[::-1][place]))
