"""Indexing shards of other tools in one pass, for any naming; and measuring how good their order is."""

import json
import os
import pickle
import subprocess
import sys
import tarfile
from itertools import chain
from math import comb
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Files, jpeg, market, png, put, tarred

from datasets.errors import InputError
from datasets.inspect import faults
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index, write_index
from datasets.shards.locality import locality_of
from datasets.shards.scan import Rules, scan


def run(*args: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "datasets.index", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def classes(order: str, sidecar_first: bool = False) -> Files:
    """Samples whose .cls names the identity, one for each letter."""
    files: Files = {}
    for i, who in enumerate(order):
        both = [(f"{i:04d}.jpg", jpeg(i)), (f"{i:04d}.cls", f"{who}\n".encode())]
        files |= dict(reversed(both) if sidecar_first else both)
    return files


def identities(index: Index) -> list[str]:
    """The identity of each sample in the order of the tar."""
    return [index.identities[i] for i in index.identity_of(np.arange(len(index)))]


def stored(root: Path, index: Index) -> list[bytes]:
    """Each sample's bytes, read by the index."""
    shards = [(root / shard.name).read_bytes() for shard in index.shards]
    shard_of = index.blocks["shard"][index.samples["block"]]
    places = zip(shard_of, index.samples["offset"], index.samples["size"], strict=True)
    return [shards[shard][offset : offset + size] for shard, offset, size in places]


@pytest.mark.parametrize("sidecar_first", [False, True])
def test_identities_from_cls(sidecar_first: bool, tmp_path: Path) -> None:
    tarred(tmp_path / "train-0.tar", classes("aaabbc", sidecar_first))
    tarred(tmp_path / "train-1.tar", classes("cca", sidecar_first))
    index, keys, found = scan(str(tmp_path), Rules())
    assert identities(index) == list("aaabbccca")
    assert index.blocks["count"].tolist() == [3, 2, 1, 2, 1]
    assert keys == [f"{i:04d}" for i in chain(range(6), range(3))]
    assert stored(tmp_path, index) == [jpeg(i) for i in chain(range(6), range(3))]
    assert (found.left_out.seen, found.left_out.counts.total()) == (18, 0)
    write_index(open_objects(str(tmp_path)), index, keys)
    assert list(faults(read_index(str(tmp_path)), read=True)) == []


def test_identities_and_cameras_from_json(tmp_path: Path) -> None:
    labels = [{"who": 7, "cam": "north"}, {"who": 7, "cam": "south"}, {"who": 0, "cam": "north"}]
    files = chain.from_iterable(
        [(f"{i}.jpg", jpeg(i)), (f"{i}.json", json.dumps(label).encode())] for i, label in enumerate(labels)
    )
    tarred(tmp_path / "a.tar", dict(files))
    index, _, _ = scan(str(tmp_path), Rules(identity="json", field="who", camera_field="cam"))
    assert identities(index) == ["7", "7", "id-0"]
    assert [index.cameras[c] for c in index.samples["camera"]] == ["north", "south", "north"]


def test_identities_and_cameras_from_the_key(tmp_path: Path) -> None:
    names = [name for name in market(people=2) if name.startswith("bounding_box_test")]
    tarred(tmp_path / "gallery.tar", {name.rpartition("/")[2]: jpeg(i) for i, name in enumerate(names)})
    rules = Rules(key_pattern=r"(?P<identity>-?\d+)_c(?P<camera>\d).*", market_ids=True)
    index, _, _ = scan(str(tmp_path), rules)
    assert index.identities == ("-1", "0000", "0900", "0901")
    assert index.cameras == ("1", "2", "3")
    assert index.splits == ("gallery",)


def test_our_own_shards_are_indexed_as_they_were_packed(tmp_path: Path, s3_bucket: str) -> None:
    packed = pack("market1501", put(tmp_path / "m", market()), s3_bucket, Options(shard_size=40_000, max_block=6_000))
    keys = list(packed.keys)
    ended = run(s3_bucket, "--overwrite", "--market-ids", "--max-block", "6000")
    assert ended.returncode == 0, ended.stderr
    index = read_index(s3_bucket)
    assert list(index.keys) == keys
    assert index.identities == packed.identities
    assert identities(index) == identities(packed)
    for column in ("offset", "size"):
        assert (index.samples[column] == packed.samples[column]).all()
    for column in ("offset", "size", "count", "crc32c", "first"):
        assert (index.blocks[column] == packed.blocks[column]).all()


def test_shards_of_webdatasets_own_writer(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "val-000.tar")) as writer:
        for i in range(6):
            writer.write({"__key__": f"{i:03d}", "png": png(i), "cls": i // 2, "pyd": pickle.dumps(object), "json": {"a": i}})
    index, keys, _ = scan(str(tmp_path), Rules())
    assert identities(index) == ["id-0", "id-0", "1", "1", "2", "2"]
    assert index.splits == ("val",)
    assert stored(tmp_path, index) == [png(i) for i in range(6)]
    assert keys == [f"{i:03d}" for i in range(6)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_form_of_tar(form: int, tmp_path: Path) -> None:
    folder = "a" * 60 + "/" + "b" * 60
    tarred(tmp_path / "s.tar", {f"{folder}/{i}.jpg": jpeg(i) for i in range(3)}, "w", format=form)
    index, keys, _ = scan(str(tmp_path), Rules())
    assert stored(tmp_path, index) == [jpeg(i) for i in range(3)]
    assert index.identities == (folder,)
    write_index(open_objects(str(tmp_path)), index, keys)
    assert list(faults(read_index(str(tmp_path)), read=True)) == []


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("__meta.json"))
        for i, who in enumerate("aab"):
            folder = tarfile.TarInfo(who)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, data in ((f"{who}/{i}.jpg", jpeg(i)), (f"{who}/text{i}.txt", b"no image")):
                tar.add(put(tmp_path / "files", {name: data}) / name, name)
    index, _, found = scan(str(tmp_path), Rules())
    assert identities(index) == list("aab")
    assert found.left_out.counts == {"notes of WebDataset (__*)": 1, "files of samples without an image": 3}
    assert stored(tmp_path, index) == [jpeg(i) for i in range(3)]


@settings(max_examples=60)
@given(
    shards=st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=3).filter(any),
    max_block=st.integers(1, 8000),
    chunk=st.integers(1, 5000),
    sidecar_first=st.booleans(),
)
def test_every_sample_lies_in_one_block(
    shards: list[list[str]], max_block: int, chunk: int, sidecar_first: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("set")
    for i, order in enumerate(shards):
        tarred(root / f"{i}.tar", classes("".join(order), sidecar_first))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.shards.tar_reader.CHUNK", chunk)  # reads end anywhere
        index, keys, _ = scan(str(root), Rules(max_block=max_block))
    assert identities(index) == list(chain.from_iterable(shards))
    assert stored(root, index) == [jpeg(i) for order in shards for i in range(len(order))]
    blocks, block = index.blocks, index.samples["block"]
    ends = blocks["offset"] + blocks["size"]
    assert (index.samples["offset"] >= blocks["offset"][block]).all()
    assert (index.samples["offset"] + index.samples["size"] <= ends[block]).all()
    assert ((blocks["size"] <= max_block) | (blocks["count"] == 1)).all()
    same_shard = blocks["shard"][1:] == blocks["shard"][:-1]
    assert (blocks["offset"][1:] >= ends[:-1])[same_shard].all()
    write_index(open_objects(str(root)), index, keys)
    assert list(faults(read_index(str(root)), read=True)) == []


@pytest.mark.parametrize("cut", [1024 * 3, -9000, -20_000, 700])
def test_a_shard_that_is_cut_off_is_named_with_the_place(cut: int, tmp_path: Path) -> None:
    path = tarred(tmp_path / "train-0.tar", classes("aabb" * 5))
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"cut off or damaged after byte \d+ .*train-0\.tar"):
        scan(str(tmp_path), Rules())


@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_header_is_named(at: int, tmp_path: Path) -> None:
    path = tarred(tmp_path / "train-0.tar", classes("aabb"))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[at * 3].offset
    data[offset + 10] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-0\.tar") as error:
        scan(str(tmp_path), Rules())
    assert (f"after byte {offset}" if at else "not an uncompressed tar") in str(error.value)


@pytest.mark.parametrize(
    ("files", "rules", "words"),
    [
        ({"0.jpg": jpeg(0)}, Rules(), "the key does not match"),
        ({"0.jpg": jpeg(0)}, Rules(identity="cls"), "the sample has no .cls: 0.jpg in"),
        ({"0.jpg": jpeg(0), "0.cls": b" \n"}, Rules(), "the identity is empty"),
        ({"0.jpg": jpeg(0), "0.json": b"{}"}, Rules(identity="json"), "no field 'pid'"),
        ({"0.jpg": jpeg(0), "0.json": b"{"}, Rules(identity="json"), "not a JSON document"),
        ({"0.jpg": jpeg(0), "0.json": b"[1]"}, Rules(identity="json"), "no field 'pid'"),
        ({"0.jpg": jpeg(0), "0.json": b'{"pid": [1]}'}, Rules(identity="json"), "neither a number nor a text"),
        ({"0.txt": b"text"}, Rules(), "no images in the shards"),
    ],
)
def test_samples_without_an_identity(files: Files, rules: Rules, words: str, tmp_path: Path) -> None:
    tarred(tmp_path / "s.tar", files)
    with pytest.raises(InputError) as error:
        scan(str(tmp_path), rules)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("pattern", ["(", ".*", "(?P<who>.*)"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="--key-pattern"):
        Rules(key_pattern=pattern)


def test_no_shards_and_compressed_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.tar files"):
        scan(str(tmp_path), Rules())
    tarred(tmp_path / "s.tar", classes("ab"), "w:gz")
    with pytest.raises(InputError, match="not an uncompressed tar"):
        scan(str(tmp_path), Rules())


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    bomb = pickle.dumps(Trap(tmp_path / "sprung"))
    files = {f"0.{ending}": bomb for ending in ("pyd", "pickle", "cls", "pth", "npy")}
    tarred(tmp_path / "s.tar", {"0.jpg": jpeg(0), **files})
    with pytest.raises(InputError, match=r"not a text in UTF-8 .*0\.cls in"):
        scan(str(tmp_path), Rules())
    scan(str(tmp_path), Rules(identity="key", key_pattern="(?P<identity>.*)"))
    assert not (tmp_path / "sprung").exists()


def test_the_command_reports_how_good_the_order_is(tmp_path: Path) -> None:
    for name, order in (("sorted", "a" * 8 + "b" * 8), ("mixed", "ab" * 8)):
        (tmp_path / name).mkdir()
        tarred(tmp_path / name / "s.tar", classes(order))
    good, poor = run(tmp_path / "sorted"), run(tmp_path / "mixed")
    assert (good.returncode, poor.returncode) == (0, 0)
    assert "16 images of 2 identities in 1 shards" in good.stderr
    assert "8.0 images a block (8.0 at best), 100% of identities in one block" in good.stderr
    assert "good: identities lie side by side; drawing 4 images of an identity takes 1.0 reads" in good.stderr
    assert "1.0 images a block (8.0 at best), 0% of identities in one block" in poor.stderr
    assert "poor: identities are scattered over the shards; drawing 4 images of an identity takes 4.0 reads (1.0" in poor.stderr
    again = run(tmp_path / "mixed")
    assert again.returncode == 2
    assert again.stderr.startswith("error: an index is there already")


def test_an_index_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    tarred(tmp_path / "s.tar", classes("aabb"))
    assert run(tmp_path).returncode == 0
    before = read_index(str(tmp_path))
    with (tmp_path / "s.tar").open("r+b") as shard:
        shard.truncate(700)
    ended = run(tmp_path, "--overwrite")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cut off" in ended.stderr
    assert read_index(str(tmp_path)).checksum == before.checksum


@pytest.mark.parametrize(
    ("order", "reads"),
    [
        ("a" * 8, 1.0),
        ("aaaabaaaab", (2 * (1 - 1 / comb(8, 4)) + 2) / 2),  # a: two blocks of 4; b: both of its images
        ("ab" * 3, 3.0),  # fewer images than a draw takes: all
        ("aaaaabab", (1 + (1 - comb(5, 4) / comb(6, 4)) + 2) / 2),  # a: 5 and 1; b: both of its images
    ],
)
def test_reads_per_draw_by_hand(order: str, reads: float, tmp_path: Path) -> None:
    tarred(tmp_path / "s.tar", classes(order))
    assert locality_of(scan(str(tmp_path), Rules())[0]).reads_per_draw == pytest.approx(reads)


def test_locality_against_drawing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    tarred(tmp_path / "s.tar", classes("".join(rng.choice(list("aaabbc"), 60))))
    index = scan(str(tmp_path), Rules(max_block=9000))[0]
    quality = locality_of(index, 9000)
    reads, size = [], []
    for identity in range(3):
        own = np.flatnonzero(index.identity_of(np.arange(len(index))) == identity)
        draws = [np.unique(index.samples["block"][rng.choice(own, 4, replace=False)]) for _ in range(4000)]
        reads.append(np.mean([len(blocks) for blocks in draws]))
        size.append(np.mean([index.blocks["size"][blocks].sum() for blocks in draws]))
    assert quality.reads_per_draw == pytest.approx(np.mean(reads), rel=0.02)
    assert quality.bytes_per_draw == pytest.approx(np.mean(size), rel=0.02)
