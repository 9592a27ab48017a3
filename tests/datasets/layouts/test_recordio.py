"""RecordIO files, written here by the format's own rules, give their images back byte for byte; faults are one line."""

import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import jpeg, png, put, tarred, zipped

from datasets.errors import InputError
from datasets.layouts.archive import open_archive
from datasets.layouts.identities import LAYOUTS
from datasets.layouts.listing import Listing
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index
from datasets.splits import HeldOut

MAGIC = b"\x0a\x23\xd7\xce"


def record(data: bytes) -> bytes:
    """A record; data with the magic number at a multiple of 4 bytes is stored in parts."""
    parts, begin = [], 0
    for at in range(0, len(data) - 3, 4):
        if data[at : at + 4] == MAGIC:
            parts.append(data[begin:at])
            begin = at + 4
    parts.append(data[begin:])
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    words = [struct.pack("<I", kind << 29 | len(part)) for kind, part in zip(kinds, parts, strict=True)]
    stored = b"".join(MAGIC + word + part for word, part in zip(words, parts, strict=True))
    return stored + bytes(-len(stored) % 4)


def image_record(number: int, labels: Sequence[float], image: bytes) -> bytes:
    """A record of an image: one label in the header, or several after it."""
    if len(labels) == 1:
        return record(struct.pack("<IfQQ", 0, labels[0], number, 0) + image)
    return record(struct.pack("<IfQQ", len(labels), 0, number, 0) + struct.pack(f"<{len(labels)}f", *labels) + image)


def insightface(images: Sequence[tuple[int, bytes]], extra: tuple[float, ...] = ()) -> tuple[bytes, bytes]:
    """A .rec and its .idx in insightface's order: images from record 1 on, record 0, and a record for each identity's range."""
    records = [(number, image_record(number, (label, *extra), image)) for number, (label, image) in enumerate(images, 1)]
    begins = [n for n, (label, _) in enumerate(images, 1) if n == 1 or label != images[n - 2][0]]
    last = len(images) + 1
    records.append((0, image_record(0, (last, last + len(begins)), b"")))
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], last], strict=True), last):
        records.append((number, image_record(number, (begin, end), b"")))
    return plain(records)


def plain(records: Sequence[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    """A .rec of these records, and its .idx."""
    data, lines = b"", []
    for number, stored in records:
        lines.append(f"{number}\t{len(data)}\n")
        data += stored
    return data, "".join(lines).encode()


FACES = [(label, jpeg(10 * label + k) if k else png(10 * label)) for label in (0, 1, 4, 7) for k in range(3)]


def listing(path: Path, held_out: HeldOut | None = None) -> tuple[Listing, dict[str, bytes]]:
    """What the layout makes of a source, and the bytes of its samples."""
    with open_archive(path) as source:
        found = LAYOUTS["rec"](source, held_out or HeldOut())
        assert found.archive is not None
        return found, {sample.name: found.archive.read(sample.name) for sample in found.samples}


def packed_images(index: Index) -> list[tuple[str, bytes]]:
    """The identity and the bytes of every sample."""
    objects = open_objects(index.url)
    shards = [objects.get(shard.name) for shard in index.shards]
    found = []
    for row in range(len(index)):
        block, offset = index.samples["block"][row], int(index.samples["offset"][row])
        data = shards[index.blocks["shard"][block]][offset : offset + int(index.samples["size"][row])]
        found.append((index.identities[index.blocks["identity"][block]], data))
    return found


@pytest.mark.parametrize("extra", [(), (1.0,)])
@pytest.mark.parametrize("kind", ["file", "folder", "zip", "tar", "no idx"])
def test_packed_images_are_those_of_the_records(kind: str, extra: tuple[float, ...], tmp_path: Path) -> None:
    data, idx = insightface(FACES, extra)
    files = {"faces/train.rec": data, "faces/train.idx": idx, "faces/property": b"4,112,112", "faces/lfw.bin": b"x"}
    if kind == "no idx":
        del files["faces/train.idx"]
    source = {
        "file": lambda: put(tmp_path / "f", files) / "faces" / "train.rec",
        "zip": lambda: zipped(tmp_path / "f.zip", files), "tar": lambda: tarred(tmp_path / "f.tar", files),
    }.get(kind, lambda: put(tmp_path / "f", files))()  # fmt: skip
    pack("rec", source, str(tmp_path / "set"))
    index = read_index(str(tmp_path / "set"))
    assert sorted(packed_images(index)) == sorted((f"{label:07d}", image) for label, image in FACES)
    assert (index.splits, index.cameras, index.about["size"]) == (("train",), ("train",), [112, 112])


def test_a_zip_that_is_not_compressed(tmp_path: Path) -> None:
    data, idx = insightface(FACES)
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("train.rec", data)
        archive.writestr("train.idx", idx)
    assert sorted(listing(tmp_path / "f.zip")[1].values()) == sorted(image for _, image in FACES)


def test_images_have_the_ending_of_their_format(tmp_path: Path) -> None:
    data, idx = insightface(FACES)
    _, images = listing(put(tmp_path, {"train.rec": data, "train.idx": idx}))
    assert all(name.endswith(".png" if image.startswith(b"\x89PNG") else ".jpg") for name, image in images.items())


@given(
    images=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.sampled_from([MAGIC, b"\xff\xd8", b"abc", b"\0", MAGIC[:2], b"....", MAGIC * 2]), min_size=1).map(
                b"".join
            ),
        ),
        min_size=1,
    ),
    labels=st.integers(1, 12),
)
def test_any_bytes_come_back_also_with_the_magic_number_in_them(
    images: list[tuple[int, bytes]], labels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = [(n, image_record(n, [label, *range(1, labels)], image)) for n, (label, image) in enumerate(images)]
    folder = tmp_path_factory.mktemp("rec")
    (folder / "train.rec").write_bytes(plain(records)[0])
    found, read = listing(folder)
    assert sorted((sample.identity, read[sample.name]) for sample in found.samples) == sorted(
        (f"{label:07d}", image) for label, image in images
    )


def test_the_magic_number_in_an_image_is_stored_in_parts() -> None:
    words = [struct.pack("<I", kind << 29 | length) for kind, length in ((1, 4), (3, 2))]
    assert record(b"1234" + MAGIC + b"56") == MAGIC + words[0] + b"1234" + MAGIC + words[1] + b"56\0\0"


def test_without_a_split_in_its_name_identities_are_held_out(tmp_path: Path) -> None:
    data, _ = insightface(FACES)
    found, _ = listing(put(tmp_path, {"faces.rec": data}), HeldOut(0.25, 1))
    by_split = {split: {s.identity for s in found.samples if s.split == split} for split in ("train", "query", "gallery")}
    assert (len(by_split["train"]), len(by_split["query"])) == (3, 1)
    assert by_split["query"] == by_split["gallery"]
    assert not by_split["train"] & by_split["query"]


def test_records_that_the_idx_does_not_name_are_left_out(tmp_path: Path) -> None:
    data, idx = plain([(n, image_record(n, [label], image)) for n, (label, image) in enumerate(FACES)])
    fewer = b"".join(line + b"\n" for line in idx.splitlines()[1:])
    found, read = listing(put(tmp_path, {"train.rec": data, "train.idx": fewer}))
    assert sorted(read.values()) == sorted(image for _, image in FACES[1:])
    assert set(found.left_out.values()) == {"not named by train.idx"}
    assert len(found.left_out) == 1


RECORDS, IDX = insightface(FACES)
ONLY_IMAGES = plain([(n, image_record(n, [label], image)) for n, (label, image) in enumerate(FACES)])[0]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"train.rec": b""}, "no images"),
        ({"train.rec": RECORDS[: len(RECORDS) // 2 + 2]}, "cut off after"),
        ({"train.rec": RECORDS[:-1]}, "cut off after"),
        ({"train.rec": RECORDS + b"\x0a"}, "cut off after"),
        ({"train.rec": b"\xce\xd7\x23\x0a" + RECORDS[4:]}, "no record at byte 0"),
        ({"train.rec": RECORDS + b"GARBAGE!"}, f"no record at byte {len(RECORDS)}"),
        ({"train.rec": MAGIC + struct.pack("<I", 3 << 29 | 4) + b"1234"}, "no record at byte 0"),
        ({"train.rec": MAGIC + struct.pack("<I", 1 << 29 | 4) + b"1234" + ONLY_IMAGES}, "no record at byte 12"),
        ({"train.rec": MAGIC + struct.pack("<I", 1 << 29 | 4) + b"1234"}, "cut off after"),
        ({"train.rec": MAGIC + struct.pack("<I", 6 << 29 | 4) + b"1234"}, "no record at byte 0"),
        ({"train.rec": record(b"short")}, "too short for its header"),
        ({"train.rec": record(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + b"1234")}, "too short for its header"),
        ({"train.rec": image_record(0, [1.5], jpeg(0))}, "the label 1.5 at byte 0 is no number of an identity"),
        ({"train.rec": image_record(0, [-1], jpeg(0))}, "the label -1"),
        ({"train.rec": image_record(0, [float("nan")], jpeg(0))}, "the label nan"),
        ({"train.rec": image_record(0, [float("inf")], jpeg(0))}, "the label inf"),
        ({"train.rec": image_record(9, [1], jpeg(0)) + RECORDS}, "13 images where its record 0 counts 12"),
        ({"train.rec": RECORDS[: len(ONLY_IMAGES)], "train.idx": IDX}, r"of its records are not in train\.rec"),
        ({"train.rec": RECORDS, "train.idx": IDX.replace(b"\t", b" ")}, r"line 1 of train\.idx"),
        ({"train.rec": RECORDS, "train.idx": b"1\t9999999999999999999999\n"}, r"line 1 of train\.idx"),
        ({"train.rec": RECORDS, "train.idx": b"1\t4\n"}, "the first at byte 4"),
        ({"train.rec": RECORDS, "val.rec": RECORDS}, r"2 \.rec files: train\.rec, val\.rec"),
        ({"train.idx": IDX}, r"no \.rec file"),
    ],
)  # fmt: skip
def test_faults_are_one_line(files: dict[str, bytes], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match) as error:
        listing(put(tmp_path / "set", files))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_the_command_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    source = put(tmp_path / "set", {"train.rec": RECORDS[:-3]}) / "train.rec"
    command = [sys.executable, "-m", "datasets.pack", "rec", str(source), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "cut off" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_decoded_is_named_by_label_and_record(tmp_path: Path) -> None:
    data, _ = plain(
        [(0, image_record(0, [1], jpeg(1))), (1, image_record(1, [2], b"nothing")), (2, image_record(2, [3], jpeg(2)))]
    )
    source = put(tmp_path / "set", {"train.rec": data})
    with pytest.raises(InputError, match=r"0000002/000000001\.jpg"):
        pack("rec", source, str(tmp_path / "out"))
    assert len(pack("rec", source, str(tmp_path / "out"), Options(), allow_unreadable=1)) == 2
