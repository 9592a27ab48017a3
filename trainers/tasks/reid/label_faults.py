"""Suspected label faults of a set, from the features of its images: two identities that are one, one that is two, wrong images.

Each kind has candidates, and a few statistics of each candidate. The same statistics are computed for simulated faults: halves of
an identity, two identities together, an image under another identity. `posterior` turns both into probabilities.

Features have length 1. Of an identity with n images, w is the mean cosine between two different images of it, and b that between
the images of two identities. So w_i + w_j - 2 b is the squared distance of two identities' centres, free of bias however few the
images are: 0 on average when both are one. M images, N identities, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from trainers.difficulty.vector import neighbours

Kind = Literal["same", "mixture", "wrong"]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

NEAREST = 4  # identities that each is compared with
SIMULATED = 5_000  # faults of a kind
COSINES = 1 << 25  # between images and identities at a time
OTHERS = 3  # other groups that an image is compared with
ROWS = 1 << 16  # images divided at a time
DOUBT = 0.5  # probability from which an image is left out where identities are judged
PURE = 0.9  # share of a simulated mixture's images that its division must put right
POWER, LLOYD = 8, 4  # steps of a division
NEWTON = 25
RIDGE = 0.03  # of the ranking, whose sides may lie far apart, so that each statistic keeps its weight
EVIDENCE = 20.0  # for faults, from which it is clear
PULLS, LEANS = (0.0, 0.2, 0.4), (0.0, 0.3, 0.6, 1.0, 2.0, 4.0)  # of the simulations, in the order of trial
FIRM = 1e6
NEVER = -40  # the logarithm of no share
BELOW = 100  # candidates below the simulated faults that the form of the others is fitted to, at least
BOUNDS = ((-20.0, 0.0), (0.0, 3.0), (-30.0, 5.0), (0.3, 30.0))  # of a, g, b, d
MOST = 0.3  # share of faults among candidates: features that tell nothing apart would allow more
STARTS = ((-3, 0, -5, 2), (-3, 1.5, -5, 6), (-5, 0, -5, 6), (-5, 1.5, -5, 2))  # one alone may lead to a local optimum
PRIOR = 3.0  # pairs of images of an average identity that are added to each identity's own: it may have one image


class Suspicion(NamedTuple):
    """A suspected fault. ``images``: of a mixture those of the smaller part, of a wrong image itself; rows of the features.

    ``other``: the other identity of two that are the same, or the one that a wrong image belongs to; -1 of a mixture, and of an
    image that is wrong and whose own identity is not certain.
    """

    kind: Kind
    probability: float
    identity: int
    other: int
    images: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Groups:
    """Features [M, D] of length 1, sorted by group; group g has the rows ``starts[g]`` to ``starts[g + 1] - 1``, one or more."""

    features: Singles
    starts: Int64s

    @cached_property
    def counts(self) -> Int64s:
        """Images of each group, [G]."""
        return np.diff(self.starts)

    @cached_property
    def sums(self) -> Singles:
        """Sum of each group's features, [G, D]."""
        return np.add.reduceat(self.features, self.starts[:-1], axis=0)

    @cached_property
    def owner(self) -> Int64s:
        """The group of each row, [M]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def pairs(self) -> Floats:
        """Ordered pairs of different images of each group, [G]."""
        return self.counts * (self.counts - 1.0)

    @cached_property
    def cosines(self) -> Floats:
        """Sum of the cosines of these pairs, [G]."""
        found: Floats = np.square(self.sums, dtype=np.float64).sum(axis=1) - self.counts
        return found

    def within(self, usual: float) -> Floats:
        """Mean cosine of these pairs, [G]; ``usual`` counts as `PRIOR` pairs more."""
        found: Floats = (self.cosines + 2 * PRIOR * usual) / (self.pairs + 2 * PRIOR)
        return found

    @property
    def usual(self) -> float:
        """The median of the mean cosines of groups with two images or more; 1 if there are none."""
        several = self.counts > 1
        return float(np.median(self.cosines[several] / self.pairs[several])) if several.any() else 1.0


def suspicions(features: Tensor, identity: Int64s, *, accept: float = 0.9, least: float = 0.1, seed: int = 0) -> list[Suspicion]:
    """Suspected label faults, the most probable first, with a probability of ``least`` or more.

    The probability of a wrong image is that it belongs to ``other``. If that is below ``accept``, and it is wrong with at least
    this probability, ``other`` is -1 and the probability is that it is wrong.

    ``features``: of any length, [M, D]; ``identity``: 0 .. N - 1 of each, [M], every number at least once. Needs two copies of
    the features beside them.

    Raises:
        ValueError: fewer than ``NEAREST`` + 2 identities.
    """
    order = np.argsort(identity, kind="stable")
    counts = np.bincount(identity)
    if len(counts) < NEAREST + 2:
        raise ValueError(f"label faults need {NEAREST + 2} identities or more; there are {len(counts)}")
    rows = torch.nn.functional.normalize(features[torch.from_numpy(order)].float(), dim=1).numpy()
    rng = np.random.default_rng(seed)
    whole = Groups(rows, _starts(counts))
    near = near_groups(whole, rng)
    wrong = wrong_chance(near, counts[whole.owner], rng)
    doubtful = wrong > DOUBT
    kept = np.flatnonzero(~doubtful | _all_of(doubtful, whole)[whole.owner])
    groups = Groups(rows[kept], _starts(np.bincount(whole.owner[kept])))
    same, mixed = same_pairs(groups, rng), mixtures(groups, rng)
    one = {(a, b) for (a, b), chance in zip(same.pairs.tolist(), same.probability, strict=True) if chance > DOUBT}
    wrong *= ~_in(one, whole.owner, near.others[:, 0])
    belongs = wrong * belongs_chance(near, whole.owner, wrong, one, rng)
    out = (belongs < accept) & (wrong >= accept)
    found = [Suspicion("same", p, a, b, ()) for p, (a, b) in _above(same.probability, same.pairs, least)]
    mixture = np.stack([mixed.groups, np.arange(len(mixed.groups))], axis=1)
    for p, (group, place) in _above(mixed.probability, mixture, least):
        part = kept[mixed.parts[place]]
        belongs[part] = wrong[part] = 0  # they are wrong because they are of the mixture
        found.append(Suspicion("mixture", p, group, -1, tuple(sorted(order[part].tolist()))))
    table = np.stack([order, whole.owner, np.where(out, -1, near.others[:, 0])], axis=1)
    for p, (row, own, other) in _above(np.where(out, wrong, belongs), table, least):
        found.append(Suspicion("wrong", p, own, other, (row,)))
    return sorted(found, key=lambda suspicion: -suspicion.probability)


def _above(probability: Floats, values: Int64s, least: float) -> Iterator[tuple[float, list[int]]]:
    """The probabilities [C] of at least that, each with its row of the values [C, V]."""
    chosen = probability >= least
    yield from zip(probability[chosen].tolist(), values[chosen].tolist(), strict=True)


class Near(NamedTuple):
    """Of every image [M]: the cosine to the centre of its group's other images and to a group drawn at random, and the nearest
    `OTHERS` other groups [M, OTHERS] with their cosines, the nearest first. An image alone in its group has cosine 0 to it."""

    own: Floats
    drawn: Floats
    others: Int64s
    cosines: Floats


def near_groups(groups: Groups, rng: np.random.Generator) -> Near:
    """Compare every image with the centres of all groups."""
    features, owner = groups.features, groups.owner
    centres = torch.nn.functional.normalize(torch.from_numpy(groups.sums), dim=1)
    random = (owner + rng.integers(1, len(centres), len(owner))) % len(centres)
    own, drawn = np.empty((2, len(features)))
    others, cosines = np.empty((len(features), OTHERS), np.int64), np.empty((len(features), OTHERS))
    step = max(COSINES // len(centres), 1)
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        some, of = features[part], owner[part]
        rest = groups.sums[of] - some
        own[part] = np.einsum("md,md->m", some, rest) / np.maximum(np.linalg.norm(rest, axis=1), 1e-6)
        drawn[part] = np.einsum("md,md->m", some, centres.numpy()[random[part]])
        found, rows, taken = torch.from_numpy(some) @ centres.T, torch.arange(len(of)), torch.from_numpy(of)
        for place in range(OTHERS):
            found[rows, taken] = -2.0
            best, taken = found.max(dim=1)
            cosines[part, place], others[part, place] = best.numpy(), taken.numpy()
    return Near(own, drawn, others, cosines)


def wrong_chance(near: Near, counts: Int64s, rng: np.random.Generator) -> Floats:
    """The probability that an image is under a wrong identity, [M]; ``counts``: images in its group. 0 of one that is alone.

    Statistics: the cosines to its own group and to the nearest other one. A simulated fault is an image under a group drawn at
    random.
    """
    rows = np.flatnonzero(counts > 1)
    first = near.cosines[:, 0]
    some = rng.permutation(rows)[: 4 * SIMULATED]
    faults = np.stack([near.drawn[some], np.maximum(near.own, first)[some]], axis=1)
    chance = np.zeros(len(first))
    chance[rows] = posterior(np.stack([near.own, first], axis=1)[rows], faults).probability
    return chance


def belongs_chance(near: Near, owner: Int64s, chance: Floats, one: set[tuple[int, int]], rng: np.random.Generator) -> Floats:
    """The probability that a wrong image belongs to the nearest other group, [M], by its cosine and its lead over the next one.

    It is learnt from images that do not look wrong: as often as they are nearest to their own group. ``one``: pairs of groups,
    the lower number first, that are the same; they count as one group.
    """
    first, after = near.cosines[:, 0], np.full(len(owner), -1.0)
    for place in range(OTHERS - 1, 0, -1):
        other = ~_in(one, near.others[:, 0], near.others[:, place])
        after[other] = near.cosines[other, place]
    usual = np.flatnonzero((chance < DOUBT) & (near.own > 0) & ~_in(one, owner, near.others[:, 0]))
    usual = rng.permutation(usual)[: 4 * SIMULATED]
    if not len(usual):
        return np.zeros(len(owner))
    best, right = np.maximum(near.own, first)[usual], (near.own >= first)[usual]
    second = np.where(right, first[usual], np.maximum(near.own, after)[usual])
    seen = np.stack([best, best - second], axis=1)
    return Logistic(seen[right], seen[~right], even=False, ridge=1e-4).chance(np.stack([first, first - after], axis=1))


def _in(pairs: set[tuple[int, int]], a: Int64s, b: Int64s) -> npt.NDArray[np.bool_]:
    """Whether the groups a and b, [M] each, are among the pairs, the lower number first."""
    if not pairs:
        return np.zeros(len(a), bool)
    factor = 1 + max(int(a.max()), int(b.max()), max(pair[1] for pair in pairs))
    known = np.array([low * factor + high for low, high in pairs])
    return np.isin(np.minimum(a, b) * factor + np.maximum(a, b), known)


class Same(NamedTuple):
    """Pairs of groups [C, 2], the lower number first, with the probability that both are one, [C]."""

    pairs: Int64s
    probability: Floats


def same_pairs(groups: Groups, rng: np.random.Generator) -> Same:
    """Each group with its nearest. A simulated fault is a group divided in two.

    Two identities of one person often differ in more than chance: one has the images of one camera or day. So the simulation is
    made with several leans of the parts to both sides of the group's main axis, from none on, and the first one counts that gives
    clear evidence.
    """
    centres = torch.nn.functional.normalize(torch.from_numpy(groups.sums), dim=1)
    near = neighbours(centres, NEAREST + 1).numbers.numpy()
    usual, last = groups.usual, near[:, -1]
    lead = _distances(groups, groups, np.arange(len(near)), last, usual)
    first = np.repeat(np.arange(len(near)), NEAREST)
    pairs = np.unique(np.sort(np.stack([first, near[:, :NEAREST].ravel()], axis=1), axis=1), axis=0)
    found = _same_statistics(groups, pairs[:, 0], pairs[:, 1], lead[pairs[:, 0]], lead[pairs[:, 1]], usual)
    if not (groups.counts > 1).any():
        return Same(pairs, np.zeros(len(pairs)))
    several = np.flatnonzero(groups.counts > 1)
    chosen = rng.choice(several, SIMULATED, replace=len(several) < SIMULATED)
    a, tried = np.arange(0, 2 * len(chosen), 2), list[Posterior]()
    for lean in LEANS:
        halves = _halves(groups, chosen, lean, rng)
        leads = [_distances(halves, groups, part, near[chosen, NEAREST - 1], usual) for part in (a, a + 1)]
        tried.append(posterior(found, _same_statistics(halves, a, a + 1, leads[0], leads[1], usual)))
    return Same(pairs, first_clear(tried).probability)


def _same_statistics(groups: Groups, a: Int64s, b: Int64s, lead_a: Floats, lead_b: Floats, usual: float) -> Floats:
    """[C, 2]: logarithms of the distance's ratio to what chance makes it, and to that of the ``NEAREST`` + 1st identity.

    Of logarithms, as the distances to other identities have nearly a power law near 0.
    """
    distance, lead = _distances(groups, groups, a, b, usual), np.minimum(lead_a, lead_b)
    within = groups.within(usual)
    chance = (1 - within[a]) / groups.counts[a] + (1 - within[b]) / groups.counts[b]
    above = np.maximum(distance, 0.0)
    return np.stack([np.log(above / np.maximum(chance, 1e-3) + 1), np.log(above / np.maximum(lead, 1e-3) + 0.05)], axis=1)


def _distances(left: Groups, right: Groups, a: Int64s, b: Int64s, usual: float) -> Floats:
    """Squared distances of the centres of groups ``a`` of the left and ``b`` of the right, [C], without bias."""
    between = np.einsum("cd,cd->c", left.sums[a], right.sums[b]) / (left.counts[a] * right.counts[b])
    found: Floats = left.within(usual)[a] + right.within(usual)[b] - 2.0 * between
    return found


def _halves(groups: Groups, chosen: Int64s, lean: float, rng: np.random.Generator) -> Groups:
    """The two parts of each chosen group side by side, as groups of their own, 3 to 7 tenths of its images in a part.

    ``lean``: how far the parts are to the two sides of the group's main axis; 0: not at all.
    """
    whole = _taken(groups, chosen)
    centred, axis = _main_axis(whole)
    place = np.einsum("md,md->m", centred, axis[whole.owner])
    usual = np.sqrt(np.add.reduceat(place**2, whole.starts[:-1]) / whole.counts)
    place = lean * place / np.maximum(usual, 1e-6)[whole.owner] + rng.normal(size=len(place))
    order = np.lexsort((place, whole.owner))
    size = np.clip(np.round(rng.uniform(0.3, 0.7, len(chosen)) * whole.counts).astype(np.int64), 1, whole.counts - 1)
    return Groups(whole.features[order], _starts(np.stack([size, whole.counts - size], axis=1).ravel()))


class Mixtures(NamedTuple):
    """Groups [C] with the probability that each is two, and the rows of the smaller part of each."""

    groups: Int64s
    probability: Floats
    parts: list[Int64s]


def mixtures(groups: Groups, rng: np.random.Generator) -> Mixtures:
    """Groups of four images or more, each divided in two parts of two or more. A simulated fault is two groups together, drawn at
    random.

    A model that was trained with mixtures has pulled their parts together. So the simulation is made with several such pulls,
    from none on, and the first one counts that gives clear evidence.
    """
    large = np.flatnonzero(groups.counts >= 4)
    if len(large) < 2:
        return Mixtures(large[:0], np.empty(0), [])
    usual = groups.usual
    own, both = _taken(groups, large), _taken(groups, _pairs(large, rng).ravel())
    sides = divided(own)
    found = np.flatnonzero(_least(own, sides) >= 2)
    statistics = _mixture_statistics(own, sides, usual)[found]
    tried = [posterior(statistics, _simulated_mixtures(both, pull, usual)) for pull in PULLS]
    chance = first_clear(tried).probability
    parts = _smaller(own, sides, groups.starts[large])
    return Mixtures(large[found], chance, [parts[place] for place in found])


def _simulated_mixtures(both: Groups, pull: float, usual: float) -> Floats:
    """Statistics of groups 0 and 1 together, 2 and 3, ..., of those whose division gives nearly the two groups again.

    ``pull``: the share of the distance of their centres that is taken away first.
    """
    means = both.sums / both.counts[:, None]
    move = np.repeat(means[1::2] - means[::2], 2, axis=0) * (np.tile([pull, -pull], len(means) // 2)[:, None] / 2)
    features = torch.nn.functional.normalize(torch.from_numpy(both.features + move[both.owner].astype(np.float32)), dim=1)
    together = Groups(features.numpy(), both.starts[::2])
    side = divided(together)
    agree = np.add.reduceat((side == both.owner % 2).astype(np.int64), together.starts[:-1]) / together.counts
    right = (np.maximum(agree, 1 - agree) >= PURE) & (_least(together, side) >= 2)
    return _mixture_statistics(together, side, usual)[right]


def _pairs(numbers: Int64s, rng: np.random.Generator) -> Int64s:
    """Pairs of two different numbers, drawn at random, [SIMULATED, 2]."""
    first = rng.integers(len(numbers), size=SIMULATED)
    second = (first + rng.integers(1, len(numbers), SIMULATED)) % len(numbers)
    return numbers[np.stack([first, second], axis=1)]


def _least(groups: Groups, side: Int64s) -> Int64s:
    """Rows of the smaller part of each group, [G]; ``side``: 0 or 1 for each row."""
    ones = np.add.reduceat(side, groups.starts[:-1])
    found: Int64s = np.minimum(ones, groups.counts - ones)
    return found


def divided(groups: Groups) -> Int64s:
    """Divide each group in two, 0 or 1 for each row, [M]: 2-means that starts from the two sides of the main axis."""
    result = np.empty(len(groups.features), np.int64)
    first = 0
    while first < len(groups.counts):
        end = max(int(np.searchsorted(groups.starts, groups.starts[first] + ROWS, side="right")) - 1, first + 1)
        rows = slice(int(groups.starts[first]), int(groups.starts[end]))
        result[rows] = _divided(Groups(groups.features[rows], groups.starts[first : end + 1] - groups.starts[first]))
        first = end
    return result


def _main_axis(groups: Groups) -> tuple[Singles, Singles]:
    """Rows without their group's mean, [M, D], and each group's direction of the largest variance, [G, D]."""
    starts, owner = groups.starts[:-1], groups.owner
    means: Singles = (groups.sums / groups.counts[:, None]).astype(np.float32)
    centred: Singles = groups.features - means[owner]
    length = np.einsum("md,md->m", centred, centred)
    axis: Singles = centred[np.lexsort((length, owner))[groups.starts[1:] - 1]]  # begins at the row farthest from the mean
    for _ in range(POWER):
        place = np.einsum("md,md->m", centred, axis[owner])
        axis = np.add.reduceat(centred * place[:, None], starts, axis=0)
        axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    return centred, axis


def _divided(groups: Groups) -> Int64s:
    starts, owner, counts = groups.starts[:-1], groups.owner, groups.counts[:, None]
    centred, axis = _main_axis(groups)
    side = np.einsum("md,md->m", centred, axis[owner]) > 0
    for _ in range(LLOYD):  # both parts' means lie on a line through 0, so one is enough
        many = np.add.reduceat(side.astype(np.int64), starts)[:, None]
        mean = np.add.reduceat(centred * side[:, None], starts, axis=0)
        gap = mean / np.maximum(many, 1) + mean / np.maximum(counts - many, 1)  # the sum of all is 0
        middle = (mean / np.maximum(many, 1) - mean / np.maximum(counts - many, 1)) / 2
        side = np.einsum("md,md->m", centred - middle[owner], gap[owner]) > 0
    found: Int64s = side.astype(np.int64)
    return found


def _mixture_statistics(groups: Groups, side: Int64s, usual: float) -> Floats:
    """[G, 3] of divided groups: logarithms of the parts' distance, and of its ratios to their spread and to chance's."""
    order = np.argsort(2 * groups.owner + side, kind="stable")
    counts = np.bincount(2 * groups.owner + side, minlength=2 * len(groups.counts))
    cuts = _starts(counts)
    sums = np.zeros((len(counts), groups.features.shape[1]), np.float32)
    full = counts > 0
    sums[full] = np.add.reduceat(groups.features[order], cuts[:-1][full], axis=0)
    pairs = counts * (counts - 1.0)
    within = (np.square(sums, dtype=np.float64).sum(axis=1) - counts + 2 * PRIOR * usual) / (pairs + 2 * PRIOR)
    a, b = slice(0, None, 2), slice(1, None, 2)
    between = np.einsum("gd,gd->g", sums[a], sums[b]) / np.maximum(counts[a] * counts[b], 1)
    distance = np.where(full[a] & full[b], within[a] + within[b] - 2.0 * between, 0.0)
    chance = (1 - within[a]) / np.maximum(counts[a], 1) + (1 - within[b]) / np.maximum(counts[b], 1)
    distance, spread = np.maximum(distance, 1e-2), np.maximum(2 - within[a] - within[b], 1e-2)
    found: Floats = np.log(np.stack([distance, distance / spread, distance / np.maximum(chance, 1e-3)], axis=1))
    return found


def _smaller(groups: Groups, side: Int64s, first: Int64s) -> list[Int64s]:
    """The rows of each group's smaller part, where group g has the rows from ``first[g]`` on."""
    found = []
    for group, start in enumerate(groups.starts[:-1]):
        part = side[start : groups.starts[group + 1]]
        found.append(np.flatnonzero(part == (2 * int(part.sum()) <= len(part))) + first[group])
    return found


def _taken(groups: Groups, chosen: Int64s) -> Groups:
    """Chosen groups, [C], in this order; any may come twice."""
    counts = groups.counts[chosen]
    starts = _starts(counts)
    rows = np.arange(starts[-1]) + np.repeat(groups.starts[chosen] - starts[:-1], counts)
    return Groups(groups.features[rows], starts)


def _starts(counts: Int64s) -> Int64s:
    return np.concatenate([[0], np.cumsum(counts)])


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
            chance = _sigmoid(rows @ self._factor)
            slope = rows.T @ (weight * (label - chance)) - ridge * self._factor
            curve = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + ridge * np.eye(len(self._factor))
            self._factor = self._factor + np.linalg.solve(curve, slope)

    def scores(self, rows: Floats) -> Floats:
        """The log odds of rows [R, S], [R]."""
        found: Floats = self._columns(rows) @ self._factor
        return found

    def chance(self, rows: Floats) -> Floats:
        """The probabilities of rows [R, S], [R]."""
        return _sigmoid(self.scores(rows))

    def _columns(self, rows: Floats) -> Floats:
        return np.concatenate([(rows - self._middle) / self._scale, np.ones((len(rows), 1))], axis=1)


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return found


class Posterior(NamedTuple):
    """Probabilities of the candidates, [C], and the evidence for faults among them: the log likelihood gained by their term."""

    probability: Floats
    evidence: float


def first_clear(tried: Sequence[Posterior]) -> Posterior:
    """The first of several simulations that gives clear evidence; the very first if none does."""
    return next((fitted for fitted in tried if fitted.evidence > EVIDENCE), tried[0])


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
    return Posterior(_sigmoid(fault - other), evidence)


def _lowest(scores: Floats, simulated: Floats) -> float:
    """The score above which nearly all simulated faults are, and half as many more candidates as are among them."""
    level = float(np.quantile(simulated, 0.01))
    among = int((scores >= level).sum())
    place = min(among + max(among // 2, BELOW), len(scores) - 1)
    return min(level, float(np.sort(scores)[::-1][place]))


def _all_of(chosen: npt.NDArray[np.bool_], groups: Groups) -> npt.NDArray[np.bool_]:
    """Whether all rows of a group are chosen, [G]."""
    found: npt.NDArray[np.bool_] = np.logical_and.reduceat(chosen, groups.starts[:-1])
    return found
