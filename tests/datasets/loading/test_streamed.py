"""Streaming tars without an index: each sample once an epoch, the same for a seed, resumed exactly, from folders and S3."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import Files, jpeg, tarred
from proxy import FaultProxy, Faults

from datasets.errors import InputError
from datasets.loading import streamed
from datasets.loading.batches import Batch, LoaderConfig, RankSlice
from datasets.loading.streamed import Places, ShardStream, StreamConfig, list_shards
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.object_storage import open_objects
from datasets.shards.index import read_index

SHARDS, LEAST, IDENTITIES, BATCH = 5, 12, 7, 8
SAMPLES = sum(LEAST + shard for shard in range(SHARDS))  # of shards of several sizes
PATTERN = f"set-{{00..{SHARDS - 1:02d}}}.tar"
ALL = 10 * SAMPLES  # samples that are shuffled: whole epochs


def files_of_shard(shard: int) -> Files:
    first, files = 100 * shard, Files()
    for number in range(first, first + LEAST + shard):
        files |= {f"{number:04d}.jpg": jpeg(number), f"{number:04d}.cls": f"{number % IDENTITIES}\n".encode()}
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars")
    for shard in range(SHARDS):
        tarred(root / f"set-{shard:02d}.tar", files_of_shard(shard))
    return root


def read(
    url: str, stop: int, *, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0, shuffle: int = 6, seed: int = 0,
    places: Places | None = None, field: str = "",
) -> list[Batch]:  # fmt: skip
    places = places or Places.of(None, RankSlice(rank, world), workers)
    config, loader = StreamConfig(IDENTITIES, field, shuffle), LoaderConfig(workers, size=(16, 8))
    stream = ShardStream(list_shards([url]), config, BATCH, loader, AugmentConfig(), places, seed, start, stop)
    return list(load_in_workers(stream, workers))


def positions(batches: Sequence[Batch]) -> list[int]:
    return [int(position) for batch in batches for position in batch["positions"]]


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all((a[name] == b[name]).all() for a, b in pairs for name in ("images", "labels", "positions", "moves"))


def test_every_sample_comes_once_an_epoch_with_its_label_in_another_order(folder: Path) -> None:
    epochs = np.array(positions(read(f"{folder}/{PATTERN}", SAMPLES, shuffle=ALL))).reshape(BATCH, SAMPLES)
    shard, number = epochs >> 32, epochs & 0xFFFFFFFF
    every = sorted((s, n) for s in range(SHARDS) for n in range(1, LEAST + s + 1))
    for epoch in range(BATCH):
        assert sorted(zip(shard[epoch].tolist(), number[epoch].tolist(), strict=True)) == every
    assert len({tuple(row) for row in epochs.tolist()}) == BATCH
    for batch in read(f"{folder}/{PATTERN}", 9):
        named = [(position >> 32) * 100 + (position & 0xFFFFFFFF) - 1 for position in batch["positions"].tolist()]
        assert batch["labels"].tolist() == [name % IDENTITIES for name in named]


def test_the_seed_alone_decides_and_not_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{folder}/{PATTERN}"
    first = read(url, 20)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("WORKER", "1"), ("NUM_WORKERS", "2"), ("WDS_SEED", "7")):
        monkeypatch.setenv(name, value)  # webdataset's own splitters would follow them
    assert same(first, read(url, 20))
    assert positions(first) != positions(read(url, 20, seed=1))


@pytest.mark.parametrize(("world", "workers"), [(2, 1), (4, 2)])
def test_ranks_and_loaders_share_the_shards_and_have_a_batch_for_every_step(folder: Path, world: int, workers: int) -> None:
    """Eight readers are more than the shards, which have several sizes."""
    steps = 2 * SAMPLES // BATCH
    ranks = [read(f"{folder}/{PATTERN}", steps, rank=rank, world=world, workers=workers) for rank in range(world)]
    assert [[batch["step"] for batch in batches] for batches in ranks] == [list(range(steps))] * world
    assert all(len(batch["labels"]) == BATCH // world for batches in ranks for batch in batches)
    if world * workers <= SHARDS:
        assert not {*positions(ranks[0][:3])} & {*positions(ranks[1][:3])}
    seen = np.unique([each for batches in ranks for each in positions(batches)], return_counts=True)[1]
    assert len(seen) > 0.8 * SAMPLES
    assert seen.max() <= 4  # the sequence of shards is read in three to four epochs


def gathered(ranks: Sequence[Places]) -> dict[str, Any]:
    states = [places.state(lambda own: own) or {} for places in ranks]
    return {**states[0], "readers": [row for state in states for row in state["readers"]]}


@pytest.mark.parametrize("at", [1, 7, 30])
def test_a_resumed_run_goes_on_exactly(folder: Path, at: int) -> None:
    url, many = f"{folder}/{PATTERN}", {"world": 2, "workers": 2}
    whole = [read(url, 50, rank=rank, **many) for rank in (0, 1)]
    places = [Places.of(None, RankSlice(rank, 2), 2) for rank in (0, 1)]
    for rank in (0, 1):
        for batch in whole[rank][:at]:
            places[rank].note(batch)
    stored = gathered(places)
    for rank in (0, 1):
        here = Places.of(stored, RankSlice(rank, 2), 2)
        assert same(whole[rank][at:], read(url, 50, start=at, places=here, **many))


def test_with_other_readers_it_goes_on_after_as_many_shards_as_were_read(folder: Path) -> None:
    places = Places.of(None, RankSlice(0, 1), 1)
    for batch in read(f"{folder}/{PATTERN}", 30, workers=1):
        places.note(batch)
    stored = places.state(lambda own: own)
    assert stored is not None
    ((finished, taken),) = stored["readers"]
    assert finished > SHARDS
    assert taken
    for workers in (2, 3):
        assert Places.of(stored, RankSlice(0, 1), workers).first == finished
    assert Places.of(stored, RankSlice(1, 2), 1).first == finished


def test_nothing_is_noted_of_batches_with_an_index() -> None:
    places = Places.of(None, RankSlice(0, 1), 1)
    places.note({"step": 0})
    assert places.state(lambda own: own) is None


def test_from_s3_through_faults_it_is_as_from_a_folder(
    folder: Path, s3_url: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        open_objects(s3_url).put_file(path.name, path)
    monkeypatch.setattr("datasets.shards.tar_reader.CHUNK", 4 << 10)  # several GETs a shard
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(slow_down=0.1, reset=0.1, truncate=0.1)
    batches = read(f"{s3_url}/{PATTERN}", 12, workers=1)
    assert same(batches, read(f"{folder}/{PATTERN}", 12, workers=1))
    assert s3_proxy.counts["reset"]
    assert batches[-1]["storage"]["gets"] >= 10
    assert batches[-1]["storage"]["bytes"] > 10_000


def test_s3_that_is_away_for_longer_than_boto3_waits(
    folder: Path, s3_url: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        open_objects(s3_url).put_file(path.name, path)
    s3_proxy.match, s3_proxy.faults = ".tar", Faults(slow_down=1)

    def back(tried: int) -> float:
        s3_proxy.faults = Faults()
        return 0.0

    monkeypatch.setattr(streamed, "pause", back)
    batches = read(f"{s3_url}/{PATTERN}", 3)
    assert len(batches) == 3
    assert batches[-1]["storage"]["retries"] == 1


def test_the_number_may_stand_in_a_json(tmp_path: Path) -> None:
    files = Files()
    for number in range(12):
        files |= {f"{number}.jpg": jpeg(number), f"{number}.json": json.dumps({"who": number % 3}).encode()}
    tarred(tmp_path / "a.tar", files)
    for batch in read(f"{tmp_path}/a.tar", 3, field="who"):
        assert batch["labels"].tolist() == [((position & 0xFFFFFFFF) - 1) % 3 for position in batch["positions"].tolist()]
    with pytest.raises(InputError, match=r"the sample's .json has no field 'name'.*give --stream.field"):
        read(f"{tmp_path}/a.tar", 1, field="name")


def test_an_image_that_cannot_be_decoded_is_reported_and_replaced(tmp_path: Path) -> None:
    files = files_of_shard(0) | {"0003.jpg": b"no picture"}
    tarred(tmp_path / "a.tar", files)
    batches = read(f"{tmp_path}/a.tar", 6)
    assert {bad.partition(":")[0] for batch in batches for bad in batch["bad"]} == {f"0003 in {tmp_path}/a.tar"}
    assert all(len(batch["labels"]) == BATCH for batch in batches)
    assert 4 not in positions(batches)
    tarred(tmp_path / "b.tar", {name: b"no picture" if name.endswith("jpg") else data for name, data in files.items()})
    with pytest.raises(InputError, match=r"100 samples one after the other cannot be read"):
        read(f"{tmp_path}/b.tar", 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": jpeg(0), "a.cls": b"7"}, r"the identity is '7', and --stream.identities 7 allows the numbers below it: a in "),
        ({"a.jpg": jpeg(0), "a.cls": b"jane"}, r"the identity is 'jane'.*if identities have names, index the shards"),
        ({"a.jpg": jpeg(0), "a.cls": b"-1"}, r"the identity is '-1'"),
        ({"a.jpg": jpeg(0)}, r"the sample has no .cls: a in .*label it, or give --stream.field; or index the shards"),
        ({"a.txt": b"x", "a.cls": b"1"}, r"no sample in 1 shards"),
        ({"a.jpg": jpeg(0), "a.JPG": jpeg(1)}, r"two members of one name"),
    ],
)
def test_what_is_wrong_in_a_shard_is_one_line(tmp_path: Path, files: Files, message: str) -> None:
    tarred(tmp_path / "a.tar", files)
    with pytest.raises(InputError, match=message) as caught:
        read(f"{tmp_path}/a.tar", 1, workers=1)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_between_two_members_is_an_error(folder: Path, tmp_path: Path) -> None:
    """webdataset's own reader takes it for whole."""
    whole = (folder / "set-00.tar").read_bytes()
    with tarfile.open(folder / "set-00.tar") as tar:
        cut = tar.getmembers()[6].offset
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"cut off or damaged after byte \d+ \(no end mark\)"):
        read(f"{tmp_path}/a.tar", 4)


def test_addresses_that_name_no_shards_are_refused_before_any_is_read(folder: Path, tmp_path: Path, s3_url: str) -> None:
    with pytest.raises(InputError, match=r"2 of 7 shards are not there: .*set-05.tar; correct the pattern"):
        list_shards([f"{folder}/set-{{00..06}}.tar"])
    with pytest.raises(InputError, match=r"2 of 2 shards are not there: s3://.*set-00.tar"):
        list_shards([f"{s3_url}/set-{{00,01}}.tar"])
    with pytest.raises(InputError, match=r"not a pattern of shards"):
        list_shards([f"{folder}/set-{{00..06.tar"])
    with pytest.raises(InputError, match=r"not a pattern of shards \(missing environment variable"):
        list_shards([f"{folder}/${{NAME}}.tar"])
    with pytest.raises(InputError, match=r"a shard is named twice: .*set-01.tar"):
        list_shards([f"{folder}/set-{{00..01}}.tar", f"{folder}/set-01.tar"])
    with pytest.raises(InputError, match="not a place of data"):
        list_shards(["pipe:cat /etc/passwd; echo /x.tar"])
    (tmp_path / "a.tar").write_bytes(b"x" * 700)
    with pytest.raises(InputError, match="a shard is cut off"):
        list_shards([f"{tmp_path}/a.tar"])


def test_several_patterns_are_one_list_and_its_checksum_notices_a_change(folder: Path, tmp_path: Path) -> None:
    names = [f"{folder}/set-0{shard}.tar" for shard in range(SHARDS)]
    whole = list_shards([f"{folder}/{PATTERN}"])
    assert [url for url, _ in list_shards([f"{folder}/set-{{00..02}}.tar", *names[3:]]).shards] == names
    assert list_shards(names).checksum == whole.checksum
    assert list_shards(names[1:]).checksum != whole.checksum


def test_where_an_index_is_needed_tars_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"tar files are named, and an index is needed here.*python -m datasets.index"):
        read_index(f"{folder}/{PATTERN}")
