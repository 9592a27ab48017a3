"""Joined sets drawn by weights: how often each set comes, the epochs of each, and weights that do not fit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splits import chi_square, identities_of

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.epochs import UniformEpochs, WeightedEpochs
from datasets.sampling.sampler import Kind, Sampler, SamplerConfig
from datasets.shards.index import Split, split_of
from datasets.shards.joined import join

SETS = [identities_of(*[4] * 20), identities_of(*[7] * 30), identities_of(*[2] * 9)]
SIZES = [len(split) for split in SETS]
FIRSTS = np.cumsum([0, *SIZES])


def joined(*sets: Split) -> Split:
    urls = [f"set{number}" for number in range(len(sets))]
    about = {"mirror": True}
    return split_of(join([replace(split.index, url=url, about=about) for url, split in zip(urls, sets, strict=True)]), "train")


SPLIT = joined(*SETS)
WEIGHTS = st.lists(st.integers(1, 12), min_size=3, max_size=3)


def set_of(positions: np.ndarray) -> np.ndarray:
    return np.searchsorted(FIRSTS, positions, side="right") - 1


@given(WEIGHTS, st.integers(0, 5000), st.integers(0, 300), st.integers(0, 99))
def test_a_draw_depends_on_its_place_alone(weights: list[int], place: int, count: int, seed: int) -> None:
    epochs = WeightedEpochs(SETS, weights, seed)
    whole = epochs.batch(place, count)
    assert len(whole) == count
    half = count // 2
    parts = [epochs.batch(place + half, count - half), epochs.batch(place, half)]  # also out of order
    assert np.array_equal(whole, np.concatenate(parts[::-1]))


@given(WEIGHTS, st.integers(0, 99))
def test_each_set_has_its_weight_in_every_round(weights: list[int], start: int) -> None:
    round_of = sum(weights)
    drawn = set_of(WeightedEpochs(SETS, weights, 0).batch(start, 5 * round_of))
    for begin in range(0, 4 * round_of, 3):
        assert np.bincount(drawn[begin : begin + round_of], minlength=3).tolist() == weights
    first = drawn[(-start) % round_of :][:round_of]
    for number, weight in enumerate(weights):  # spread over the round
        counts = np.cumsum(first == number)
        assert np.abs(counts - np.arange(1, round_of + 1) * weight / round_of).max() < 2


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 2, 1), (1, 3, 9)])
def test_every_sample_of_a_set_comes_once_before_any_comes_twice(weights: tuple[int, ...]) -> None:
    drawn = WeightedEpochs(SETS, weights, 4).batch(0, 3000)
    for number, size in enumerate(SIZES):
        own = drawn[set_of(drawn) == number] - FIRSTS[number]
        for begin in range(0, len(own) - size + 1, size):
            assert sorted(own[begin : begin + size]) == list(range(size))


def test_sets_of_the_same_size_are_shuffled_apart() -> None:
    drawn = WeightedEpochs([SETS[0], SETS[0]], [1, 1], 0).batch(0, 2 * SIZES[0])
    one, two = drawn[drawn < SIZES[0]], drawn[drawn >= SIZES[0]] - SIZES[0]
    assert (one != two).mean() > 0.9


def test_without_weights_the_sets_are_one() -> None:
    sampler = Sampler(SamplerConfig("uniform", batch=16), SPLIT, 3)
    expected = UniformEpochs(SPLIT, 3)
    for step in (0, 7, 40):
        assert np.array_equal(sampler.draw(step, None), expected.batch(16 * step, 16))


@pytest.mark.parametrize("kind", ["uniform", "hardest", "proportional", "pairs"])
def test_the_even_part_goes_on_where_it_was(kind: Kind) -> None:
    """Also when the first version comes: the even draws of all steps are one sequence."""
    config = SamplerConfig(kind, batch=16, uniform_share=0.5, interval=1, lag=0, weights=(3, 2, 1))
    sampler, identities = Sampler(config, SPLIT, 5), len(SPLIT.counts)
    generator = np.random.default_rng(0)
    drawn = []
    for step in range(30):
        number = config.version_at(step)
        cosine = generator.random(identities).astype(np.float32)
        version = Difficulty(number, cosine, np.roll(np.arange(identities), 1)[:, None]) if number else None
        positions = sampler.draw(step, version)
        again = Sampler(config, SPLIT, 5).draw(step, version)
        assert np.array_equal(positions, again)
        part = config.batch if version is None else config.uniform_part
        even = WeightedEpochs(SETS, config.weights, 5).batch(config.even_place(step), part)
        assert set(even) <= set(positions)
        drawn.append(even)
    sequence = np.concatenate(drawn)
    assert np.array_equal(sequence, WeightedEpochs(SETS, config.weights, 5).batch(0, len(sequence)))


def test_pk_draws_the_identities_of_a_set_by_its_weight() -> None:
    weights = (1, 2, 1)
    sampler = Sampler(SamplerConfig("pk", batch=8, instances=4, weights=weights), SPLIT, 0)
    labels = np.stack([SPLIT.labels_of(sampler.draw(step, None)).reshape(2, 4) for step in range(6000)])
    assert (labels == labels[:, :, :1]).all()
    assert (labels[:, 0, 0] != labels[:, 1, 0]).all()
    sizes = [len(split.counts) for split in SETS]
    expected = np.repeat([weight / 4 / size for weight, size in zip(weights, sizes, strict=True)], sizes)
    first = labels[:, 0, 0]  # the second is another identity, and so depends on the first
    assert chi_square(np.bincount(first, minlength=sum(sizes)), expected * len(first)) > 1e-4


def test_difficulty_is_compared_over_all_sets() -> None:
    """The hard part comes from the hardest set, whatever its weight."""
    config = SamplerConfig("proportional", batch=16, uniform_share=0.5, interval=1, lag=0, weights=(1, 1, 100))
    cosine = np.zeros(len(SPLIT.counts), np.float32)
    cosine[5] = 1
    drawn = Sampler(config, SPLIT, 0).draw(9, Difficulty(9, cosine, np.roll(np.arange(len(cosine)), 1)[:, None]))
    assert (SPLIT.labels_of(drawn) == 5).sum() >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1, 2)}, "2 weights for 3 sets"),
        ({"weights": (1, 2, 3, 4)}, "4 weights for 3 sets"),
        ({"weights": (1, 1, 4), "batch": 30}, "20 of 30 samples of a batch come from a set of 18 training images"),
    ],
)
def test_weights_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(SamplerConfig("uniform", **{"batch": 6, **options}), SPLIT, 0)


@pytest.mark.parametrize("weights", [(0, 1), (-1, 1), (1001, 1)])
def test_weights_out_of_range(weights: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give whole numbers from 1 to 1000"):
        SamplerConfig(weights=weights)


def test_a_single_set_has_one_weight() -> None:
    alone = SETS[0]
    assert len(Sampler(SamplerConfig("uniform", batch=8, weights=(3,)), alone, 0).draw(0, None)) == 8
    with pytest.raises(InputError, match="2 weights for 1 sets"):
        Sampler(SamplerConfig("uniform", batch=8, weights=(3, 1)), alone, 0)
