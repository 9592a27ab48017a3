"""Verification sets are packed in pairs of the published order, each image as often as it occurs."""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pictures import Files, jpeg, png, put, tarred, zipped
from test_pickle_files import Malicious, python2

from datasets.errors import InputError
from datasets.inspect import faults
from datasets.layouts.archive import open_archive
from datasets.layouts.pairs import PAIR_LAYOUTS, PairName
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index, split_of
from datasets.shards.pairs import pairs_of
from trainers.tasks.reid.data import open_data

SAME = [True, False, False, True, True, False, True]
IMAGES = [png(i) if i % 3 else jpeg(i) for i in range(2 * len(SAME))]
SMALL = Options(shard_size=8_000, max_block=2_000)


def image_of(index: Index, sample: int) -> bytes:
    """A sample's bytes, read by the index."""
    shard = index.shards[index.blocks["shard"][index.samples["block"][sample]]].name
    return open_objects(index.url).get_range(shard, int(index.samples["offset"][sample]), int(index.samples["size"][sample]))


def published(index: Index) -> tuple[list[tuple[bytes, bytes]], list[bool]]:
    """The images of each pair, and which are "same"."""
    pairs = pairs_of(index)
    assert (pairs.dtype, pairs.shape[1]) == (np.int64, 2)
    identities = index.identity_of(pairs.ravel()).reshape(-1, 2)
    images = [(image_of(index, first), image_of(index, second)) for first, second in pairs.tolist()]
    return images, (identities[:, 0] == identities[:, 1]).tolist()


def in_pairs(images: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Images 0 and 1, 2 and 3, and so on."""
    return list(zip(images[::2], images[1::2], strict=True))


@pytest.mark.parametrize("kind", ["file", "folder", "zip", "tar"])
@pytest.mark.parametrize("writer", ["python2", 3, 4, 5])
def test_pairs_of_a_bin(writer: str | int, kind: str, tmp_path: Path) -> None:
    content = (IMAGES, SAME)
    data = python2(content) if isinstance(writer, str) else pickle.dumps(content, writer)
    files = {"lfw.bin": data, "readme.txt": b"hello"}
    source = {
        "file": lambda: put(tmp_path / "f", files) / "lfw.bin", "folder": lambda: put(tmp_path / "f", files),
        "zip": lambda: zipped(tmp_path / "f.zip", files), "tar": lambda: tarred(tmp_path / "f.tar", files),
    }[kind]()  # fmt: skip
    pack("bin", source, str(tmp_path / "set"), SMALL)
    index = read_index(str(tmp_path / "set"))
    assert len(index.shards) > 1
    assert published(index) == (in_pairs(IMAGES), SAME)
    split = split_of(index, "pairs")
    assert index.splits == ("pairs",)
    assert split.samples(np.arange(len(split))).tolist() == pairs_of(index).ravel().tolist()  # positions, too, are in this order
    assert index.identities == ["00000", "00001a", "00001b", "00002a", "00002b", "00003", "00004", "00005a", "00005b", "00006"]
    assert list(faults(index, read=True)) == []


def test_an_image_that_occurs_in_many_pairs_is_stored_as_often(tmp_path: Path) -> None:
    images = [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[0]]
    put(tmp_path, {"a.bin": pickle.dumps((images, [False, True]), 4)})
    assert published(pack("bin", tmp_path / "a.bin", str(tmp_path / "set"))) == (in_pairs(images), [False, True])


@pytest.mark.parametrize("writer", ["python2", 3, 4, 5])
def test_images_and_answers_in_numpy_arrays_as_cv2_encodes_them(writer: str | int, tmp_path: Path) -> None:
    content = ([np.frombuffer(image, np.uint8)[:, None].copy() for image in IMAGES], np.array(SAME))
    put(tmp_path, {"a.bin": python2(content) if isinstance(writer, str) else pickle.dumps(content, writer)})
    assert published(pack("bin", tmp_path / "a.bin", str(tmp_path / "set"))) == (in_pairs(IMAGES), SAME)


def test_numbers_0_and_1_are_answers_as_well(tmp_path: Path) -> None:
    put(tmp_path, {"a.bin": pickle.dumps((IMAGES[:4], [1, 0]), 4)})
    assert published(pack("bin", tmp_path / "a.bin", str(tmp_path / "set")))[1] == [True, False]


def test_many_pairs_keep_their_order(tmp_path: Path) -> None:
    same = np.random.default_rng(0).random(1200) < 0.5
    images = [jpeg(i, 8, 8) for i in range(2400)]
    put(tmp_path, {"a.bin": pickle.dumps((images, same.tolist()), 4)})
    index = pack("bin", tmp_path / "a.bin", str(tmp_path / "set"), Options(shard_size=200_000))
    assert published(index) == (in_pairs(images), same.tolist())


def test_a_pair_with_an_unreadable_image_is_left_out_whole(tmp_path: Path) -> None:
    images = [*IMAGES[:3], b"nothing", *IMAGES[4:]]
    put(tmp_path, {"a.bin": pickle.dumps((images, SAME), 4)})
    index = pack("bin", tmp_path / "a.bin", str(tmp_path / "set"), allow_unreadable=1)
    assert published(index) == ([pair for i, pair in enumerate(in_pairs(images)) if i != 1], SAME[:1] + SAME[2:])


def refused(layout: PairName, root: Path, files: Files, match: str) -> None:
    """Assert that the layout refuses the files on one line that names the source."""
    with pytest.raises(InputError, match=match) as error, open_archive(put(root, files)) as source:
        PAIR_LAYOUTS[layout](source, Options())  # type: ignore[arg-type]  # takes no notice of it
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ((IMAGES, SAME[:-1]), "14 images of 6 pairs"),
        (([], []), "0 images of 0 pairs"),
        ((IMAGES, SAME, SAME), "not two lists"),
        (IMAGES, "not two lists"),
        (True, "not two lists"),
        ((SAME, IMAGES), "not a list of image files and one of booleans"),
        ((IMAGES[:2], [2]), "not a list of image files and one of booleans"),
        ((IMAGES[:2], [[]]), "not a list of image files and one of booleans"),
        ((IMAGES[:2], [Malicious()]), r"a pickle with \w+ at byte"),
    ],
)
def test_bins_that_hold_something_else(content: object, match: str, tmp_path: Path) -> None:
    refused("bin", tmp_path, {"a.bin": pickle.dumps(content, 4)}, match)


def test_bins_that_are_not_whole_or_several(tmp_path: Path) -> None:
    data = pickle.dumps((IMAGES, SAME), 4)
    refused("bin", tmp_path / "a", {"a.bin": data[:-100]}, "not a whole pickle")
    refused("bin", tmp_path / "b", {"a.bin": b""}, "not a whole pickle")
    refused("bin", tmp_path / "c", {"a.bin": data, "b.bin": data}, r"2 \.bin files: a\.bin, b\.bin")
    refused("bin", tmp_path / "d", {"a.txt": b"1"}, r"no \.bin file")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_is_refused_by_the_command_in_one_line(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    put(tmp_path, {"a.bin": pickle.dumps((IMAGES[:2], [Runs()]), protocol)})
    command = [sys.executable, "-m", "datasets.pack", "bin", str(tmp_path / "a.bin"), str(tmp_path / "set")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "a pickle with" in ended.stderr
    assert not mark.exists()
    assert not (tmp_path / "set").exists()


FACES = {f"{who}/{who}_{n:04d}.jpg": jpeg(seed + n) for seed, who in ((0, "Ann_B"), (50, "Bob"), (90, "Cy")) for n in (1, 2, 12)}
PAIRS = "2\t2\nAnn_B\t1\t12\nCy\t2\t1\nBob\t1\tAnn_B\t1\nCy\t1\tBob\t12\nBob\t1\t2\nAnn_B\t1\t2\nAnn_B\t2\tCy\t2\nBob\t2\tCy\t1\n"


def lfw_images(text: str) -> tuple[list[tuple[bytes, bytes]], list[bool]]:
    """The pairs of a list, by its own words."""
    rows = [line.split() for line in text.splitlines()[1:]]
    names = [(row[0], row[1], row[0] if len(row) == 3 else row[2], row[-1]) for row in rows]
    return [(FACES[f"{a}/{a}_{int(m):04d}.jpg"], FACES[f"{b}/{b}_{int(n):04d}.jpg"]) for a, m, b, n in names], [
        len(row) == 3 for row in rows
    ]


@pytest.mark.parametrize("wrapped", ["", "lfw-deepfunneled/"])
def test_pairs_of_lfw(wrapped: str, tmp_path: Path) -> None:
    files = {f"{wrapped}{name}": data for name, data in FACES.items()} | {"pairs.txt": PAIRS.encode()}
    pack("lfw", put(tmp_path / "lfw", files), str(tmp_path / "set"), SMALL)
    index = read_index(str(tmp_path / "set"))
    assert published(index) == lfw_images(PAIRS)
    assert index.identities == ["Ann_B", "Bob", "Cy"]
    assert len(index) == 16


def test_lfw_with_a_single_number_in_its_first_line_and_png(tmp_path: Path) -> None:
    files = {name.replace(".jpg", ".png"): png(i) for i, name in enumerate(FACES)}
    text = "1\nBob\t1\t2\nBob\t1\tCy\t1\n"
    index = pack("lfw", put(tmp_path / "lfw", files | {"pairs.txt": text.encode()}), str(tmp_path / "set"))
    images, same = published(index)
    assert images == [(files["Bob/Bob_0001.png"], files[f"{who}/{who}_{n}.png"]) for who, n in (("Bob", "0002"), ("Cy", "0001"))]
    assert same == [True, False]


def test_the_summary_counts_files_once(tmp_path: Path) -> None:
    source = put(tmp_path / "lfw", FACES | {"pairs.txt": PAIRS.encode()})
    command = [sys.executable, "-m", "datasets.pack", "lfw", str(source), str(tmp_path / "set")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "left out 1, not named by pairs.txt: Cy/Cy_0012.jpg" in ended.stderr
    assert "10 files seen: 16 images packed, 1 left out, 1 lists and other texts" in ended.stderr
    assert "splits: 16 pairs; by pairs.txt" in ended.stderr


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no number of folds and pairs in its first line"),
        ("Ann_B\t1\t2\n", "no number of folds"),
        (PAIRS.removesuffix("Bob\t2\tCy\t1\n"), "7 pairs where its first line counts 8"),
        ("1\t1\nBob\t1\nBob\t1\tCy\t1\n", "line 2 of pairs.txt.*`name n m` is expected here"),
        ("1\t1\nBob\t1\tCy\t1\nBob\t1\t2\n", "line 2 of pairs.txt.*`name n m` is expected here"),
        ("1\t1\nBob\t1\t2\nBob\t1\t2\n", "line 3 of pairs.txt.*`name n name m` is expected here"),
        ("1\t1\nBob\t1\t2\nBob\t1\tBob\t2\n", "Bob twice in a pair of different people.*line 3"),
        ("1\t1\nBob\t1\t3\nBob\t1\tCy\t2\n", "the image 'Bob/Bob_0003' is not there.*line 2"),
        ("1\t1\nBob\tone\t2\nBob\t1\tCy\t2\n", "line 2 of pairs.txt"),
    ],
)
def test_lists_of_pairs_that_are_wrong(text: str, match: str, tmp_path: Path) -> None:
    refused("lfw", tmp_path, FACES | {"pairs.txt": text.encode()}, match)


def test_lfw_without_its_list(tmp_path: Path) -> None:
    refused("lfw", tmp_path, FACES, r"no pairs\.txt")


def test_a_set_without_pairs_or_with_foreign_keys_is_named(tmp_path: Path) -> None:
    pack("folders", put(tmp_path / "a", {f"{who}/{n}.jpg": jpeg(n) for who in "ab" for n in range(2)}), str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"no split 'pairs'.*it has: train"):
        pairs_of(read_index(str(tmp_path / "set")))


def test_training_on_a_set_of_pairs_is_one_clear_line(tmp_path: Path) -> None:
    put(tmp_path, {"a.bin": pickle.dumps((IMAGES, SAME), 4)})
    pack("bin", tmp_path / "a.bin", str(tmp_path / "set"))
    inspected = subprocess.run(
        [sys.executable, "-m", "datasets.inspect", str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    assert "whole and sound" in inspected.stdout
    with pytest.raises(InputError, match=r"no split 'train'.*it has: pairs"):
        open_data((str(tmp_path / "set"),), None)
