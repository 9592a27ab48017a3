"""Packing: plain tar shards with the images' bytes, the same for the same input, complete or resumable."""

import gc
import io
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from pictures import jpeg, market, omniglot, png, put, tarred, zipped

from datasets.errors import InputError
from datasets.inspect import faults
from datasets.layouts.archive import open_archive
from datasets.object_storage import open_objects
from datasets.pack import Options, Part, pack, pack_part, part_of
from datasets.packing.write import bytes_of
from datasets.shards.index import Index, read_index

SMALL = Options(shard_size=20_000, max_block=6_000)


def contents(url: str) -> dict[str, bytes]:
    """Every object of a set."""
    objects = open_objects(url)
    return {name: objects.get(name) for name in objects.sizes()}


def image_of(index: Index, row: int) -> bytes:
    """A sample's bytes, read by the index."""
    block = index.samples["block"][row]
    shard = index.shards[index.blocks["shard"][block]].name
    return open_objects(index.url).get_range(shard, int(index.samples["offset"][row]), int(index.samples["size"][row]))


def run(*args: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "datasets.pack", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_index_leads_to_every_image(tmp_path: Path) -> None:
    source = put(tmp_path / "market", market())
    packed = pack("market1501", source, str(tmp_path / "set"), SMALL)
    index = read_index(str(tmp_path / "set"))
    assert index.about == packed.about
    assert index.about["size"] == [256, 128]
    assert (index.splits, index.cameras) == (("train", "query", "gallery"), ("c1", "c2", "c3"))
    assert {"-1", "0"} <= set(index.identities)
    images = {data: name for name, data in market().items() if name.endswith(".jpg")}
    assert len(index) == len(images) == len(set(index.keys))
    for row, key in enumerate(index.keys):
        name = images.pop(image_of(index, row)).rpartition("/")[2]
        identity = index.identities[index.identity_of(np.array([row]))[0]]
        assert identity == key.partition("/")[0]
        assert int(identity) == int(name.partition("_")[0])
        assert f"_{index.cameras[index.samples['camera'][row]]}s" in name
    assert not images
    assert list(faults(index, read=True)) == []
    assert not list((tmp_path / "set").glob("_packing*"))


def test_shards_are_plain_ustar_with_nothing_that_differs_between_packs(tmp_path: Path) -> None:
    index = pack("omniglot", put(tmp_path / "o", omniglot()), str(tmp_path / "set"), SMALL)
    assert len(index.shards) > 4
    for shard in index.shards:
        path = tmp_path / "set" / shard.name
        assert path.stat().st_size == shard.size <= SMALL.shard_size
        data = path.read_bytes()
        assert data[-1024:] == bytes(1024)
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert data[member.offset + 257 : member.offset + 263] == b"ustar\0"
                assert member.offset_data - member.offset == 512  # no extended header before it
                assert member.name.count(".") == 1


def test_shards_are_what_webdatasets_writer_writes_but_for_its_zeros_at_the_end(tmp_path: Path) -> None:
    index = pack("market1501", put(tmp_path / "market", market()), str(tmp_path / "set"), SMALL)
    keys = iter(index.keys)
    for number, shard in enumerate(index.shards):
        held, rows = io.BytesIO(), np.flatnonzero(index.blocks["shard"][index.samples["block"]] == number)
        with webdataset.TarWriter(held, user="", group="", mode=0o644, mtime=0) as writer:
            for row in rows.tolist():
                writer.write({"__key__": next(keys), "jpg": image_of(index, row)})
        data = (tmp_path / "set" / shard.name).read_bytes()
        assert held.getvalue()[: len(data)] == data
        assert not held.getvalue()[len(data) :].strip(b"\0")


def test_packing_needs_no_torch(tmp_path: Path) -> None:
    """It takes 470 MB and more than a second, and webdataset imports it where it is installed."""
    source = put(tmp_path / "market", market())
    code = f"""if True:
        import sys
        from datasets.pack import Options, Path, pack
        pack("market1501", Path({str(source)!r}), {str(tmp_path / "set")!r}, Options(shard_size=40_000))
        assert "torch" not in sys.modules
        import torch, webdataset
        assert issubclass(webdataset.WebDataset, torch.utils.data.IterableDataset)"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_finds_the_samples_of_the_index(tmp_path: Path) -> None:
    index = pack("market1501", put(tmp_path / "market", market()), str(tmp_path / "set"), SMALL)
    paths = [str(tmp_path / "set" / shard.name) for shard in index.shards]
    seen = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in seen] == list(index.keys)
    assert [sample["jpg"] for sample in seen] == [image_of(index, row) for row in range(len(index))]
    gc.collect()  # webdataset leaves files open: let them be closed while the warnings are ignored


def test_every_kind_of_source_gives_the_same_shards(tmp_path: Path) -> None:
    files = omniglot()
    sources = [put(tmp_path / "o", files), zipped(tmp_path / "o.zip", files), tarred(tmp_path / "o.tgz", files, "w:gz")]
    packed = [tmp_path / f"set{i}" for i in range(3)]
    for source, destination in zip(sources, packed, strict=True):
        pack("omniglot", source, str(destination), SMALL)
    first = {name: data for name, data in contents(str(packed[0])).items() if name != "index.json"}
    for other in packed[1:]:
        assert {name: data for name, data in contents(str(other)).items() if name != "index.json"} == first


def test_the_same_input_and_seed_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    source = put(tmp_path / "market", market())
    sets = [tmp_path / name for name in ("a", "b", "c")]
    for destination, seed in zip(sets, (0, 0, 1), strict=True):
        pack("market1501", source, str(destination), replace(SMALL, seed=seed))
    a, b, c = (contents(str(destination)) for destination in sets)
    assert a == b
    assert a["train-000000.tar"] != c["train-000000.tar"]


def test_to_s3(tmp_path: Path, s3_bucket: str) -> None:
    source = put(tmp_path / "market", market())
    pack("market1501", source, f"{s3_bucket}/some/set", SMALL)
    pack("market1501", source, str(tmp_path / "set"), SMALL)
    assert contents(f"{s3_bucket}/some/set") == contents(str(tmp_path / "set"))
    assert list(faults(read_index(f"{s3_bucket}/some/set"), read=True)) == []
    pack("market1501", source, f"{s3_bucket}/some/set", SMALL)  # already whole


def test_a_pack_that_was_killed_does_not_read_as_whole_and_is_finished_by_the_next(tmp_path: Path) -> None:
    files = {f"p{i:02d}/{k}.jpg": jpeg(100 * i + k) for i in range(60) for k in range(10)}
    source, destination = put(tmp_path / "photos", files), tmp_path / "set"
    args = ["folders", source, destination, "--shard-size", "5KiB"]
    command = [sys.executable, "-m", "datasets.pack", *map(str, args)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(destination.glob("*.tar"))) < 20:
        assert process.poll() is None, "the pack ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in destination.glob("*.tar")}
    with pytest.raises(InputError, match=r"not a whole shard set.*run the same pack again"):
        read_index(str(destination))
    indexed = subprocess.run([sys.executable, "-m", "datasets.index", destination], capture_output=True, text=True, check=False)
    assert (indexed.returncode, indexed.stderr.count("\n")) == (2, 1)  # else a part would pass for the whole
    assert indexed.stderr.startswith("error: an interrupted pack is there")
    with pytest.raises(InputError, match="an interrupted pack of other data or options"):
        pack("folders", source, str(destination), Options(shard_size=6 << 10))
    finished = run(*args)
    assert finished.returncode == 0, finished.stderr
    undisturbed = tmp_path / "undisturbed"
    assert run("folders", source, undisturbed, "--shard-size", "5KiB").returncode == 0
    assert contents(str(destination)) == contents(str(undisturbed))
    assert len(list(undisturbed.glob("*.tar"))) > len(done)
    assert {p.relative_to(destination) for p in destination.rglob("*")} == {
        p.relative_to(undisturbed) for p in undisturbed.rglob("*")
    }
    kept = [name for name, mtime in done.items() if (destination / name).stat().st_mtime_ns == mtime]
    assert len(kept) >= len(done) - 1  # finished shards were not written again


def test_a_pack_divided_among_processes_is_the_same(tmp_path: Path) -> None:
    source = put(tmp_path / "market", market())
    pack("market1501", source, str(tmp_path / "alone"), SMALL)
    options = ["--shard-size", SMALL.shard_size, "--max-block", SMALL.max_block]
    command = [sys.executable, "-m", "datasets.pack", "market1501", str(source), str(tmp_path / "set"), *map(str, options)]
    parts = [subprocess.Popen([*command, "--part", f"{k}/3"], stderr=subprocess.PIPE, text=True) for k in (1, 2, 3)]
    outputs = [part.communicate()[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0], outputs
    assert all(f"packed part {k} of 3" in text for k, text in enumerate(outputs, 1))
    with pytest.raises(InputError, match="its packing was interrupted"):
        read_index(str(tmp_path / "set"))
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.tar")}
    assert len(written) > 3
    assert pack_part("market1501", source, str(tmp_path / "set"), SMALL, Part(2, 2)) == len(written) // 2
    done = run("market1501", source, tmp_path / "set", *options)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.tar")} == written  # none was written again
    assert contents(str(tmp_path / "set")) == contents(str(tmp_path / "alone"))
    assert pack_part("market1501", source, str(tmp_path / "set"), SMALL, Part(1, 2)) == 0


@pytest.mark.parametrize("part", ["3", "0/2", "3/2", "a/b", "1/2/3"])
def test_parts_that_are_none(part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        part_of(part)


def test_packing_again_finds_the_set_complete_and_repairs_it_if_not(tmp_path: Path) -> None:
    source, destination = put(tmp_path / "market", market()), tmp_path / "set"
    args = ["market1501", source, destination, "--shard-size", "20000"]
    assert "packed 54 images of 10 identities" in run(*args).stderr
    before = contents(str(destination))
    again = run(*args)
    assert (again.returncode, again.stderr) == (0, f"already whole: {destination}\n")
    (destination / "train-000000.tar").unlink()
    assert run(*args).returncode == 0
    assert contents(str(destination)) == before


def test_an_existing_set_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    source, destination = put(tmp_path / "market", market()), tmp_path / "set"
    pack("market1501", source, str(destination), SMALL)
    before = contents(str(destination))
    with pytest.raises(InputError, match=r"another shard set.*--overwrite"):
        pack("market1501", source, str(destination), replace(SMALL, seed=1))
    assert contents(str(destination)) == before
    (destination / "holiday.tar").write_bytes(b"not ours")
    pack("market1501", source, str(destination), Options(seed=1), overwrite=True)
    after = contents(str(destination))
    assert after.pop("holiday.tar") == b"not ours"
    pack("market1501", source, str(tmp_path / "fresh"), Options(seed=1))
    assert after == contents(str(tmp_path / "fresh"))


def test_foreign_shards_and_damaged_sets_are_not_replaced_without_overwrite(tmp_path: Path) -> None:
    source = put(tmp_path / "market", market())
    foreign = put(tmp_path / "foreign", {"train-000000.tar": b"somebody's"})
    with pytest.raises(InputError, match="shards without an index are at the destination"):
        pack("market1501", source, str(foreign))
    damaged = put(tmp_path / "damaged", {"index.json": b"{"})
    with pytest.raises(InputError, match=r"damaged shard set.*--overwrite"):
        pack("market1501", source, str(damaged))
    pack("market1501", source, str(damaged), overwrite=True)
    assert len(read_index(str(damaged))) == 54


@pytest.mark.parametrize("bad", [b"", b"not an image", jpeg(1)[:-200], png(1)[:-100]])
def test_an_unreadable_image_is_named_and_nothing_reads_as_whole(bad: bytes, tmp_path: Path) -> None:
    files = market() | {"query/0900_c1s1_000001_00.jpg": bad}
    source, destination = put(tmp_path / "market", files), tmp_path / "set"
    ended = run("market1501", source, destination)
    assert ended.returncode == 2
    message = ended.stderr.splitlines()[-1]
    assert message.startswith("error: an image that cannot be decoded: query/0900_c1s1_000001_00.jpg (")
    assert "--allow-unreadable" in message
    with pytest.raises(InputError, match="not a whole shard set"):
        read_index(str(destination))
    allowed = run("market1501", source, destination, "--allow-unreadable", 1)
    assert allowed.returncode == 0
    assert "left out query/0900_c1s1_000001_00.jpg" in allowed.stderr
    index = read_index(str(destination))
    assert len(index) == 53
    assert list(index.about["unreadable"]) == ["query/0900_c1s1_000001_00.jpg"]
    assert list(faults(index, read=True)) == []


def test_unreadable_images_are_counted_over_shards_and_over_a_pack_that_goes_on(tmp_path: Path) -> None:
    names = [name for name in market() if name.startswith("bounding_box_train/")][::6]
    source = put(tmp_path / "market", market() | dict.fromkeys(names, b"bad"))
    with pytest.raises(InputError, match="cannot be decoded") as error:
        pack("market1501", source, str(tmp_path / "set"), SMALL, allow_unreadable=3)
    assert all(name in str(error.value) for name in names)
    pack("market1501", source, str(tmp_path / "set"), SMALL, allow_unreadable=4)
    pack("market1501", source, str(tmp_path / "fresh"), SMALL, allow_unreadable=9)
    assert contents(str(tmp_path / "set")) == contents(str(tmp_path / "fresh"))


def test_identities_with_few_images_can_be_left_out_of_training(tmp_path: Path) -> None:
    extra = {"bounding_box_train/0777_c1s1_000000_00.jpg": jpeg(777)}
    index = pack("market1501", put(tmp_path / "m", market() | extra), str(tmp_path / "set"), replace(SMALL, min_samples=2))
    assert "0777" not in index.identities
    assert "-1" in index.identities  # single images of query and gallery stay


def test_fewer_than_two_identities_are_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "one", {"ann/1.jpg": jpeg(1), "ann/2.jpg": jpeg(2)})
    with pytest.raises(InputError, match=r"fewer than two identities \(only 'ann'\)"):
        pack("folders", source, str(tmp_path / "set"), Options(held_out=0))
    with pytest.raises(InputError, match="fewer than two identities"):
        pack("folders", put(source, {"bob/1.jpg": jpeg(3)}), str(tmp_path / "set"), Options(held_out=0, min_samples=9))
    assert not (tmp_path / "set").exists()


def test_a_destination_within_the_source_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "market", market())
    with pytest.raises(InputError, match="lies inside the source"):
        pack("market1501", source, str(source / "shards"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["market1501", "missing", "set"], "no such folder or archive: missing"),
        (["market1501", "empty", "set"], "holds no files: empty"),
        (["market1501", "empty", "set", "--shard-size", "0"], "--shard-size must be at least 1"),
        (["market1501", "empty", "ftp://host/set"], "not a place of data"),
        (["folders", "photos", "set"], "cannot be decoded: ann/1.jpg (not a JPEG, PNG, BMP or WebP image) in photos"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "photos", {"ann/1.jpg": b"a text", "bob/1.jpg": jpeg(1)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ended = run(*args)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65536), ("64MiB", 64 << 20), ("1 GB", 10**9), ("1.5kib", 1536), ("7B", 7), ("2GiB", 2 << 30)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "1TiBB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        bytes_of(text)


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    files = {f"p{i}/{k}.png": png(10 * i + k, 200, 200) for i in range(10) for k in range(10)}
    source = put(tmp_path / "photos", files)
    total = sum(len(data) for data in files.values())
    with open_archive(source) as opened:
        assert sum(opened.sizes.values()) == total > 10_000_000
    pack("folders", source, str(tmp_path / "before"))  # what is imported when it is first used takes memory, too
    tracemalloc.start()
    try:
        pack("folders", source, str(tmp_path / "set"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < total / 3
