"""Batches are the same for any number of ranks and workers; bad samples are replaced and reported; nothing waits forever."""

import io
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageOps

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, LoaderConfig, RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.stats import BadSamples
from datasets.loading.store import read_samples
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig, resize
from datasets.media.decode import decode
from datasets.pack import Options, pack
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import Index, read_index, split_of

SIZE = (16, 12)
STEPS = 13
SAMPLER = SamplerConfig(kind="pairs", batch=16, instances=2, uniform_share=0.5, interval=3, lag=2, patience=30)
PLAIN = AugmentConfig(flip=False, shift=0, erase=0)
ALONE = RankSlice(0, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """16 identities of 6 images, 12 of them to train on, in several shards."""
    folder = tmp_path_factory.mktemp("set")
    for identity in range(16):
        home = folder / "images" / f"{identity:02d}"
        home.mkdir(parents=True)
        for number in range(6):
            pixels = generator(0, "image", identity, number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            cv2.imwrite(str(home / f"{number}.png"), pixels)
    return pack("folders", folder / "images", str(folder / "shards"), Options(shard_size=32 * 1024))


@pytest.fixture
def broken(whole: Index, tmp_path: Path) -> Index:
    """A copy, to be broken."""
    shutil.copytree(whole.url, tmp_path / "shards")
    return read_index(str(tmp_path / "shards"))


def version(number: int, identities: int, sampler: SamplerConfig) -> Difficulty:
    cosine = generator(0, "version", number).random(identities).astype(np.float32)
    away = (number + np.arange(sampler.neighbours_needed(identities))) % (identities - 1) + 1
    return Difficulty(number, cosine, (np.arange(identities)[:, None] - away) % identities)


def stream_of(
    index: Index, sampler: SamplerConfig, table: DifficultyTable | None, part: RankSlice, start: int, stop: int, **options: Any
) -> BatchStream:
    loader = LoaderConfig(size=SIZE, ahead=options.pop("ahead", 4))
    augment = options.pop("augment", AugmentConfig(flip=True, shift=0.1, erase=0.5, patch=0.5))
    return BatchStream(
        split_of(index, "train"), sampler, loader, augment, CacheConfig(), table, {}, part, 5, start, stop, **options
    )


def train_on(
    index: Index, sampler: SamplerConfig, part: RankSlice, workers: int, start: int = 0, late: float = 0, ahead: int = 4
) -> list[Batch]:
    """Simulate a training run: a version is published ``late`` seconds after the steps before it are done."""
    identities = len(split_of(index, "train").counts)
    table = DifficultyTable(identities, sampler)
    newest = start // sampler.interval
    for number in range(max(newest - sampler.versions_alive + 1, 1), newest + 1):
        table.put(version(number, identities, sampler))
    batches, timers = [], []
    for batch in load_in_workers(stream_of(index, sampler, table, part, start, STEPS, ahead=ahead), workers):
        batches.append(batch)
        done = batch["step"] + 1
        if done % sampler.interval == 0:
            timers.append(threading.Timer(late, table.put, [version(done // sampler.interval, identities, sampler)]))
            timers[-1].start()
            if not late:
                timers[-1].join()
    for timer in timers:
        timer.join()
    return batches


def same(batches: list[Batch], others: list[list[Batch]]) -> None:
    """The batches are those of several ranks joined."""
    for parts in others:
        assert [batch["step"] for batch in parts] == [batch["step"] for batch in batches]
    for batch, *parts in zip(batches, *others, strict=True):
        assert {part["version"] for part in parts} == {batch["version"]}
        for name in ("positions", "labels", "images"):
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name]), (batch["step"], name)


# ---- the same global batches


@pytest.fixture(scope="module")
def alone(whole: Index) -> list[Batch]:
    """The batches of one rank that prepares them itself."""
    return train_on(whole, SAMPLER, ALONE, workers=0)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_change_nothing(whole: Index, alone: list[Batch], world: int, workers: int) -> None:
    same(alone, [train_on(whole, SAMPLER, RankSlice(rank, world), workers) for rank in range(world)])


@pytest.mark.parametrize("kind", ["uniform", "pk", "hardest", "proportional", "neighbours"])
def test_every_sampler_is_divided_among_ranks_alike(whole: Index, kind: Any) -> None:
    sampler = replace(SAMPLER, kind=kind)
    same(train_on(whole, sampler, ALONE, 0), [train_on(whole, sampler, RankSlice(rank, 4), 0) for rank in range(4)])


def test_batches_use_the_versions_that_the_step_says(alone: list[Batch]) -> None:
    assert [batch["step"] for batch in alone] == list(range(STEPS))
    assert [batch["version"] for batch in alone] == [SAMPLER.version_at(step) for step in range(STEPS)]
    assert max(batch["version"] for batch in alone) == 3


@pytest.mark.parametrize("start", [1, 6, 7, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_in_the_middle_the_rest_is_the_same(whole: Index, alone: list[Batch], start: int, workers: int) -> None:
    same(alone[start:], [train_on(whole, SAMPLER, RankSlice(rank, 2), workers, start) for rank in range(2)])


@pytest.mark.parametrize("ahead", [1, 9])
def test_looking_ahead_changes_nothing(whole: Index, alone: list[Batch], ahead: int) -> None:
    same(alone, [train_on(whole, SAMPLER, ALONE, 1, ahead=ahead)])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_versions_that_come_late_are_waited_for(whole: Index, workers: int) -> None:
    """With lag 0 each version needs the previous batch to be consumed: holding it back would wait forever."""
    sampler = replace(SAMPLER, interval=1, lag=0)
    found = train_on(whole, sampler, ALONE, workers, late=0.02)
    assert [batch["version"] for batch in found] == list(range(STEPS))
    same(train_on(whole, sampler, ALONE, 0), [found])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_version_that_never_comes_ends_the_run_by_name(whole: Index, workers: int) -> None:
    sampler = replace(SAMPLER, patience=0.1)
    table = DifficultyTable(12, sampler)
    table.note(STEPS)  # the step that it is made at is over: it is overdue
    stream = stream_of(whole, sampler, table, ALONE, 0, STEPS)
    steps = []
    with pytest.raises(InputError) as error:
        steps.extend(batch["step"] for batch in load_in_workers(stream, workers))
    assert steps == list(range(5))
    assert str(error.value).startswith("version 1 of the difficulty vector, for step 5, did not arrive in 0.1 s: sampler; ")


def test_freshest_goes_on(whole: Index) -> None:
    sampler = replace(SAMPLER, mode="freshest")
    batches = list(load_in_workers(stream_of(whole, sampler, DifficultyTable(12, sampler), ALONE, 0, STEPS), 1))
    assert [batch["version"] for batch in batches] == [0] * STEPS


# ---- what is in a batch


def test_patches_are_cut_from_other_images_of_the_set(whole: Index) -> None:
    """The pool is a sample of the training images: their identities, and more of them than a batch of one rank holds."""
    stream = stream_of(whole, SAMPLER, None, RankSlice(1, 4), 0, 1, augment=replace(PLAIN, patch=1.0))
    (patched,), (plain,) = list(stream), list(stream_of(whole, SAMPLER, None, RankSlice(1, 4), 0, 1, augment=PLAIN))
    assert all((one != other).any() for one, other in zip(patched["images"], plain["images"], strict=True))
    split = split_of(whole, "train")
    known = {decode(data).tobytes() for data in read_samples(whole, split.samples(np.arange(len(split))))}
    found = {each.tobytes() for each in stream._pool}
    assert found <= known
    assert len(found) > len(split) / 2


def test_pixels_and_labels_are_those_of_the_shards(whole: Index) -> None:
    """Against tarfile and OpenCV."""
    members = {}
    for shard in whole.shards:
        with tarfile.open(Path(whole.url) / shard.name) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                members[member.name.removesuffix(".png")] = data.read()
    split = split_of(whole, "train")
    for batch in load_in_workers(stream_of(whole, SAMPLER, None, ALONE, 0, 3, augment=PLAIN), 1):
        assert batch["images"].shape == (16, 3, *SIZE)
        assert batch["images"].dtype == torch.uint8
        assert batch["labels"].dtype == batch["positions"].dtype == torch.int64
        assert batch["bad"] == []
        for row, sample in enumerate(split.samples(batch["positions"].numpy())):
            key = whole.keys[sample]
            pixels = cv2.imdecode(np.frombuffer(members[key], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            np.testing.assert_array_equal(batch["images"][row].permute(1, 2, 0).numpy(), pixels)
            assert split.names[batch["labels"][row]] == key.split("/")[0]


def test_a_batch_must_divide_evenly_among_ranks(whole: Index) -> None:
    with pytest.raises(InputError, match="16 cannot be divided evenly among 3 workers"):
        stream_of(whole, SAMPLER, None, RankSlice(0, 3), 0, 1)


@pytest.mark.parametrize(
    "options", [{"workers": -1}, {"ahead": 0}, {"size": (4, 64)}, {"bad_share": 1.5}, {"bad_share": float("nan")}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="loader"):
        LoaderConfig(**options)


# ---- samples that cannot be read


def corrupt(index: Index, samples: np.ndarray) -> None:
    """Overwrite samples' bytes in the shards."""
    for sample in samples:
        shard = index.shards[index.blocks["shard"][index.samples["block"][sample]]]
        with (Path(index.url) / shard.name).open("r+b") as file:
            file.seek(int(index.samples["offset"][sample]))
            file.write(bytes(int(index.samples["size"][sample])))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_replaced_counted_and_named(broken: Index, workers: int) -> None:
    split = split_of(broken, "train")
    uniform = replace(SAMPLER, kind="uniform")
    before = list(load_in_workers(stream_of(broken, uniform, None, ALONE, 0, 4, augment=PLAIN), 0))
    position = before[1]["positions"][[15]]
    sample = split.samples(position.numpy())
    label = int(split.labels_of(position.numpy())[0])
    first, end = split.identity_starts[label : label + 2]
    stand_in = first + (int(position) + 1 - first) % (end - first)  # the next of its identity
    corrupt(broken, sample)
    bad, named = BadSamples(0.05, 1000), []
    after = list(load_in_workers(stream_of(broken, uniform, None, ALONE, 0, 4, augment=PLAIN), workers))
    for batch in after:
        named += bad.note(batch)
    assert len(named) == 1
    assert named[0].startswith(f"{broken.keys[int(sample[0])]} in {broken.url}/train-")
    assert "not a JPEG, PNG, BMP or WebP image" in named[0]
    for batch, other in zip(before, after, strict=True):
        assert torch.equal(batch["labels"], other["labels"])
        same = slice(0, 15 if batch["step"] == 1 else 16)
        assert torch.equal(batch["positions"][same], other["positions"][same])
        assert torch.equal(batch["images"][same], other["images"][same])
    assert int(after[1]["positions"][15]) == stand_in
    (data,) = read_samples(broken, split.samples(np.array([stand_in])))
    assert not isinstance(data, ValueError)
    assert np.array_equal(after[1]["images"][15].permute(1, 2, 0), resize(decode(data), after[1]["images"].shape[2:]))


def test_more_than_the_allowed_fraction_ends_the_run_with_the_list(broken: Index) -> None:
    split = split_of(broken, "train")
    drawn = next(iter(load_in_workers(stream_of(broken, replace(SAMPLER, kind="uniform"), None, ALONE, 0, 1), 0)))
    samples = split.samples(drawn["positions"][:3].numpy())
    corrupt(broken, samples)
    (batch,) = load_in_workers(stream_of(broken, replace(SAMPLER, kind="uniform"), None, ALONE, 0, 1), 0)
    with pytest.raises(InputError) as error:
        BadSamples(0.02, 1000).note(batch)
    message = str(error.value)
    assert message.startswith("3 of 16 samples could not be read, more than the allowed fraction of 0.02: ")
    assert all(broken.keys[int(sample)] in message for sample in samples)
    assert "\n" not in message


def test_a_shard_that_is_cut_off(broken: Index) -> None:
    shard = broken.blocks["shard"][split_of(broken, "train").blocks[0]]
    path = Path(broken.url) / broken.shards[shard].name
    with path.open("r+b") as file:
        file.truncate(1000)
    found = [name for batch in load_in_workers(stream_of(broken, SAMPLER, None, ALONE, 0, 6), 1) for name in batch["bad"]]
    assert found
    assert all(path.name in name and "cut off" in name for name in found)


def noted(seen: int, bad: list[str]) -> Batch:
    return {"labels": torch.zeros(seen), "bad": bad}


def test_thresholds_of_bad_samples() -> None:
    one_alone = BadSamples(0.01, 1000)
    assert one_alone.note(noted(16, ["a"])) == ["a"]
    assert one_alone.note(noted(16, ["a"])) == []  # hard draws come back to it: it is one sample all the same
    with pytest.raises(InputError, match=r"2 of 48 .*a; b"):
        one_alone.note(noted(16, ["b"]))

    exactly = BadSamples(0.1, 250)
    assert exactly.note(noted(200, [f"{i}" for i in range(20)])) == [f"{i}" for i in range(20)]
    assert exactly.note(noted(200, [f"{i}" for i in range(25)])) == [f"{i}" for i in range(20, 25)]
    with pytest.raises(InputError, match=r"26 of 250 .*; \d+ \(\+"):  # of the samples that there are, not of the draws
        exactly.note(noted(100, ["25"]))

    none = BadSamples(0, 1000)
    assert none.note(noted(16, [])) == []
    with pytest.raises(InputError, match="1 of 32"):
        none.note(noted(16, ["a"]))


# ---- a split in order


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("workers", "chunk"), [(0, 1), (0, 7), (0, 1000), (2, 7), (2, 1000)])
def test_split_stream_gives_every_sample_once(whole: Index, world: int, workers: int, chunk: int) -> None:
    split = split_of(whole, "gallery")
    positions = []
    for rank in range(world):
        stream = SplitStream(split, (8, 8), CacheConfig(), {}, RankSlice(rank, world), chunk)
        for batch in load_in_workers(stream, workers):
            assert batch["images"].shape == (len(batch["positions"]), 3, 8, 8)
            positions += batch["positions"].tolist()
    assert sorted(positions) == list(range(len(split)))


def test_split_stream_leaves_out_what_cannot_be_read(broken: Index) -> None:
    split = split_of(broken, "query")
    corrupt(broken, split.samples(np.array([0, 1, 3])))
    chunks = list(load_in_workers(SplitStream(split, SIZE, CacheConfig(), {}, ALONE, 2), 0))
    assert [chunk["positions"].tolist() for chunk in chunks] == [[], [2]]
    assert [len(chunk["bad"]) for chunk in chunks] == [2, 1]
    assert chunks[0]["images"].shape == (0, 3, *SIZE)
    assert all(broken.url in name for chunk in chunks for name in chunk["bad"])


def test_turned_pictures_are_upright_in_batches(tmp_path: Path) -> None:
    """In training, where an image is decoded to its place if it can be, and in evaluation."""
    for number, orientation in enumerate((1, 2, 3, 6, 8, 5)):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        pixels = generator(0, "image", number).integers(0, 256, SIZE if orientation < 5 else SIZE[::-1], dtype=np.uint8)
        (tmp_path / "in" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(pixels).save(tmp_path / "in" / str(number % 2) / f"{number}.jpg", exif=exif)
    index = pack("folders", tmp_path / "in", str(tmp_path / "set"), Options(held_out=0))
    split = split_of(index, "train")
    sampler = SamplerConfig(kind="uniform", batch=6)
    streams = [stream_of(index, sampler, None, ALONE, 0, 2, augment=PLAIN), SplitStream(split, SIZE, CacheConfig(), {}, ALONE, 6)]
    for batch in (batch for stream in streams for batch in load_in_workers(stream, 0)):
        stored = read_samples(index, split.samples(batch["positions"].numpy()))
        for image, data in zip(batch["images"], stored, strict=True):
            assert isinstance(data, bytes)
            expected = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB"))
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
