"""Batches of identities that look alike: anchors, their nearest, samples from different cameras."""

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splits import chi_square, identities_of, split_with

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from datasets.sampling.neighbourhoods import AnchorEpochs, neighbourhoods, of_different_cameras
from datasets.sampling.sampler import Sampler, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Split, split_of
from datasets.shards.joined import join

BY_CHANCE = 1e-4  # of a test that is right to fail; the seeds are fixed, so it fails always or never


def near(identities: int, k: int, seed: int = 0) -> np.ndarray:
    """Of every identity, k others in random order, int32 [N, k]."""
    rows = [generator(seed, "near", i).permutation(np.delete(np.arange(identities), i))[:k] for i in range(identities)]
    return np.array(rows, np.int32)


def version(identities: int, config: SamplerConfig, number: int = 1) -> Difficulty:
    cosine = generator(number, "cosine").random(identities, dtype=np.float32)
    return Difficulty(number, cosine, near(identities, config.neighbours_needed(identities), number))


def with_cameras(split: Split, cameras: np.ndarray) -> Split:
    """The same split, with these cameras of its samples, in the order of the index."""
    names = tuple(f"c{number}" for number in range(int(cameras.max()) + 1))
    index = replace(split.index, cameras=names, samples={**split.index.samples, "camera": cameras.astype(np.int16)})
    return split_of(index, split.name)


def cameras_at(split: Split, positions: np.ndarray) -> np.ndarray:
    return split.index.samples["camera"][split.samples(positions)]


NOW = {"lag": 0, "interval": 1}  # versions are used from step 1 on


# ---- anchors


@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 200), st.integers(0, 90))
def test_every_identity_is_anchor_once_an_epoch(identities: int, seed: int, place: int, count: int) -> None:
    epochs = AnchorEpochs(identities, seed)
    whole = np.concatenate([epochs.batch(epoch * identities, identities) for epoch in range(10)])
    for epoch in range(10):
        assert sorted(whole[epoch * identities :][:identities]) == list(range(identities))
    again = AnchorEpochs(identities, seed).batch(min(place, 10 * identities), count)  # any place, without those before it
    known = whole[min(place, 10 * identities) :][:count]
    assert again.dtype == np.int64
    assert len(again) == count
    np.testing.assert_array_equal(again[: len(known)], known)


def test_epochs_of_anchors_differ() -> None:
    epochs = AnchorEpochs(50, 0)
    assert not np.array_equal(epochs.batch(0, 50), epochs.batch(50, 50))
    assert not np.array_equal(epochs.batch(0, 50), AnchorEpochs(50, 1).batch(0, 50))


# ---- neighbourhoods


def plainly(anchors: list[int], neighbours: list[list[int]], width: int, skip: int) -> list[list[int | None]]:
    """The same by the rules, one after another; None where an identity is drawn by chance."""
    first = list(dict.fromkeys(anchors))
    batch, groups = set(first), list[list[int | None]]()
    for place in range(len(anchors)):
        if place >= len(first):
            groups.append([None] * width)
            continue
        group: list[int | None] = [first[place]]
        for other in neighbours[first[place]][skip:]:
            if len(group) < width and other not in batch:
                batch.add(other)
                group.append(other)
        groups.append(group + [None] * (width - len(group)))
    return groups


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[int], np.ndarray, int, int]:
    """Identities, anchors, neighbours, width, skip; anchors may come twice, neighbours may run out."""
    count, width = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    identities = draw(st.integers(count * width, 40))
    anchors = draw(st.lists(st.integers(0, identities - 1), min_size=count, max_size=count))
    return identities, anchors, near(identities, draw(st.integers(1, identities - 1))), width, draw(st.integers(0, 4))


@given(cases(), st.integers(0, 99))
@settings(max_examples=300)
def test_neighbourhoods_are_as_the_rules_say(case: tuple[int, list[int], np.ndarray, int, int], seed: int) -> None:
    identities, anchors, neighbours, width, skip = case
    drawn = neighbourhoods(generator(seed, "test"), np.array(anchors), neighbours, width, skip)
    assert drawn.dtype == np.int64
    assert len(set(drawn.tolist())) == len(anchors) * width  # all different
    assert drawn.min() >= 0
    assert drawn.max() < identities
    rows = drawn.reshape(-1, width).tolist()
    # One that is drawn by chance may be a later anchor's neighbour, which then takes its next one: up to there, it is as below.
    for row, expected in zip(rows, plainly(anchors, neighbours.tolist(), width, skip), strict=True):
        assert [a for a, b in zip(row, expected, strict=True) if b is not None] == [b for b in expected if b is not None]
        if None in expected:
            break
    again = neighbourhoods(generator(seed, "test"), np.array(anchors), neighbours, width, skip)
    np.testing.assert_array_equal(drawn, again)


def test_a_neighbour_that_is_in_the_batch_makes_room_for_the_next() -> None:
    neighbours = np.zeros((9, 4), np.int32)
    neighbours[0], neighbours[3] = [3, 5, 6, 7], [0, 5, 6, 8]  # each other's nearest, and the same second
    drawn = neighbourhoods(generator(0, "test"), np.array([0, 3]), neighbours, 3).tolist()
    assert drawn[:5] == [0, 5, 6, 3, 8]
    assert drawn[5] in (1, 2, 4, 7)
    assert neighbourhoods(generator(0, "test"), np.array([0, 3]), neighbours, 2, skip=1).tolist() == [0, 5, 3, 6]


def test_what_is_missing_is_drawn_evenly() -> None:
    neighbours = np.array([[1], [0], [0], [0], [0], [0]], np.int32)
    drawn = [neighbourhoods(generator(seed, "test"), np.array([0]), neighbours, 3).tolist() for seed in range(4000)]
    assert all(row[:2] == [0, 1] for row in drawn)
    assert chi_square(np.bincount([row[2] for row in drawn])[2:], np.full(4, 1000.0)) > BY_CHANCE


# ---- cameras


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 99)
)
@settings(max_examples=300)
def test_cameras_differ_where_they_can(cameras: list[list[int]], each: int, seed: int) -> None:
    counts = np.array([len(own) for own in cameras])
    drawn = of_different_cameras(generator(seed, "test"), np.concatenate(cameras), counts, each)
    assert drawn.shape == (len(cameras), each)
    for row, own in zip(drawn.tolist(), cameras, strict=True):
        assert all(0 <= number < len(own) for number in row)
        assert all(row[place] == row[place % len(own)] for place in range(each))  # repeated only if there are fewer
        assert len(set(row)) == min(each, len(own))
        have, came = Counter(own), Counter[int]()
        for number in row[: len(own)]:
            left = [camera for camera in have if came[camera] < have[camera]]
            assert came[own[number]] == min(came[camera] for camera in left)
            came[own[number]] += 1


def test_samples_of_different_cameras_are_drawn_evenly() -> None:
    """The first is any sample, the second any of another camera."""
    cameras = np.array([0, 0, 0, 1, 2])
    rows = np.concatenate([
        of_different_cameras(generator(seed, "test"), np.tile(cameras, 40), np.full(40, 5), 2) for seed in range(300)
    ])  # fmt: skip
    expected = np.zeros((5, 5))
    for first in range(5):
        others = cameras != cameras[first]
        expected[first, others] = 1 / 5 / others.sum()
    seen = np.bincount(rows[:, 0] * 5 + rows[:, 1], minlength=25)
    assert chi_square(seen, expected.ravel() * len(rows)) > BY_CHANCE


def test_many_cameras_do_not_overflow() -> None:
    cameras = np.repeat(np.arange(128), 2).astype(np.int8)
    drawn = of_different_cameras(generator(0, "test"), np.tile(cameras, 3), np.full(3, 256), 128)
    assert all(sorted(cameras[row]) == list(range(128)) for row in drawn)


@pytest.mark.parametrize("blocks", [[(i, i, 6) for i in range(12)], [(i // 2, i // 2, 3) for i in range(24)]])
def test_draws_come_from_different_cameras_of_a_block(blocks: list[tuple[int, int, int]]) -> None:
    """Of one block an identity, and of two that are too small, so that samples come from both."""
    plain = split_with(blocks)
    split = with_cameras(plain, np.arange(len(plain)) % 6)
    config = SamplerConfig("neighbours", batch=16, anchors=2, **NOW)
    of = version(12, config)
    for step in range(1, 40):
        positions = Sampler(config, split, 3).draw(step, of).reshape(4, 4)
        assert all(len(set(row)) == 4 for row in cameras_at(split, positions).tolist())
    without = replace(config, different_cameras=False)
    rows = [cameras_at(split, row) for step in range(1, 40) for row in Sampler(without, split, 3).draw(step, of).reshape(4, 4)]
    assert all(len(set(row)) == 4 for row in rows)  # samples are distinct all the same


def test_without_the_option_cameras_repeat() -> None:
    split = with_cameras(identities_of(*[8] * 12), np.arange(96) % 8 // 4)  # two cameras an identity
    config = SamplerConfig("neighbours", batch=24, anchors=2, instances=2, **NOW)
    of = version(12, config)
    for other, repeats in ((config, False), (replace(config, different_cameras=False), True)):
        drawn = [Sampler(other, split, 0).draw(step, of).reshape(12, 2) for step in range(1, 30)]
        cameras = np.concatenate([cameras_at(split, positions) for positions in drawn])
        assert bool((cameras[:, 0] == cameras[:, 1]).any()) == repeats


# ---- the draw


@st.composite
def configs(draw: st.DrawFn) -> tuple[SamplerConfig, int]:
    """Settings, and a number of identities that fits them."""
    anchors, width, instances, skip = (draw(st.integers(*ends)) for ends in ((1, 4), (2, 4), (1, 3), (0, 2)))
    times = {name: draw(st.integers(least, 5)) for name, least in (("interval", 1), ("lag", 0), ("begin", 0))}
    batch = anchors * width * instances
    config = SamplerConfig("neighbours", batch=batch, instances=instances, anchors=anchors, skip=skip, **times)
    return config, draw(st.integers(anchors * width + skip, 30))


@given(configs(), st.integers(0, 3), st.sampled_from(["pinned", "freshest"]))
@settings(max_examples=150)
def test_a_batch_is_anchors_with_their_nearest_and_before_that_as_pk(
    case: tuple[SamplerConfig, int], seed: int, mode: Literal["pinned", "freshest"]
) -> None:
    config, identities = replace(case[0], mode=mode), case[1]
    split = identities_of(*[4] * identities)
    sampler, pk = Sampler(config, split, seed), Sampler(replace(config, kind="pk"), split, seed)
    anchors = AnchorEpochs(identities, seed)
    started = False
    for step in range(16):
        number = config.version_at(step)
        of = version(identities, config, number) if number else None
        positions = sampler.draw(step, of)
        rows = split.labels_of(positions).reshape(-1, config.each)
        assert (rows == rows[:, :1]).all()  # K of each
        assert len(set(rows[:, 0])) == config.batch // config.each  # P different ones
        assert all(len(set(row)) == config.each for row in positions.reshape(-1, config.each).tolist())
        np.testing.assert_array_equal(positions, Sampler(config, split, seed).draw(step, of))  # of (seed, step, version) alone
        if of is None:
            np.testing.assert_array_equal(positions, pk.draw(step, None))
            assert not started
            continue
        started = True
        own = anchors.batch((step - config.mixed_from) * config.anchors, config.anchors)
        assert set(own) <= set(rows[:: config.width, 0])
        expected = plainly(own.tolist(), of.neighbours.tolist(), config.width, config.skip)
        if None not in expected[0]:
            assert rows[: config.width, 0].tolist() == expected[0]


def test_an_epoch_of_draws_has_every_identity_as_anchor_once() -> None:
    config = SamplerConfig("neighbours", batch=32, **NOW)
    split = identities_of(*[4] * 20)
    drawn = [Sampler(config, split, 5).draw(step, version(20, config, step)) for step in range(1, 11)]
    heads = np.concatenate([split.labels_of(positions).reshape(4, 2, 4)[:, 0, 0] for positions in drawn])
    assert np.bincount(heads, minlength=20).tolist() == [2] * 20  # 40 anchors


def test_the_draw_of_today() -> None:
    """A changed draw would make resumed runs differ from those that they continue."""
    config = SamplerConfig("neighbours", batch=16, anchors=2, instances=2, skip=1, **NOW)
    split = with_cameras(identities_of(*[5] * 12), np.arange(60) % 5 % 3)
    of = Difficulty(1, np.zeros(12, np.float32), ((np.arange(12)[:, None] + np.arange(1, 8)) % 12).astype(np.int32))
    drawn = Sampler(config, split, 7).draw(1, of)
    assert config.neighbours_needed(12) == 7
    assert split.labels_of(drawn)[::2].tolist() == [4, 6, 7, 8, 0, 2, 3, 5]
    assert drawn.tolist() == [21, 23, 30, 31, 38, 37, 40, 44, 2, 0, 14, 12, 16, 17, 27, 28]


def test_the_sharing_of_the_batch_does_not_count() -> None:
    """There is no uniform part, as in pk."""
    split = identities_of(*[4] * 20)
    draws = []
    for share in (0.0, 0.5, 1.0):
        config = SamplerConfig("neighbours", batch=32, uniform_share=share, **NOW)
        assert config.uniform_part == 0
        draws.append(Sampler(config, split, 5).draw(3, version(20, config)))
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])


def test_versions_without_neighbours_draw_as_pk() -> None:
    """Until the run finds that look-alikes pay."""
    config = SamplerConfig("neighbours", batch=16, anchors=2, instances=2, **NOW)
    split, of = identities_of(*[4] * 20), version(20, config)
    before = of._replace(neighbours=np.full_like(of.neighbours, -1))
    assert of.begun
    assert not before.begun
    for step in range(1, 6):
        expected = Sampler(SamplerConfig("pk", batch=16, instances=2), split, 3).draw(step, None)
        np.testing.assert_array_equal(Sampler(config, split, 3).draw(step, before), expected)


def test_a_neighbourhood_stays_on_a_rank() -> None:
    config = SamplerConfig("neighbours", batch=48, instances=2, **NOW)
    split = identities_of(*[4] * 40)
    of = version(40, config)
    positions = Sampler(config, split, 0).draw(3, of)
    heads = set(AnchorEpochs(40, 0).batch(8, 4).tolist())
    for world in (1, 2, 4):
        config.check_world(world)
        for rank in range(world):
            labels = split.labels_of(positions[RankSlice(rank, world).of(48)]).reshape(-1, config.unit)
            assert all(row[0] in heads and len(set(row)) == config.width for row in labels.tolist())
    for world, message in (
        (3, "'neighbours' draws 12 samples together, which 3 workers with 16 each would separate"),
        (5, "evenly"),
    ):
        with pytest.raises(InputError, match=message):
            config.check_world(world)
    with pytest.raises(InputError, match=r"choose --sampler\.anchors that is a multiple of 8"):
        config.check_world(8)


# ---- how many neighbours a version holds


def test_neighbours_needed() -> None:
    assert SamplerConfig("neighbours").neighbours_needed(1000) == 6  # 64 = 4 anchors x 4 identities x 4 samples
    assert SamplerConfig("neighbours", skip=3).neighbours_needed(1000) == 9
    assert SamplerConfig("neighbours", batch=256).neighbours_needed(1000) == 30
    assert SamplerConfig("neighbours", batch=512).neighbours_needed(1000) == 32
    assert SamplerConfig("neighbours").neighbours_needed(5) == 4
    assert {SamplerConfig(kind).neighbours_needed(1000) for kind in ("uniform", "pk", "hardest", "proportional", "pairs")} == {1}


# ---- several sets


def joined(*sets: Split) -> Split:
    indices = [replace(split.index, url=f"set{number}", about={"mirror": True}) for number, split in enumerate(sets)]
    return split_of(join(indices), "train")


def test_anchors_come_by_the_weights_of_the_sets() -> None:
    """Each set's identities are anchors in turn; neighbours are those of all sets."""
    split, firsts = joined(identities_of(*[4] * 6), identities_of(*[3] * 30)), [0, 6, 36]
    config = SamplerConfig("neighbours", batch=16, instances=2, weights=(3, 1), **NOW)
    of = version(36, config)
    drawn = [Sampler(config, split, 2).draw(step, of) for step in range(1, 41)]
    rows = np.stack([split.labels_of(positions).reshape(4, 2, 2)[:, :, 0] for positions in drawn])
    anchors = rows[:, :, 0].ravel()
    assert np.bincount(np.searchsorted(firsts, anchors, "right") - 1).tolist() == [120, 40]
    for number, times in ((0, 20), (1, 1)):
        own = anchors[(anchors >= firsts[number]) & (anchors < firsts[number + 1])] - firsts[number]
        size = firsts[number + 1] - firsts[number]
        for begin in range(0, times * size, size):
            assert sorted(own[begin : begin + size]) == list(range(size))
    assert {0, 1} == set(np.searchsorted(firsts, rows[:, :, 1].ravel(), "right") - 1)
    first = Sampler(config, split, 2).draw(0, None)
    np.testing.assert_array_equal(first, Sampler(replace(config, kind="pk"), split, 2).draw(0, None))


def test_a_set_with_fewer_identities_than_anchors_is_filled_up() -> None:
    split = joined(identities_of(9, 9), identities_of(*[9] * 12))
    config = SamplerConfig("neighbours", batch=12, instances=1, anchors=4, weights=(999, 1), **NOW)
    for step in range(1, 20):
        labels = split.labels_of(Sampler(config, split, 0).draw(step, version(14, config)))
        assert len(set(labels.tolist())) == 12
        assert {0, 1} <= set(labels.tolist())


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 60}, "a batch of 60 is not 4 neighbourhoods of two or more identities x 4 samples"),
        ({"batch": 16}, "choose 2, 3, 4 ... times 16"),
        ({"batch": 28, "instances": 4}, "not 4 neighbourhoods"),
        ({"anchors": 0}, "sampler.anchors is 0"),
        ({"skip": -1}, "sampler.skip is -1"),
        ({"batch": 34, "instances": 1, "anchors": 1}, "reaches to the 33th neighbour, and 32 are known"),
        ({"skip": 30}, "give more --sampler.anchors, or a smaller --sampler.skip"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SamplerConfig("neighbours", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (identities_of(*[9] * 15), {}, "neighbours draws 16 different identities and there are 15"),
        (identities_of(*[9] * 16), {"skip": 13}, "an identity has 15 neighbours, and 3 are drawn after 13 are left out"),
        (identities_of(1, *[9] * 20), {}, "'neighbours' with 4 instances needs two samples of an identity, and '0000' has one"),
    ],
)
def test_splits_that_are_too_small(split: Split, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Sampler(SamplerConfig("neighbours", **options), split, 0)
    assert message in str(error.value)
    Sampler(SamplerConfig("neighbours", skip=12), identities_of(*[9] * 16), 0)
