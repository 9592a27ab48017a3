"""Suspected label faults of a set, from the features of its images: two identities that are one, one that is two, wrong images.

Each kind has candidates, and a few statistics of each candidate. The same statistics are computed for simulated faults: halves of
an identity, two identities together, an image under another identity. `trainers.tasks.reid.fault_probability` turns both
into probabilities.

Features have length 1. Of an identity with n images, w is the mean cosine between two different images of it, and b that between
the images of two identities. So w_i + w_j - 2 b is the squared distance of two identities' centres, free of bias however few the
images are: 0 on average when both are one. M images, N identities, D features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.decisions import Kind
from trainers.difficulty.vector import neighbours
from trainers.tasks.reid.fault_probability import Logistic, Posterior, first_clear, posterior
from trainers.tasks.reid.feature_groups import PRIOR, Floats, Groups, Int64s, divided, main_axis, starts_of, taken

NEAREST = 4  # identities that each is compared with
SIMULATED = 5_000  # faults of a kind
COSINES = 1 << 25  # between images and identities at a time
OTHERS = 3  # other groups that an image is compared with
DOUBT = 0.5  # probability from which an image is left out where identities are judged
PURE = 0.9  # share of a simulated mixture's images that its division must put right
PULLS, LEANS = (0.0, 0.2, 0.4), (0.0, 0.3, 0.6, 1.0, 2.0, 4.0)  # of the simulations, in the order of trial


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
    whole = Groups(rows, starts_of(counts))
    near = near_groups(whole, rng)
    wrong = wrong_chance(near, counts[whole.owner], rng)
    doubtful = wrong > DOUBT
    kept = np.flatnonzero(~doubtful | _all_of(doubtful, whole)[whole.owner])
    groups = Groups(rows[kept], starts_of(np.bincount(whole.owner[kept])))
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
    whole = taken(groups, chosen)
    centred, axis = main_axis(whole)
    place = np.einsum("md,md->m", centred, axis[whole.owner])
    usual = np.sqrt(np.add.reduceat(place**2, whole.starts[:-1]) / whole.counts)
    place = lean * place / np.maximum(usual, 1e-6)[whole.owner] + rng.normal(size=len(place))
    order = np.lexsort((place, whole.owner))
    size = np.clip(np.round(rng.uniform(0.3, 0.7, len(chosen)) * whole.counts).astype(np.int64), 1, whole.counts - 1)
    return Groups(whole.features[order], starts_of(np.stack([size, whole.counts - size], axis=1).ravel()))


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
    own, both = taken(groups, large), taken(groups, _pairs(large, rng).ravel())
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


def _mixture_statistics(groups: Groups, side: Int64s, usual: float) -> Floats:
    """[G, 3] of divided groups: logarithms of the parts' distance, and of its ratios to their spread and to chance's."""
    order = np.argsort(2 * groups.owner + side, kind="stable")
    counts = np.bincount(2 * groups.owner + side, minlength=2 * len(groups.counts))
    cuts = starts_of(counts)
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


def _all_of(chosen: npt.NDArray[np.bool_], groups: Groups) -> npt.NDArray[np.bool_]:
    """Whether all rows of a group are chosen, [G]."""
    found: npt.NDArray[np.bool_] = np.logical_and.reduceat(chosen, groups.starts[:-1])
    return found
