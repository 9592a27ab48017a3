"""Batches of several sets: their parts, and the same samples on any number of workers."""

from pathlib import Path

import numpy as np
import pytest
from facedata import faces
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.mixed import MixedStream, parts_of
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.pack import pack
from datasets.sampling.sampler import SamplerConfig
from datasets.shards.index import Split, read_index, split_of


@pytest.mark.parametrize(
    ("batch", "weights", "unit", "parts"),
    [
        (64, (1, 1), 4, [32, 32]),
        (64, (2, 2, 1), 4, [28, 24, 12]),
        (10, (1, 1, 1), 1, [4, 3, 3]),
        (8, (5, 1), 2, [6, 2]),
        (7, (3,), 1, [7]),
    ],
)
def test_parts(batch: int, weights: tuple[float, ...], unit: int, parts: list[int]) -> None:
    assert parts_of(batch, weights, unit) == parts


@given(st.integers(1, 50), st.lists(st.floats(0.5, 2), min_size=1, max_size=6), st.integers(1, 5))
def test_parts_are_within_a_unit_of_their_weight(units: int, weights: list[float], unit: int) -> None:
    batch = units * unit
    exact = np.array(weights) / sum(weights) * batch
    try:
        parts = parts_of(batch, weights, unit)
    except InputError:
        assert exact.min() < unit
        return
    assert sum(parts) == batch
    assert all(part % unit == 0 and part > 0 for part in parts)
    assert np.abs(np.array(parts) - exact).max() < unit


@pytest.mark.parametrize(
    ("batch", "weights", "unit"),
    [(8, (), 1), (8, (1, 0), 1), (8, (1, -1), 1), (8, (1, float("nan")), 1), (9, (1, 1), 2), (8, (99, 1), 4), (8, (1,), 0)],
)
def test_what_cannot_be_mixed_is_refused(batch: int, weights: tuple[float, ...], unit: int) -> None:
    with pytest.raises(InputError):
        parts_of(batch, weights, unit)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> list[Split]:
    root = tmp_path_factory.mktemp("mix")
    found = []
    for number, count in enumerate((60, 30)):
        pack("attributes_csv", faces(root / f"faces{number}", count, seed=number), str(root / f"set{number}"))
        found.append(split_of(read_index(str(root / f"set{number}")), "train"))
    return found


def mixed(splits: list[Split], part: RankSlice, start: int, stop: int) -> MixedStream:
    loader, augment = LoaderConfig(size=(32, 32)), AugmentConfig(turn=20)
    streams = [
        BatchStream(
            split, SamplerConfig(kind="uniform", batch=rows), loader, augment, CacheConfig(), None, {}, part, seed, start, stop
        )
        for seed, (split, rows) in enumerate(zip(splits, (12, 4), strict=True))
    ]
    return MixedStream(streams)


def rows(stream: MixedStream, workers: int = 0) -> list[list[tuple[int, int, float, int]]]:
    """Of every batch its samples, sorted: set, position, turn, checksum of the pixels."""
    found = []
    for batch in load_in_workers(stream, workers):
        pixels = batch["images"].flatten(1).long().sum(dim=1).tolist()
        found.append(
            sorted(zip(batch["set"].tolist(), batch["positions"].tolist(), batch["moves"][:, 1].tolist(), pixels, strict=True))
        )
    return found


def test_any_number_of_ranks_and_workers_sees_the_same(splits: list[Split]) -> None:
    alone = rows(mixed(splits, RankSlice(0, 1), 0, 12))
    assert [len(batch) for batch in alone] == [16] * 12
    assert rows(mixed(splits, RankSlice(0, 1), 0, 12), workers=2) == alone
    shared = [rows(mixed(splits, RankSlice(rank, 4), 0, 12)) for rank in range(4)]
    assert [sorted(row for batch in batches for row in batch) for batches in zip(*shared, strict=True)] == alone
    assert rows(mixed(splits, RankSlice(0, 1), 7, 12)) == alone[7:]


def test_each_set_gives_its_part_and_all_its_samples(splits: list[Split]) -> None:
    batches = rows(mixed(splits, RankSlice(0, 1), 0, 12))
    assert all([sum(row[0] == number for row in batch) for number in (0, 1)] == [12, 4] for batch in batches)
    assert {row[1] for batch in batches for row in batch if row[0] == 0} == set(range(len(splits[0])))


def test_a_set_of_one_identity_is_drawn_evenly_only(splits: list[Split], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only 1 identity"):
        BatchStream(
            splits[0],
            SamplerConfig(kind="pk", batch=8),
            LoaderConfig(),
            AugmentConfig(),
            CacheConfig(),
            None,
            {},
            RankSlice(0, 1),
            0,
            0,
            1,
        )
