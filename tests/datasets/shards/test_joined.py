"""Joined sets: each keeps its samples, and identities, cameras and shards of two sets are never the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import jpeg, put

from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.store import open_store, read_samples, shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from datasets.sampling.sampler import Kind, SamplerConfig
from datasets.shards.index import Index, check_shards, read_index, split_of
from datasets.shards.index_checks import check_tables
from datasets.shards.joined import Joined, join

OPTIONS = Options(held_out=0.3, shard_size=40 << 10, max_block=8 << 10)
ALONE = RankSlice(0, 1)


def pictures(folder: Path, identities: int, seed: int) -> Path:
    names = [f"train/p{identity}/{number}.jpg" for identity in range(identities) for number in range(6)]
    names += [f"test/p{identity}/{number}.jpg" for identity in range(20, 22) for number in range(3)]
    return put(folder, {name: jpeg(seed * 100 + place, 24, 16 + place % 8) for place, name in enumerate(names)})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Index]:
    """Two sets, whose identities and shards have the same names."""
    root = tmp_path_factory.mktemp("joined")
    return [
        pack("folders", pictures(root / name, identities, seed), str(root / "packed" / name), OPTIONS)
        for seed, (name, identities) in enumerate((("one", 5), ("two", 8)))
    ]


@pytest.fixture(scope="module")
def joined(sets: list[Index]) -> Index:
    return join(sets)


def test_every_sample_is_that_of_its_set(sets: list[Index], joined: Index) -> None:
    bytes_of = [read_samples(part, np.arange(len(part))) for part in sets]
    everything = np.arange(len(joined))
    assert read_samples(joined, everything) == [*bytes_of[0], *bytes_of[1]]
    mixed = np.random.default_rng(0).permutation(np.concatenate([everything, everything]))
    assert read_samples(joined, mixed) == [(bytes_of[0] + bytes_of[1])[sample] for sample in mixed]
    assert joined.keys == [*sets[0].keys, *sets[1].keys]
    names = [[part.identities[number] for number in part.identity_of(np.arange(len(part)))] for part in sets]
    expected = [f"{title}/{name}" for title, own in zip(("one", "two"), names, strict=True) for name in own]
    assert [joined.identities[number] for number in joined.identity_of(everything)] == expected
    assert joined.where(len(sets[0]) + 3) == sets[1].where(3)
    assert joined.where(len(sets[0]) - 1) == sets[0].where(len(sets[0]) - 1)


def test_the_tables_are_those_of_a_set(sets: list[Index], joined: Index) -> None:
    sizes = len(joined.identities), len(joined.cameras)
    check_tables(joined.samples, joined.blocks, joined.shards, joined.splits, *sizes, joined.url)
    assert sizes == tuple(sum(len(getattr(part, name)) for part in sets) for name in ("identities", "cameras"))
    assert len(set(joined.identities)) == len(joined.identities)
    assert set(joined.samples["camera"][: len(sets[0])]).isdisjoint(joined.samples["camera"][len(sets[0]) :])
    train, parts = split_of(joined, "train"), [split_of(part, "train") for part in sets]
    assert train.counts.tolist() == [*parts[0].counts, *parts[1].counts]
    second = np.arange(len(parts[1]))
    assert (train.samples(len(parts[0]) + second) == len(sets[0]) + parts[1].samples(second)).all()


def test_splits_that_only_some_sets_have(sets: list[Index], tmp_path: Path) -> None:
    put(tmp_path / "more", {f"p{n}/{i}.jpg": jpeg(n, 16, 16) for n in range(3) for i in range(2)})
    other = pack("folders", tmp_path / "more", str(tmp_path / "set"), Options(held_out=0))
    assert other.splits != sets[0].splits
    joined = join([other, sets[0]])
    assert set(joined.splits) == {*other.splits, *sets[0].splits}
    for split in joined.splits:
        held = [part for part in (other, sets[0]) if split in part.splits]
        assert len(split_of(joined, split)) == sum(len(split_of(part, split)) for part in held)


def test_what_images_are_trained_at(sets: list[Index]) -> None:
    one, two = sets
    still = replace(two, about={**two.about, "mirror": False, "size": [8, 8]})
    assert one.about["mirror"]
    assert join([one, still]).about["mirror"] is False
    assert join([one, still]).about["size"] == one.about["size"]
    assert join([still, one]).about["size"] == [8, 8]


def test_the_checksum_is_of_all_sets_in_their_order(sets: list[Index], joined: Index, tmp_path: Path) -> None:
    assert join([sets[0]]) is sets[0]
    shutil.copytree(sets[1].url, tmp_path / "elsewhere")
    moved = read_index(str(tmp_path / "elsewhere"))
    assert join([sets[0], moved]).checksum == joined.checksum
    assert join([sets[1], sets[0]]).checksum != joined.checksum
    packed = pack("folders", pictures(tmp_path / "images", 8, seed=7), str(tmp_path / "changed"), OPTIONS)
    assert join([sets[0], packed]).checksum != joined.checksum


def test_sets_of_one_name_are_named_by_their_address(sets: list[Index], tmp_path: Path) -> None:
    shutil.copytree(sets[1].url, tmp_path / "one")
    other = read_index(str(tmp_path / "one"))
    assert set(join([sets[0], other]).identities) == {
        f"{part.url}/{name}" for part in (sets[0], other) for name in part.identities
    }
    with pytest.raises(InputError, match="the set is given twice"):
        join([sets[0], other, sets[0]])


def test_more_cameras_than_a_byte_counts(sets: list[Index]) -> None:
    many = replace(sets[0], cameras=tuple(f"c{number}" for number in range(200)))
    joined = join([many, replace(many, url="other"), sets[1]])
    assert joined.samples["camera"][-len(sets[1]) :].tolist() == (400 + sets[1].samples["camera"].astype(int)).tolist()


# ---- batches


def batches_of(index: Index, kind: Kind, part: RankSlice, workers: int = 0, start: int = 0, **sampler: object) -> list[Batch]:
    config = SamplerConfig(kind, 12, instances=3 if kind == "pk" else None, **sampler)  # type: ignore[arg-type]
    stream = BatchStream(
        split_of(index, "train"), config, LoaderConfig(size=(16, 16)), AugmentConfig(), CacheConfig(), None, shard_etags(index),
        part, 3, start, 9,
    )  # fmt: skip
    return list(load_in_workers(stream, workers))


@pytest.mark.parametrize(("kind", "weights"), [("uniform", ()), ("uniform", (3, 1)), ("pk", ()), ("pk", (3, 1))])
def test_batches_are_the_same_on_any_number_of_ranks_and_workers(joined: Index, kind: Kind, weights: tuple[int, ...]) -> None:
    alone = batches_of(joined, kind, ALONE, weights=weights)
    shared = [batches_of(joined, kind, RankSlice(rank, 2), workers=rank + 1, start=4, weights=weights) for rank in range(2)]
    assert len(alone) == 9
    for batch, *parts in zip(alone[4:], *shared, strict=True):
        for name in ("positions", "labels", "images"):
            assert np.array_equal(np.concatenate([part[name] for part in parts]), batch[name])
        assert {part["draw"] for part in parts} == {batch["draw"]}
        assert not batch["bad"]


def test_a_folder_and_a_bucket_are_joined(sets: list[Index], s3_url: str, tmp_path: Path) -> None:
    """Batches are those of two folders, and the bucket's shards come into the node's cache."""
    for path in Path(sets[1].url).rglob("*"):
        if path.is_file():
            put_into(s3_url, path, path.relative_to(sets[1].url))
    joined = join([sets[0], read_index(s3_url)])
    for part in joined.parts:
        check_shards(part)
    etags = shard_etags(joined)
    assert {url.rpartition("/")[0] for url in etags} >= {s3_url}
    store = open_store(joined, etags, CacheConfig(str(tmp_path), gib=1))
    try:
        samples = np.random.default_rng(0).permutation(len(joined))
        expected = read_samples(join(sets), samples)
        assert store.request(samples)() == expected
        assert store.request(samples)() == expected
        assert read_samples(joined, samples) == expected
        counts = store.counts
        assert counts["gets"] == counts["hits"] == len(sets[1].blocks["first"])
    finally:
        store.close()


def put_into(url: str, path: Path, name: Path) -> None:
    from datasets.object_storage import open_objects

    open_objects(url).put_file(name.as_posix(), path)


def test_the_cache_is_filled_with_the_shards_of_each_set(joined: Index) -> None:
    """Each store gets the numbers that its set has for its shards."""
    assert isinstance(joined, Joined)
    store = open_store(joined, {}, CacheConfig())
    filled: list[list[int]] = []
    for own in store._stores:  # type: ignore[union-attr]
        own.fill = filled.append  # type: ignore[method-assign]
    store.fill(list(range(len(joined.shards))))
    store.close()
    assert filled == [list(range(len(part.shards))) for part in joined.parts]
