"""Samplers: the formulas, the guarantees of each, and that a draw depends only on (seed, step, version)."""

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from splits import chi_square, identities_of, split_with

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from datasets.sampling.epochs import UniformEpochs
from datasets.sampling.sampler import Kind, Sampler, SamplerConfig, distinct, pick, probabilities
from datasets.seeding import generator
from datasets.shards.index import Split

GOLDEN = np.array([0.98, 0.96, 0.9, 0.5, 0.46], np.float32)
BY_CHANCE = 1e-4  # of a test that is right to fail; the seeds are fixed, so it fails always or never
SPLIT = identities_of(5, 4, 9, 7, 6)


def version(cosine: np.ndarray, number: int = 1) -> Difficulty:
    """A version in which the identity after each one is its nearest."""
    return Difficulty(number, np.asarray(cosine, np.float32), np.roll(np.arange(len(cosine), dtype=np.int64), -1)[:, None])


PLAIN = SamplerConfig(temperature=1)  # the source's formula


def config(kind: Kind, **options: object) -> SamplerConfig:
    return replace(PLAIN, **{"kind": kind, "batch": 16, "instances": 2, "uniform_share": 0.5, "lag": 0, "interval": 1} | options)


def hard_part(sampler: Sampler, step: int, of: Difficulty) -> np.ndarray:
    """The labels that a sampler without an even part draws."""
    assert sampler.config.uniform_part == 0
    return sampler.split.labels_of(sampler.draw(step, of))


# ---- formulas


def test_probabilities_golden() -> None:
    """ALGORITHMS.md §1: c = (.98, .96, .9, .5, .46), sum 3.80."""
    p = probabilities(GOLDEN, PLAIN)
    np.testing.assert_allclose(p, np.array([0.98, 0.96, 0.9, 0.5, 0.46]) / 3.80, rtol=1e-6)
    assert p.round(3).tolist() == [0.258, 0.253, 0.237, 0.132, 0.121]


def test_probabilities_floor_and_temperature() -> None:
    cosine = np.array([0.8, 0.2, -0.5], np.float32)
    np.testing.assert_allclose(probabilities(cosine, PLAIN), [0.8, 0.2, 0], rtol=1e-6)
    np.testing.assert_allclose(probabilities(cosine, replace(PLAIN, floor=0.2)), np.array([0.8, 0.2, 0.2]) / 1.2, rtol=1e-6)
    np.testing.assert_allclose(probabilities(cosine, SamplerConfig(temperature=0.5)), np.array([16, 1, 0]) / 17, rtol=1e-6)
    np.testing.assert_allclose(probabilities(cosine, SamplerConfig(temperature=1e-3)), [1, 0, 0])
    np.testing.assert_allclose(probabilities(cosine, SamplerConfig(floor=1)), [1 / 3] * 3)


@pytest.mark.parametrize("cosine", [[-0.5, -0.1], [0.0, -1.0], [0.0, 0.0]])
def test_nothing_above_zero_is_even(cosine: list[float]) -> None:
    assert probabilities(np.array(cosine, np.float32), SamplerConfig()).tolist() == [0.5, 0.5]


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=30),
    st.floats(0, 1),
    st.floats(1e-3, 100),
)
def test_probabilities_properties(cosine: list[float], floor: float, temperature: float) -> None:
    c = np.array(cosine, np.float32)
    p = probabilities(c, SamplerConfig(floor=floor, temperature=temperature))
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    order = np.argsort(c)
    assert (np.diff(p[order]) >= -1e-12).all()  # the harder, the likelier


def test_pick_follows_p() -> None:
    p = np.array([0, 0.1, 0, 0.6, 0.3, 0])
    drawn = pick(generator(0, "test"), np.cumsum(p), 20_000)
    assert chi_square(np.bincount(drawn, minlength=6), 20_000 * p) > BY_CHANCE


def test_pick_stays_in_range_at_the_ends() -> None:
    class Ends:
        def random(self, count: int) -> np.ndarray:
            return np.resize([0.0, np.nextafter(1, 0)], count)

    for p in ([0.3, 0.7], [0, 0.1, 0.2, 0], np.full(1000, 1 / 1000), [1e-300, 3e-300]):
        p = np.array(p)
        drawn = pick(Ends(), np.cumsum(p), 2)  # type: ignore[arg-type]
        used = np.flatnonzero(p)
        assert drawn.tolist() == [used[0], used[-1]]


# ---- distinct


@given(st.lists(st.integers(1, 12), min_size=0, max_size=8), st.integers(0, 9), st.integers(0, 1000))
def test_distinct_while_it_can(sizes: list[int], each: int, seed: int) -> None:
    out = distinct(generator(seed, "test"), np.array(sizes, np.int64), each)
    assert out.shape == (len(sizes), each)
    for row, size in zip(out.tolist(), sizes, strict=True):
        assert all(0 <= value < size for value in row)
        least = each // size
        assert all(row.count(value) in (least, least + 1) for value in range(size))
        assert len(set(row[:size])) == min(each, size)


@pytest.mark.parametrize(("size", "each"), [(5, 2), (6, 3), (4, 4), (5, 1)])
def test_every_ordered_subset_is_equally_likely(size: int, each: int) -> None:
    rounds = 30_000
    rows = distinct(generator(1, "test"), np.full(rounds, size), each)
    outcomes = {subset: i for i, subset in enumerate(itertools.permutations(range(size), each))}
    seen = np.bincount([outcomes[tuple(row)] for row in rows.tolist()], minlength=len(outcomes))
    assert chi_square(seen, np.full(len(outcomes), rounds / len(outcomes))) > BY_CHANCE


# ---- uniform


shapes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(1, 6)), min_size=2, max_size=25).map(
    lambda blocks: sorted(blocks, key=lambda b: b[0])
)


@given(shapes, st.integers(1, 20), st.integers(0, 3), st.integers(1, 12), st.integers(1, 12))
def test_uniform_gives_every_sample_once_an_epoch(
    blocks: list[tuple[int, int, int]], batch: int, seed: int, least: int, mixed: int
) -> None:
    split = split_with(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.sampling.epochs.MIN_SHARDS", least)
        patch.setattr("datasets.sampling.epochs.MIXED_BYTES", mixed << 20)  # shards of 1 MiB
        epochs = UniformEpochs(split, seed)
    assert epochs.mixed == min(len(epochs.shards), max(least, mixed))
    stream = np.concatenate([epochs.batch(step * batch, batch) for step in range(2 * len(split) // batch + 1)])
    assert sorted(stream[: len(split)]) == list(range(len(split)))
    assert sorted(epochs.batch(len(split), len(split))) == list(range(len(split)))


def test_uniform_batches_straddle_epochs() -> None:
    split = identities_of(5, 5)
    epochs = UniformEpochs(split, 0)
    joined = np.concatenate([epochs.batch(0, 10), epochs.batch(10, 10), epochs.batch(20, 10)])
    np.testing.assert_array_equal(epochs.batch(7, 20), joined[7:27])
    assert not np.array_equal(joined[:10], joined[10:20])


def test_uniform_has_few_shards_open(monkeypatch: pytest.MonkeyPatch) -> None:
    split = identities_of(*[40] * 60, each_shard=3)  # 20 shards of 120 samples
    monkeypatch.setattr("datasets.sampling.epochs.MIXED_BYTES", 5 * split.index.shards[0].size)
    order = UniformEpochs(split, 0).batch(0, len(split))
    shard = split.index.blocks["shard"][split.index.samples["block"][split.samples(order)]]
    turns = np.stack([np.bincount(turn, minlength=20) for turn in shard.reshape(20, 120)])
    np.testing.assert_array_equal(np.sort(turns)[:, -6:], [[0, 24, 24, 24, 24, 24]] * 20)  # five shards, as much of each
    came = [set(np.flatnonzero(turn)) for turn in turns]
    assert all(len(came[turn] & came[turn - 1]) == 4 for turn in range(20))  # one comes and one goes, also around the ring
    mixed = [len(set(shard[start : start + 12])) for start in range(0, len(split), 12)]
    assert min(mixed) >= 3  # and within a turn they are in random order


def test_uniform_mixes_a_small_set_as_a_whole() -> None:
    split = identities_of(*[40] * 60, each_shard=3)
    order = UniformEpochs(split, 0).batch(0, len(split))
    labels = split.labels_of(order)
    apart = np.abs(np.argsort(order)[1:] - np.argsort(order)[:-1])  # how far neighbours of the set lie apart in the epoch
    assert abs(np.mean(apart) / len(split) - 1 / 3) < 0.02  # that of two independent places
    seen = [len(set(labels[start : start + 60])) for start in range(0, len(split), 60)]
    assert np.mean(seen) > 60 * (1 - (1 - 1 / 60) ** 60)  # identities a batch: more than of independent draws


def test_uniform_epoch_is_a_fair_shuffle() -> None:
    split = identities_of(3, 3)
    firsts = [int(UniformEpochs(split, seed).batch(0, 1)[0]) for seed in range(6000)]
    assert chi_square(np.bincount(firsts, minlength=6), np.full(6, 1000.0)) > BY_CHANCE


# ---- samplers


@given(
    shapes,
    st.sampled_from(["uniform", "pk", "hardest", "proportional", "pairs"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 50),
)
@settings(max_examples=200)
def test_every_sampler_gives_positions_in_range(
    blocks: list[tuple[int, int, int]], kind: Kind, instances: int, groups: int, fraction: float, step: int
) -> None:
    split = split_with(blocks)
    try:
        options = SamplerConfig(kind=kind, batch=4 * instances * groups, instances=instances, uniform_share=fraction, lag=0)
        sampler = Sampler(options, split, seed=3)
    except InputError:
        return
    cosine = np.linspace(-0.5, 0.9, len(split.counts))
    positions = sampler.draw(step, version(cosine))
    assert positions.dtype == np.int64
    assert positions.shape == (options.batch,)
    assert positions.min() >= 0
    assert positions.max() < len(split)
    np.testing.assert_array_equal(split.labels_of(positions), split.labels[np.searchsorted(split.starts, positions, "right") - 1])


def test_pk_is_p_identities_by_k_distinct_samples() -> None:
    sampler = Sampler(config("pk", batch=12, instances=4), SPLIT, 0)
    for step in range(20):
        rows = sampler.draw(step, None).reshape(3, 4)
        labels = SPLIT.labels_of(rows.ravel()).reshape(3, 4)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0])) == 3
        assert all(len(set(row)) == 4 for row in rows.tolist())


def test_pk_draws_identities_evenly_whatever_their_size() -> None:
    split = identities_of(2, 50, 9, 3)
    sampler = Sampler(config("pk", batch=4, instances=2), split, 0)
    labels = np.concatenate([split.labels_of(sampler.draw(step, None))[::2] for step in range(4000)])
    assert chi_square(np.bincount(labels), np.full(4, 2000.0)) > BY_CHANCE


def test_pairs_bring_the_nearest_with_each_anchor() -> None:
    split = identities_of(5, 5, 5, 5, 5)
    of = Difficulty(1, GOLDEN, np.array([[3], [0], [4], [1], [2]]))
    sampler = Sampler(config("pairs", batch=24, uniform_share=0, instances=3), split, 0)
    for step in range(20):
        labels = hard_part(sampler, step, of).reshape(4, 2, 3)
        assert (labels == labels[:, :, :1]).all()
        np.testing.assert_array_equal(labels[:, 1, 0], of.nearest[labels[:, 0, 0]])


@pytest.mark.parametrize(("hardest", "expected"), [(1, {1: 8}), (2, {1: 4, 3: 4}), (3, {1: 3, 3: 3, 0: 2}), (9, None)])
def test_hardest_fill_their_part_of_the_batch(hardest: int, expected: dict[int, int] | None) -> None:
    sampler = Sampler(config("hardest", hardest=hardest, batch=8, uniform_share=0), SPLIT, 0)
    labels = hard_part(sampler, 5, version([0.5, 0.9, 0.1, 0.8, 0.2])).tolist()
    found = {label: labels.count(label) for label in dict.fromkeys(labels)}
    assert found == (expected or {1: 2, 3: 2, 0: 2, 4: 1, 2: 1})


def test_hardest_uses_as_many_samples_as_there_are() -> None:
    split = identities_of(3, 3)
    positions = Sampler(config("hardest", hardest=1, batch=6, uniform_share=0), split, 0).draw(0, version([0.1, 0.9]))
    assert sorted(positions) == [3, 3, 4, 4, 5, 5]


def test_proportional_draws_as_often_as_the_formula_says() -> None:
    sampler = Sampler(config("proportional", uniform_share=0), SPLIT, 7)
    labels = np.concatenate([hard_part(sampler, step, version(GOLDEN))[::2] for step in range(3000)])
    expected = len(labels) * GOLDEN / GOLDEN.sum()
    assert chi_square(np.bincount(labels), expected) > BY_CHANCE
    assert chi_square(np.bincount(labels), np.full(5, len(labels) / 5)) < BY_CHANCE  # so the test detects it


def test_pairs_draw_as_often_as_the_formula_says() -> None:
    split = identities_of(6, 6, 6, 6, 6)
    of = Difficulty(1, GOLDEN, np.array([[1], [0], [1], [0], [3]]))
    sampler = Sampler(config("pairs", uniform_share=0), split, 7)
    labels = np.concatenate([hard_part(sampler, step, of).reshape(-1, 2, 2)[:, :, 0] for step in range(3000)])
    p = GOLDEN / GOLDEN.sum()
    assert chi_square(np.bincount(labels[:, 0], minlength=5), len(labels) * p) > BY_CHANCE
    as_nearest = np.bincount(of.nearest, p, minlength=5)
    assert chi_square(np.bincount(labels[:, 1], minlength=5), len(labels) * as_nearest) > BY_CHANCE


@pytest.mark.parametrize(
    "blocks", [[(0, 0, 8), (0, 1, 8)], [(0, 0, 4), (0, 1, 8), (1, 0, 4)], [(i, i % 2, 1) for i in range(16)]]
)
def test_samples_of_an_identity_are_drawn_evenly(blocks: list[tuple[int, int, int]]) -> None:
    """From one block or from several, of which each holds enough or none does."""
    split = split_with(blocks)
    sampler = Sampler(config("proportional", batch=16, instances=4, uniform_share=0), split, 1)
    drawn = np.concatenate([sampler.draw(step, version([0.5, 0.5])) for step in range(2000)])
    labels = split.labels_of(drawn)
    for label in (0, 1):
        counts = np.bincount(drawn[labels == label] - split.identity_starts[label], minlength=8)
        # A draw takes 4 of 8 without repeats, which varies less than the chi-square allows for: compare the means instead.
        np.testing.assert_allclose(counts / counts.sum(), 1 / 8, rtol=0.05)


def test_instances_come_from_one_block_where_it_holds_enough() -> None:
    split = split_with([(0, 0, 5), (0, 1, 2), (1, 0, 4), (1, 1, 1), (2, 1, 1), (3, 0, 6)])
    sampler = Sampler(config("proportional", batch=8, instances=4, uniform_share=0), split, 0)
    seen = set()
    for step in range(50):
        for row in sampler.draw(step, version([0.9, 0.9])).reshape(2, 4):
            label = int(split.labels_of(row)[0])
            blocks = set(np.searchsorted(split.starts, row, side="right") - 1)
            assert len(set(row)) == 4  # identity 1 has its four in three blocks
            assert len(blocks) == (1 if label == 0 else 3)
            seen |= blocks
    assert seen == set(range(6))


def test_identity_with_fewer_samples_than_instances_repeats_them() -> None:
    split = split_with([(0, 0, 2), (1, 0, 1), (1, 1, 9)])
    sampler = Sampler(config("proportional", batch=5, instances=5, uniform_share=0), split, 0)
    assert sorted(np.bincount(sampler.draw(0, version([1, 0])), minlength=3)) == [1, 2, 2]


# ---- the even part


def test_even_part_is_that_of_the_uniform_epoch() -> None:
    split = identities_of(*[6] * 6)
    epochs = UniformEpochs(split, 4)
    for kind in ("hardest", "proportional", "pairs"):
        sampler = Sampler(config(kind), split, 4)
        every = set(sampler.draw(3, version(np.eye(6)[0])).tolist())
        assert set(epochs.batch(16 + 2 * 8, 8).tolist()) <= every  # step 0 drew all of its batch there


BY_DIFFICULTY: list[Kind] = ["hardest", "proportional", "pairs"]


@st.composite
def mixed_configs(draw: st.DrawFn) -> SamplerConfig:
    """Settings of draws by difficulty with an even part."""
    kind, instances = draw(st.sampled_from(BY_DIFFICULTY)), draw(st.integers(1, 3))
    unit = instances * (2 if kind == "pairs" else 1)
    hard, even = unit * draw(st.integers(1, 4)), draw(st.integers(1, 20))
    times = {name: draw(st.integers(least, 6)) for name, least in (("interval", 1), ("lag", 0), ("begin", 0))}
    batch = hard + even
    return replace(PLAIN, kind=kind, batch=batch, instances=instances, uniform_share=even / batch, hardest=1, **times)


@given(mixed_configs(), st.integers(0, 3), st.sampled_from(["pinned", "freshest"]), st.integers(0, 20))
def test_even_draws_are_the_uniform_stream_without_a_repeat_or_a_gap(
    options: SamplerConfig, seed: int, mode: Literal["pinned", "freshest"], late: int
) -> None:
    """By order: hard draws are of identities 0 and 1 alone, which are left out on both sides. Some versions come late."""
    split = identities_of(2, 3, *[5] * 8)
    sampler = Sampler(replace(options, mode=mode), split, seed)
    of = Difficulty(1, np.eye(10, dtype=np.float32)[0], np.ones((10, 1), np.int64))
    came, drawn = list[int](), 0
    for step in range(20):
        due = options.version_at(step) > 0
        positions = sampler.draw(step, of if due and (mode == "pinned" or step >= late) else None)
        drawn += options.uniform_part if due else options.batch
        if due and mode == "freshest" and step < late:  # the hard part is drawn by chance: the even one is among it, in order
            place = drawn - options.uniform_part
            wanted = iter(positions.tolist())
            assert all(position in wanted for position in UniformEpochs(split, seed).batch(place, options.uniform_part).tolist())
            positions = UniformEpochs(split, seed).batch(place, options.uniform_part)
        came += positions[split.labels_of(positions) > 1].tolist()
    stream = UniformEpochs(split, seed).batch(0, drawn)
    assert came == stream[split.labels_of(stream) > 1].tolist()


def test_the_default_draws_every_image_once_before_any_twice() -> None:
    """Measured before this held: 528 of the 560 even draws of the ten steps after the first version repeated."""
    options, split = SamplerConfig(), identities_of(*[10] * 800)
    sampler, of = Sampler(options, split, 0), Difficulty(1, np.eye(800, dtype=np.float32)[0], np.ones((800, 1), np.int64))
    first = next(step for step in range(1000) if options.version_at(step))
    drawn = np.concatenate([sampler.draw(step, None if step < first else of) for step in range(first + 10)])
    others = drawn[split.labels_of(drawn) != 0]
    assert len(others) == len(set(others.tolist())) > 64 * first + 56 * 10 - 20


@pytest.mark.parametrize("kind", ["hardest", "proportional", "pairs"])
@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_gets_hard_and_uniform_samples(kind: Kind, world: int) -> None:
    """Batch norm keeps rank 0's statistics: those must not be of the hard samples alone."""
    split = identities_of(*[30] * 40)
    sampler = Sampler(config(kind, batch=64, instances=4, hardest=2), split, 0)
    of = Difficulty(1, np.eye(40, dtype=np.float32)[0], np.ones((40, 1), np.int64))
    hard = np.isin(split.labels_of(sampler.draw(0, of)), (0, 1)).reshape(world, -1).sum(axis=1)
    assert abs(hard - 32 / world).max() <= 4


def test_groups_stay_whole_and_side_by_side() -> None:
    split = identities_of(*[8] * 12)
    of = Difficulty(1, np.eye(12, dtype=np.float32)[3], np.full((12, 1), 5, np.int64))
    positions = Sampler(config("pairs", batch=32, instances=2), split, 0).draw(1, of)
    labels, runs = split.labels_of(positions).tolist(), 0
    for i in range(len(labels) - 3):
        runs += labels[i : i + 4] == [3, 3, 5, 5]
    assert runs >= 4


@given(mixed_configs(), st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(0, 30))
@settings(max_examples=200)
def test_what_is_drawn_together_stays_whole_on_a_rank(options: SamplerConfig, world: int, step: int) -> None:
    """Hard draws are of identities 0 and 1 alone, of K images each, so that K drawn together are all different."""
    each = options.each
    split = identities_of(each, each, *[9] * 40)
    options = replace(options, batch=options.batch * world, lag=0, interval=1, begin=0)
    if world > 1 and options.batch // world % options.unit:
        with pytest.raises(InputError, match="together"):
            options.check_world(world)
        return
    options.check_world(world)
    of = Difficulty(1, np.eye(42, dtype=np.float32)[0], np.ones((42, 1), np.int64))
    positions = Sampler(options, split, 0).draw(step + 1, of)
    even = UniformEpochs(split, 0).batch(options.batch + step * options.uniform_part, options.uniform_part)
    assume(not np.any(split.labels_of(even) < 2))
    for rank in range(world):
        own = positions[RankSlice(rank, world).of(options.batch)]
        own = own[split.labels_of(own) < 2]
        assert len(own) % options.unit == 0
        for unit in own.reshape(-1, options.unit) if options.kind != "hardest" else []:
            assert sorted(unit) == list(range(options.unit))


def test_pk_stays_whole_on_a_rank() -> None:
    split = identities_of(*[5] * 20)
    positions = Sampler(config("pk", batch=24, instances=4), split, 0).draw(0, None)
    for world in (2, 3, 6):
        config("pk", batch=24, instances=4).check_world(world)
        labels = split.labels_of(positions).reshape(world, -1, 4)
        assert (labels == labels[:, :, :1]).all()
    for world, message in ((4, "'pk' draws 4 samples together, which 4 workers with 6 each would separate"), (5, "evenly")):
        with pytest.raises(InputError, match=message):
            config("pk", batch=24, instances=4).check_world(world)


@pytest.mark.parametrize("kind", ["hardest", "proportional", "pairs"])
def test_fractions_of_0_and_1(kind: Kind) -> None:
    split = identities_of(8, 8, 8)
    only = version([0.9, -1, -1])
    hard = Sampler(config(kind, uniform_share=0, hardest=1), split, 0).draw(2, only)
    assert set(split.labels_of(hard)) <= {0, 1}
    even = Sampler(config(kind, uniform_share=1), split, 0).draw(2, only)
    np.testing.assert_array_equal(even, UniformEpochs(split, 0).batch(32, 16))


# ---- a pure function of (seed, step, version)


@pytest.mark.parametrize("kind", ["uniform", "pk", "hardest", "proportional", "pairs"])
def test_draw_depends_on_seed_step_and_version_alone(kind: Kind) -> None:
    split = identities_of(*[7] * 10)
    versions = {1: version(np.linspace(0, 1, 10), 1), 2: version(np.linspace(1, 0, 10) ** 2, 2)}

    def of(step: int) -> Difficulty | None:
        return versions.get(step // 5)

    one = Sampler(config(kind), split, 11)
    in_order = [one.draw(step, of(step)) for step in range(15)]
    mixed = Sampler(config(kind), split, 11)
    for step in (14, 0, 7, 3, 12, 7, 5):
        np.testing.assert_array_equal(mixed.draw(step, of(step)), in_order[step])
        np.testing.assert_array_equal(Sampler(config(kind), split, 11).draw(step, of(step)), in_order[step])
    assert not np.array_equal(Sampler(config(kind), split, 12).draw(3, of(3)), in_order[3])
    assert not np.array_equal(in_order[3], in_order[4])
    if kind in ("hardest", "proportional", "pairs"):
        assert not np.array_equal(one.draw(7, versions[2]), in_order[7])


def test_before_the_first_version_everything_is_even() -> None:
    split = identities_of(9, 9)
    for kind in ("uniform", "hardest", "proportional", "pairs"):
        sampler = Sampler(config(kind, interval=2), split, 0)
        np.testing.assert_array_equal(sampler.draw(1, None), UniformEpochs(split, 0).batch(16, 16))


def test_draws_leave_global_random_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Sampler(config("pairs"), SPLIT, 0).draw(3, version(GOLDEN))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# ---- boundaries


@pytest.mark.parametrize("kind", ["uniform", "pk", "hardest", "proportional", "pairs"])
def test_two_identities_one_block_each(kind: Kind) -> None:
    split = identities_of(2, 2)
    sampler = Sampler(config(kind, batch=4, uniform_share=0), split, 0)  # and the batch is the whole split
    labels = split.labels_of(sampler.draw(0, version([0.5, 0.5])))
    assert len(labels) == 4
    if kind in ("uniform", "pk", "pairs"):
        assert sorted(labels) == [0, 0, 1, 1]


def test_sharp_temperature_draws_the_hardest_only() -> None:
    sampler = Sampler(config("proportional", uniform_share=0, temperature=1e-3), SPLIT, 0)
    assert set(hard_part(sampler, 0, version(GOLDEN))) == {0}


def test_no_identity_above_zero_is_drawn_evenly() -> None:
    sampler = Sampler(config("proportional", uniform_share=0), SPLIT, 0)
    labels = np.concatenate([hard_part(sampler, step, version(-GOLDEN))[::2] for step in range(1000)])
    assert chi_square(np.bincount(labels), np.full(5, len(labels) / 5)) > BY_CHANCE


def test_instances_1() -> None:
    split = identities_of(1, 1, 1, 1)
    for kind in ("pk", "pairs"):
        assert len(set(Sampler(config(kind, batch=4, instances=1, uniform_share=0), split, 0).draw(0, version([1] * 4)))) >= 2


# ---- versions


@pytest.mark.parametrize(
    ("interval", "lag", "begin", "expected"),
    [
        # steps 0..11
        (1, 0, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (1, 2, 0, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (4, 0, 0, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (4, 2, 0, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]),
        (4, 4, 0, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (2, 5, 0, [0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3]),
        (4, 0, 6, [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]),
        (100, 0, 0, [0] * 12),
    ],
)
def test_version_at(interval: int, lag: int, begin: int, expected: list[int]) -> None:
    options = SamplerConfig(interval=interval, lag=lag, begin=begin)
    assert [options.version_at(step) for step in range(12)] == expected
    assert [replace(options, kind="uniform").version_at(step) for step in range(12)] == [0] * 12
    for step in range(100):
        number = options.version_at(step)
        assert number == 0 or number * interval + lag <= step  # it has been computed, and the lag has passed


# ---- bad input


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (identities_of(9), config("pk", batch=2), "only 1 identity"),
        (identities_of(9, 6), config("uniform"), "batch of 16 is larger than the data (15 samples)"),
        (identities_of(9, 1, 9), config("pk", batch=4), "'0001' has one"),
        (identities_of(9, 1, 9), config("pairs"), "'0001' has one"),
        (identities_of(9, 9, 9), config("pk", batch=8), "pk draws 4 different identities and there are 3"),
    ],
)
def test_splits_that_do_not_fit(split: Split, options: SamplerConfig, message: str) -> None:
    with pytest.raises(InputError) as error:
        Sampler(options, split, 0)
    assert message in str(error.value)
    assert "train" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pk", "batch": 10, "instances": 4}, "4 at a time"),
        ({"kind": "proportional", "batch": 20, "instances": 4}, "2 of 20 samples"),
        ({"kind": "pairs", "batch": 24, "instances": 4}, "8 at a time"),
        ({"batch": 0}, "sampler.batch"),
        ({"instances": 0}, "sampler.instances"),
        ({"hardest": 0}, "sampler.hardest"),
        ({"interval": 0}, "sampler.interval"),
        ({"lag": -1}, "sampler.lag"),
        ({"begin": -1}, "sampler.begin"),
        ({"uniform_share": 1.01}, "sampler.uniform_share"),
        ({"uniform_share": float("nan")}, "sampler.uniform_share"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"floor": -0.1}, "floor"),
        ({"patience": 0}, "patience"),
        ({"begin_below": -0.1}, "begin_below"),
        ({"begin_below": float("nan")}, "begin_below"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplerConfig(**options)  # type: ignore[arg-type]
