"""Samplers: the draw of a global batch, a pure function of (seed, step, version of the difficulty vector).

    uniform        shuffled epochs: every sample once before any comes twice (`datasets.sampling.epochs`)
    pk             P identities x K samples, all identities with equal probability
    hardest        strategy A: samples of the h hardest identities, plus uniform ones
    proportional   strategy B: identities with probability p_i = c_i / sum(c), K samples of each, plus uniform ones
    pairs          strategy C: as B, and with each identity its nearest one, so that the batch holds both; plus uniform ones
    neighbours     A identities in turn, each with its P / A - 1 nearest, K samples of each (`datasets.sampling.neighbourhoods`)

A, B and C take a fraction ``uniform_share`` of the batch from the uniform epoch, and all of it until the first version of the
difficulty vector is used; ``neighbours`` has no uniform part, and draws as ``pk`` until then. The version depends only on the
step (`version_at`), never on timing.

Of joined sets, ``weights`` say how often each is drawn evenly, by pk, or as anchor of neighbours; draws by difficulty compare the
identities of all sets.

B global batch, N identities, K samples of each identity (``each``), M samples of the split. c: the difficulty of an identity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.epochs import Turns, UniformEpochs, WeightedEpochs, runs, seeds_of_sets
from datasets.sampling.neighbourhoods import AnchorEpochs, neighbourhoods, of_different_cameras
from datasets.seeding import generator
from datasets.shards.index import Int64s, Split, split_of

Kind = Literal["uniform", "pk", "hardest", "proportional", "pairs", "neighbours"]
MAX_WEIGHT = 1000
MAX_NEIGHBOURS = 32  # of each identity, that a version holds
LEAST = {"batch": 1, "instances": 1, "hardest": 1, "anchors": 1, "skip": 0, "interval": 1, "lag": 0, "begin": 0}  # of settings
BY_DIFFICULTY = ("hardest", "proportional", "pairs", "neighbours")
OF_ALL = ("pk", "neighbours")  # the whole batch is P identities x K samples


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are drawn."""

    kind: Kind = "proportional"
    """uniform: shuffled epochs; pk: all identities equally likely; hardest, proportional, pairs: by the difficulty vector;
    neighbours: identities that look alike, by the same."""
    batch: int = 64
    """Samples of a global batch, over all workers."""
    instances: int | None = None
    """Samples of each drawn identity (not uniform, hardest). None: 4 for pk and neighbours, else 1; a pair loss needs more."""
    uniform_share: float = 0.875
    """Fraction of a batch from the uniform epoch (hardest, proportional, pairs); smaller ones learn less (docs/claims.md)."""
    hardest: int = 2
    """Number of hardest identities that fill the hard part of a batch (hardest). At least two have the maximum of c."""
    temperature: float = 1.0
    """p_i ~ max(c_i, floor) ** (1 / temperature): 1 is the plain formula, smaller is sharper (proportional, pairs)."""
    floor: float = 0.0
    """Lower limit of c in the probabilities, as c can be negative (proportional, pairs)."""
    anchors: int = 4
    """Identities of a batch that bring their nearest ones with them, the same number each (neighbours). Every identity is anchor
    once before any is twice. Must be a multiple of the number of workers."""
    skip: int = 0
    """How many of an anchor's nearest are left out: they may be itself under another label (neighbours)."""
    different_cameras: bool = True
    """Draw an identity's samples from different cameras where there are (neighbours)."""
    interval: int = 50
    """Steps between two versions of the difficulty vector; version k is computed after k * interval steps."""
    lag: int = 16
    """Steps from computing a version to its first use. With loader.workers * (loader.ahead + 2) or more, loaders never wait."""
    begin: int = 0
    """First step that may draw by difficulty; earlier steps draw evenly, those of neighbours as pk."""
    begin_below: float = 0.2
    """Neighbours begin when less than this fraction of a batch's images are hard: the nearest of another identity is not farther
    than the farthest of their own. Until then the draw is pk. 1.1: at once."""
    weights: tuple[int, ...] = ()
    """How often each of several sets is drawn: 2 1 draws two samples of the first for one of the second. It counts for even
    draws, pk and anchors; draws by difficulty compare the identities of all sets. None given: the sets are drawn as one."""
    mode: Literal["pinned", "freshest"] = field(default="pinned", metadata={"change": "allowed"})
    """pinned: the version depends only on the step, so runs repeat exactly. freshest: the newest that has arrived."""
    patience: float = field(default=300.0, metadata={"change": "harmless"})
    """Seconds that pinned mode waits for a version before the run ends."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"sampler.{name} is {value}", remedy=f"give at least {least}")
        if not 0 <= self.uniform_share <= 1:
            raise InputError(f"sampler.uniform_share is {self.uniform_share}", remedy="give a fraction from 0 to 1")
        if not self.temperature > 0 or not 0 <= self.floor <= 1 or not self.patience > 0 or not self.begin_below >= 0:
            what = "sampler.temperature and patience must be above 0, floor from 0 to 1, begin_below 0 or more"
            raise InputError(what, "sampler")
        if not all(1 <= weight <= MAX_WEIGHT for weight in self.weights):
            what = f"sampler.weights are {' '.join(map(str, self.weights))}"
            raise InputError(what, remedy=f"give whole numbers from 1 to {MAX_WEIGHT}")
        if self.kind == "neighbours":
            self._check_neighbourhoods()
        unit = self.unit
        hard = self.batch - self.uniform_part if self.by_difficulty else self.batch
        if hard % unit:
            what = f"{hard} of {self.batch} samples are drawn by '{self.kind}', {unit} at a time"
            raise InputError(what, "sampler.batch", f"choose batch, uniform_share and instances so that {unit} divides that part")

    @property
    def by_difficulty(self) -> bool:
        """Whether this draw uses the difficulty vector."""
        return self.kind in BY_DIFFICULTY

    @property
    def each(self) -> int:
        """Samples of each drawn identity (K). For draws by difficulty K = 1 is best (measured: docs/claims.md)."""
        if self.instances is not None:
            return self.instances
        return 4 if self.kind in OF_ALL else 1

    @property
    def width(self) -> int:
        """Identities of a neighbourhood, the anchor among them (P / A)."""
        return self.batch // self.each // self.anchors

    def neighbours_needed(self, identities: int) -> int:
        """The neighbours k of each of N identities that a version must hold: for neighbours twice as many as a neighbourhood has,
        as some are in the batch already, and the skipped ones."""
        return min(2 * (self.width - 1) + self.skip, MAX_NEIGHBOURS, identities - 1) if self.kind == "neighbours" else 1

    @property
    def unit(self) -> int:
        """Samples that are drawn together: K of an identity, for pairs also K of its nearest one, for neighbours a neighbourhood.

        They stay on one rank: they begin at multiples of this number in the batch, and `check_world` allows only numbers of ranks
        whose slices are such multiples.
        """
        together = {"pk": 1, "proportional": 1, "pairs": 2, "neighbours": self.width}
        return together[self.kind] * self.each if self.kind in together else 1

    @property
    def uniform_part(self) -> int:
        """Samples of a batch from the uniform epoch, once a version is used."""
        return 0 if self.kind == "neighbours" else round(self.uniform_share * self.batch)

    @property
    def versions_alive(self) -> int:
        """The most versions from the oldest that a step may still use to the newest computed, both included."""
        return self.lag // self.interval + 2

    def version_at(self, step: int) -> int:
        """Return the version that a step uses; 0 for none."""
        if not self.by_difficulty or step < max(self.begin, self.lag):
            return 0
        return (step - self.lag) // self.interval

    def check_world(self, world: int) -> None:
        """Check that the batch divides evenly among ``world`` ranks, and each `unit` stays on one rank; raises InputError."""
        each, rest = divmod(self.batch, world)
        if rest or not each:
            what = f"the global batch of {self.batch} cannot be divided evenly among {world} workers"
            raise InputError(what, "sampler.batch", "choose a multiple of the number of workers")
        if world > 1 and each % self.unit:
            what = f"'{self.kind}' draws {self.unit} samples together, which {world} workers with {each} each would separate"
            remedy = f"choose a multiple of {world * self.unit}, or other --sampler.instances"
            if self.kind == "neighbours":
                remedy = f"choose --sampler.anchors that is a multiple of {world}"
            raise InputError(what, "sampler.batch", remedy)

    def _check_neighbourhoods(self) -> None:
        """Raises InputError if the batch is not whole neighbourhoods of two or more identities, or more than versions hold."""
        whole = self.anchors * self.each
        if self.batch % whole or self.batch < 2 * whole:
            what = f"a batch of {self.batch} is not {self.anchors} neighbourhoods of two or more identities x {self.each} samples"
            raise InputError(what, "sampler.batch", f"choose 2, 3, 4 ... times {whole}, or other --sampler.anchors or instances")
        if (reach := self.width - 1 + self.skip) > MAX_NEIGHBOURS:
            what = f"a neighbourhood reaches to the {reach}th neighbour, and {MAX_NEIGHBOURS} are known"
            raise InputError(what, "sampler.anchors", "give more --sampler.anchors, or a smaller --sampler.skip")

    @property
    def mixed_from(self) -> int:
        """The first step that uses a version. In mode freshest none may have arrived by then, but none is used before."""
        return max(self.begin, self.lag + self.interval)

    def even_place(self, step: int) -> int:
        """Return the place in the uniform epochs where a step's draw begins, i.e. what all earlier steps drew from them.

        Steps before ``mixed_from`` drew a whole batch, later ones ``uniform_part``: this depends only on the step in both modes.
        """
        whole = min(step, self.mixed_from) if self.by_difficulty else step
        return whole * self.batch + (step - whole) * self.uniform_part


class Sampler:
    """Draws batches of one split.

    Raises:
        InputError: the split is too small for such batches.
    """

    def __init__(self, config: SamplerConfig, split: Split, seed: int) -> None:
        self._sets = [split_of(part, split.name) for part in split.index.parts] if config.weights else []
        _check_fits(config, split, self._sets)
        self.config, self.split, self.seed = config, split, seed
        self._prepared = (0, np.empty(0), np.empty(0, np.int64))

    def draw(self, step: int, difficulty: Difficulty | None) -> Int64s:
        """Draw the global batch of a step: positions of the split, int64 [B]. ``difficulty``: None before the first version.

        If no version has arrived in time in mode freshest, the hard part is drawn with equal probabilities instead, so that the
        uniform epoch continues in the same way.
        """
        config = self.config
        if config.kind == "neighbours" and difficulty is not None and step >= config.mixed_from and difficulty.begun:
            return self._neighbourhoods(step, difficulty)
        if config.kind in OF_ALL:
            rng = generator(self.seed, "pk", step)
            identities = rng.choice(len(self.split.counts), config.batch // config.each, replace=False, p=self._chances)
            return self._instances(rng, identities, config.each)
        mixed = config.by_difficulty and (difficulty is not None or step >= config.mixed_from)
        part = config.uniform_part if mixed else config.batch
        even, hard = self._epochs.batch(config.even_place(step), part), config.batch - part
        if not hard:
            return even
        rng = generator(self.seed, config.kind, step)
        chosen = rng.integers(len(self.split), size=hard) if difficulty is None else self._hard(rng, hard, difficulty)
        # Both parts are spread over the batch, so that every rank's slice has the same mixture. Without synchronised batch norm
        # the model keeps the statistics of rank 0, which must not come from hard samples only.
        ends = [np.arange(count) // config.unit * config.unit / count for count in (hard, part)]
        drawn: Int64s = np.concatenate([chosen, even])[np.argsort(np.concatenate(ends), kind="stable")]
        return drawn

    def _hard(self, rng: np.random.Generator, count: int, difficulty: Difficulty) -> Int64s:
        config = self.config
        cumulative, hardest = self._prepare(difficulty)
        if config.kind == "hardest":
            each = -(-count // len(hardest))
            return self._instances(rng, hardest, each).reshape(len(hardest), each).T.ravel()[:count]
        if config.kind == "proportional":
            drawn = pick(rng, cumulative, count // config.each)
        else:
            anchors = pick(rng, cumulative, count // (2 * config.each))
            drawn = np.stack([anchors, difficulty.nearest[anchors]], axis=1).ravel()
        return self._instances(rng, drawn, config.each)

    def _neighbourhoods(self, step: int, difficulty: Difficulty) -> Int64s:
        config, rng = self.config, generator(self.seed, "near", step)
        anchors = self._anchors((step - config.mixed_from) * config.anchors, config.anchors)
        identities = neighbourhoods(rng, anchors, difficulty.neighbours, config.width, config.skip)
        apart = config.different_cameras and len(self.split.index.cameras) > 1
        return self._instances(rng, identities, config.each, apart=apart)

    def _prepare(self, difficulty: Difficulty) -> tuple[npt.NDArray[np.float64], Int64s]:
        """Return the cumulative sum of p [N] and the hardest identities [h]. O(N), so cached per version; a draw is O(log N)."""
        if self._prepared[0] != difficulty.version:
            cumulative, hardest = np.empty(0), np.empty(0, np.int64)
            if self.config.kind == "hardest":
                hardest = largest(difficulty.cosine, self.config.hardest)
            else:
                cumulative = np.cumsum(probabilities(difficulty.cosine, self.config))
            self._prepared = difficulty.version, cumulative, hardest
        return self._prepared[1:]

    def _instances(
        self, rng: np.random.Generator, identities: npt.NDArray[np.integer], each: int, *, apart: bool = False
    ) -> Int64s:
        """Draw ``each`` samples of every identity; all its samples are equally likely. ``apart``: from different cameras.

        They come from one block, which is one ranged read, unless one of the identity's blocks holds too few.
        """
        split = self.split
        first, count = split.identity_starts[identities], split.counts[identities]
        probe = first + (rng.random(len(identities)) * count).astype(np.int64)
        block = np.searchsorted(split.starts, probe, side="right") - 1
        enough = split.smallest[identities] >= np.minimum(each, count)
        first = np.where(enough, split.starts[block], first)
        count = np.where(enough, split.starts[block + 1] - split.starts[block], count)
        if apart:
            one_block = enough.all()  # its samples are side by side in the index: finding the first is enough
            samples = runs(split.samples(first), count) if one_block else split.samples(runs(first, count))
            drawn = of_different_cameras(rng, split.index.samples["camera"][samples], count, each)
        else:
            drawn = distinct(rng, count, each)
        positions: Int64s = (first[:, None] + drawn).ravel()
        return positions

    @cached_property
    def _chances(self) -> npt.NDArray[np.float64] | None:
        """The probability of each identity in pk by the sets' weights, [N]; None: all are equal."""
        sizes, weights = [len(part.counts) for part in self._sets], self.config.weights
        each = [weight / sum(weights) / size for weight, size in zip(weights, sizes, strict=True)]
        return np.repeat(each, sizes) if weights else None

    @cached_property
    def _anchors(self) -> Callable[[int, int], Int64s]:
        """``batch(place, count)`` of the anchors' epochs; by weights, each set has epochs of its own, which take turns."""
        if not self._sets:
            return AnchorEpochs(len(self.split.counts), self.seed).batch
        sizes, seeds = [len(part.counts) for part in self._sets], seeds_of_sets(self.seed, len(self._sets))
        turns = Turns(sizes, self.config.weights)
        epochs = [AnchorEpochs(size, seed).batch for size, seed in zip(sizes, seeds, strict=True)]
        return lambda place, count: turns.batch(place, count, epochs)

    @property
    def mixed_bytes(self) -> int:
        """Bytes of the shards that the uniform epoch mixes at a time."""
        return self._epochs.mixed_bytes

    @cached_property
    def _epochs(self) -> UniformEpochs | WeightedEpochs:
        weights = self.config.weights
        return WeightedEpochs(self._sets, weights, self.seed) if weights else UniformEpochs(self.split, self.seed)


def probabilities(cosine: npt.NDArray[np.float32], config: SamplerConfig) -> npt.NDArray[np.float64]:
    """Return strategy B's p_i = c_i / sum(c), with floor and temperature, [N]; equal where no c is above 0."""
    weights = np.maximum(cosine.astype(np.float64), config.floor)
    if not weights.any():
        return np.full(len(weights), 1 / len(weights))
    weights /= weights.max()
    if config.temperature != 1:
        weights **= 1 / config.temperature
    found: npt.NDArray[np.float64] = weights / weights.sum()
    return found


def largest(values: npt.NDArray[np.float32], count: int) -> Int64s:
    """Return the indices of the ``count`` largest values, largest first; of equal values, the first ones."""
    count = min(count, len(values))
    least = np.partition(values, -count)[-count]
    places = np.flatnonzero(values >= least)
    found: Int64s = places[np.argsort(-values[places], kind="stable")[:count]]
    return found


def pick(rng: np.random.Generator, cumulative: npt.NDArray[np.float64], count: int) -> Int64s:
    """Draw ``count`` independent indices from a distribution, given its cumulative sum."""
    drawn: Int64s = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right").astype(np.int64)
    return drawn


def distinct(rng: np.random.Generator, sizes: Int64s, each: int) -> Int64s:
    """For every size s, draw ``each`` numbers from 0..s-1, int64 [len(sizes), each]: distinct, or repeated where s is smaller.

    The j-th is drawn from the s - j remaining numbers, then moved past the ones already taken, in ascending order.
    """
    out = np.empty((len(sizes), each), np.int64)
    taken = np.empty((len(sizes), 0), np.int64)  # ascending
    fresh = int(min(each, sizes.max(initial=0)))
    for j in range(fresh):
        left = np.maximum(sizes - j, 1)
        value = (rng.random(len(sizes)) * left).astype(np.int64)
        for column in taken.T:
            value += value >= column
        value = np.where(sizes > j, value, out[:, 0] if j else value)
        out[:, j] = value
        taken = np.sort(np.concatenate([taken, np.where(sizes > j, value, np.iinfo(np.int64).max)[:, None]], axis=1), axis=1)
    wrapped = np.arange(each) % np.minimum(sizes, each)[:, None]
    return np.take_along_axis(out, wrapped, axis=1)


def _check_fits(config: SamplerConfig, split: Split, sets: Sequence[Split]) -> None:
    identities, where, weights = len(split.counts), f"split '{split.name}' of {split.index.url}", config.weights
    if weights and len(weights) != len(sets):
        raise InputError(f"{len(weights)} weights for {len(sets)} sets", "sampler.weights", "give one for each set")
    for weight, part in zip(weights, sets, strict=True):
        if (drawn := -(-config.batch * weight // sum(weights))) > len(part):
            what = f"{drawn} of {config.batch} samples of a batch come from a set of {len(part)} training images"
            raise InputError(what, part.index.url, "lower --sampler.batch, or the set's weight in --sampler.weights")
    if identities < 2 and config.kind != "uniform":
        remedy = "re-identification needs two or more: check the layout"
        raise InputError(f"only {identities} identity to train on", where, remedy)
    if config.batch > len(split):
        what = f"the batch of {config.batch} is larger than the data ({len(split)} samples)"
        raise InputError(what, where, "lower --sampler.batch")
    if config.kind in OF_ALL and config.batch // config.each > identities:
        what = f"{config.kind} draws {config.batch // config.each} different identities and there are {identities}"
        raise InputError(what, where, "lower --sampler.batch or raise --sampler.instances")
    if config.kind == "neighbours" and config.width + config.skip > identities:
        what = f"an identity has {identities - 1} neighbours, and {config.width - 1} are drawn after {config.skip} are left out"
        raise InputError(what, where, "lower --sampler.skip")
    if config.kind in (*OF_ALL, "pairs") and config.each > 1 and split.counts.min() < 2:
        name = split.names[int(split.counts.argmin())]
        what = f"'{config.kind}' with {config.each} instances needs two samples of an identity, and '{name}' has one"
        raise InputError(what, where, "pack with --min-samples 2, or use --sampler.kind uniform or --sampler.instances 1")
