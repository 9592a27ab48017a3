"""Which samples come next: the draw of a global batch, a pure function of (seed, step, version of the difficulty vector).

    uniform        a shuffled epoch that streams, a gibibyte of shards mixed at a time: every sample once before any comes twice
    pk             P identities x K samples, drawn evenly
    hardest        strategy A: samples of the h hardest identities, plus random ones
    proportional   strategy B: identities by p_i = c_i / sum(c), K samples of each
    pairs          strategy C: an identity by p_i and, with it, its nearest one: the batch holds the contrast

A, B and C fill ``uniform_share`` of the batch from the uniform epoch and draw all of it there until the first version is in
force; the epoch goes on from there. Which version that is depends on the step alone (`version_at`), never on timing.

B global batch, N identities, K samples an identity (``each``), M samples of the split.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.epochs import UniformEpochs
from datasets.seeding import generator
from datasets.shards.index import Int64s, Split

Kind = Literal["uniform", "pk", "hardest", "proportional", "pairs"]
BY_DIFFICULTY = ("hardest", "proportional", "pairs")


@dataclass(frozen=True)
class SamplerConfig:
    """How batches are drawn."""

    kind: Kind = "proportional"
    """uniform: a shuffled epoch; pk: identities by even chance; hardest, proportional, pairs: by the difficulty vector."""
    batch: int = 64
    """Samples of a global batch, over all workers."""
    instances: int | None = None
    """Samples of each drawn identity (pk, proportional, pairs). None: 4 for pk, 1 for the others; a triplet loss needs more."""
    uniform_share: float = 0.875
    """Fraction of a batch drawn evenly from all samples (hardest, proportional, pairs); smaller ones learn less (README)."""
    hardest: int = 2
    """Identities that share the hard part of a batch (hardest). The maximum of c is always shared by two."""
    temperature: float = 1.0
    """p_i ~ max(c_i, floor) ** (1 / temperature): 1 is the plain formula, smaller is sharper (proportional, pairs)."""
    floor: float = 0.0
    """Difficulty below which an identity is not drawn more rarely; c can be negative (proportional, pairs)."""
    interval: int = 50
    """Steps between two versions of the difficulty vector; version k is computed after k * interval steps."""
    lag: int = 16
    """Steps from computing a version to its first use; nobody waits for it from loader.workers * (loader.ahead + 2) on."""
    begin: int = 0
    """Step before which everything is drawn evenly."""
    mode: Literal["pinned", "freshest"] = field(default="pinned", metadata={"change": "allowed"})
    """pinned: the version is a function of the step, runs repeat exactly. freshest: whatever has arrived; runs do not repeat."""
    patience: float = field(default=300.0, metadata={"change": "harmless"})
    """Seconds that pinned mode waits for a version before the run ends."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("instances", 1), ("hardest", 1), ("interval", 1), ("lag", 0), ("begin", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"sampler.{name} is {value}", remedy=f"give at least {least}")
        if not 0 <= self.uniform_share <= 1:
            raise InputError(f"sampler.uniform_share is {self.uniform_share}", remedy="give a share from 0 to 1")
        if not self.temperature > 0 or not 0 <= self.floor <= 1 or not self.patience > 0:
            raise InputError("sampler.temperature and patience must be above 0, floor from 0 to 1", "sampler")
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
        """K, samples of each drawn identity. Draws by difficulty learn more from one than from several (measured: README)."""
        if self.instances is not None:
            return self.instances
        return 4 if self.kind == "pk" else 1

    @property
    def unit(self) -> int:
        """Samples of a batch that are drawn together: K of an identity, and in pairs as many of its nearest one.

        They stay together on a rank: units begin at multiples of this in the batch, and `check_world` refuses numbers of ranks
        whose slices are no such multiple.
        """
        return {"pk": self.each, "proportional": self.each, "pairs": 2 * self.each}.get(self.kind, 1)

    @property
    def uniform_part(self) -> int:
        """Samples of a batch drawn evenly once a version is in force."""
        return round(self.uniform_share * self.batch)

    @property
    def versions_alive(self) -> int:
        """The most versions between the oldest that a step still draws by and the newest computed, both included."""
        return self.lag // self.interval + 2

    def version_at(self, step: int) -> int:
        """The version that step ``step`` draws by; 0 is none."""
        if not self.by_difficulty or step < max(self.begin, self.lag):
            return 0
        return (step - self.lag) // self.interval

    def check_world(self, world: int) -> None:
        """Check that so many ranks can share a batch evenly, without cutting what is drawn together; raises InputError."""
        share, rest = divmod(self.batch, world)
        if rest or not share:
            what = f"the global batch of {self.batch} cannot be shared evenly by {world} workers"
            raise InputError(what, "sampler.batch", "choose a multiple of the number of workers")
        if world > 1 and share % self.unit:
            what = f"'{self.kind}' draws {self.unit} samples together, which {world} workers with {share} each would cut apart"
            raise InputError(what, "sampler.batch", f"choose a multiple of {world * self.unit}, or other --sampler.instances")

    @property
    def mixed_from(self) -> int:
        """The first step that draws by a version. In mode freshest none may have come by then, but none is used before."""
        return max(self.begin, self.lag + self.interval)

    def even_place(self, step: int) -> int:
        """Where in the stream of uniform epochs a step's even draw begins: after all that the steps before it drew there.

        They drew the whole batch there before ``mixed_from``, and ``uniform_part`` since: a function of the step in both modes.
        """
        whole = min(step, self.mixed_from) if self.by_difficulty else step
        return whole * self.batch + (step - whole) * self.uniform_part


class Sampler:
    """Draws of one split.

    Raises:
        InputError: the split cannot fill such batches.
    """

    def __init__(self, config: SamplerConfig, split: Split, seed: int) -> None:
        _check_fits(config, split)
        self.config, self.split, self.seed = config, split, seed
        self._prepared = (0, np.empty(0), np.empty(0, np.int64))

    def draw(self, step: int, difficulty: Difficulty | None) -> Int64s:
        """The global batch of a step as positions of the split, int64 [B]. ``difficulty`` None: before the first version.

        In mode freshest, when none has come in time, the hard part is drawn by even chance: the epoch goes on as with a version.
        """
        config = self.config
        if config.kind == "pk":
            rng = generator(self.seed, "pk", step)
            identities = rng.choice(len(self.split.counts), config.batch // config.each, replace=False)
            return self._instances(rng, identities, config.each)
        mixed = config.by_difficulty and (difficulty is not None or step >= config.mixed_from)
        part = config.uniform_part if mixed else config.batch
        even, hard = self._epochs.batch(config.even_place(step), part), config.batch - part
        if not hard:
            return even
        rng = generator(self.seed, config.kind, step)
        chosen = rng.integers(len(self.split), size=hard) if difficulty is None else self._hard(rng, hard, difficulty)
        # Both parts are spread over the batch, so that every rank's slice holds its share of each: where ranks don't share the
        # statistics of batch norm a model keeps those of rank 0, which must not be of the hard samples alone.
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

    def _prepare(self, difficulty: Difficulty) -> tuple[npt.NDArray[np.float64], Int64s]:
        """The running sum of p [N] and the hardest identities [h]: O(N), so kept for the version in use; a draw is O(log N)."""
        if self._prepared[0] != difficulty.version:
            if self.config.kind == "hardest":
                self._prepared = (difficulty.version, np.empty(0), largest(difficulty.cosine, self.config.hardest))
            else:
                self._prepared = (
                    difficulty.version,
                    np.cumsum(probabilities(difficulty.cosine, self.config)),
                    np.empty(0, np.int64),
                )
        return self._prepared[1:]

    def _instances(self, rng: np.random.Generator, identities: npt.NDArray[np.integer], each: int) -> Int64s:
        """``each`` samples of every identity, each of its samples equally likely.

        They come out of one block, which is one ranged read, unless the identity has a block that holds too few.
        """
        split = self.split
        first, count = split.identity_starts[identities], split.counts[identities]
        probe = first + (rng.random(len(identities)) * count).astype(np.int64)
        block = np.searchsorted(split.starts, probe, side="right") - 1
        enough = split.smallest[identities] >= np.minimum(each, count)
        first = np.where(enough, split.starts[block], first)
        count = np.where(enough, split.starts[block + 1] - split.starts[block], count)
        positions: Int64s = (first[:, None] + distinct(rng, count, each)).ravel()
        return positions

    @property
    def mixed_bytes(self) -> int:
        """Bytes of the shards that even draws come from at a time."""
        return self._epochs.mixed_bytes

    @cached_property
    def _epochs(self) -> "UniformEpochs":
        return UniformEpochs(self.split, self.seed)


def probabilities(cosine: npt.NDArray[np.float32], config: SamplerConfig) -> npt.NDArray[np.float64]:
    """Strategy B: p_i = c_i / sum(c), with floor and temperature; even when nothing is above the floor of 0. [N], sums to 1."""
    weights = np.maximum(cosine.astype(np.float64), config.floor)
    if not weights.any():
        return np.full(len(weights), 1 / len(weights))
    weights /= weights.max()
    if config.temperature != 1:
        weights **= 1 / config.temperature
    share: npt.NDArray[np.float64] = weights / weights.sum()
    return share


def largest(values: npt.NDArray[np.float32], count: int) -> Int64s:
    """Where the ``count`` largest values stand, the largest first; of equal ones the first."""
    count = min(count, len(values))
    least = np.partition(values, -count)[-count]
    places = np.flatnonzero(values >= least)
    found: Int64s = places[np.argsort(-values[places], kind="stable")[:count]]
    return found


def pick(rng: np.random.Generator, cumulative: npt.NDArray[np.float64], count: int) -> Int64s:
    """``count`` independent draws from the distribution whose running sum is given."""
    drawn: Int64s = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right").astype(np.int64)
    return drawn


def distinct(rng: np.random.Generator, sizes: Int64s, each: int) -> Int64s:
    """For every size s, ``each`` numbers of 0..s-1, int64 [len(sizes), each]: all different while s lasts, then the same again.

    The j-th is drawn among the s - j left and moved past the ones taken before it, in ascending order.
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


def _check_fits(config: SamplerConfig, split: Split) -> None:
    identities, where = len(split.counts), f"split '{split.name}' of {split.index.url}"
    if identities < 2 and config.kind != "uniform":
        raise InputError(
            f"only {identities} identity to train on", where, "re-identification needs two or more: check the layout"
        )
    if config.batch > len(split):
        raise InputError(
            f"the batch of {config.batch} is larger than the data ({len(split)} samples)",
            where,
            "lower --sampler.batch",
        )
    if config.kind == "pk" and config.batch // config.each > identities:
        what = f"pk draws {config.batch // config.each} different identities and there are {identities}"
        raise InputError(what, where, "lower --sampler.batch or raise --sampler.instances")
    if config.kind in ("pk", "pairs") and config.each > 1 and split.counts.min() < 2:
        name = split.names[int(split.counts.argmin())]
        what = f"'{config.kind}' with {config.each} instances needs two samples of an identity, and '{name}' has one"
        raise InputError(what, where, "pack with --min-samples 2, or use --sampler.kind uniform or --sampler.instances 1")
