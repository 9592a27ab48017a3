"""Layouts of labelled faces: what they read, and errors that name file, line and value."""

from pathlib import Path

import numpy as np
import pytest
from facedata import faces
from pictures import Files, jpeg, png, put

from datasets.errors import InputError
from datasets.layouts.archive import open_archive
from datasets.layouts.faces import FACE_LAYOUTS, FaceName
from datasets.layouts.listing import Sample
from datasets.loading.store import read_samples
from datasets.media.decode import decode
from datasets.pack import Options, pack
from datasets.shards.index import read_index, split_of
from datasets.shards.labels import COLUMNS, labels_by_position
from datasets.splits import HeldOut

HEADER = ("Male", "Eyeglasses", "Smiling", "Attractive", "Blurry", "Young")
CELEBA_TXT = "2\n" + " ".join(HEADER) + "\n000001.jpg -1  1 1 -1 -1 1\n000002.jpg  1 -1 -1 1 1 -1\n"
CELEBA_CSV = "image_id," + ",".join(HEADER) + "\n000001.jpg,-1,1,1,-1,-1,1\n000002.jpg,1,-1,-1,1,1,-1\n"
POINTS_TXT = (
    "2\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y\n"
    "000001.jpg 89 109 107 113 77 142 73 152 108 154\n000002.jpg 69 110 107 112 81 135 70 151 108 153\n"
)
TWO: Files = {f"img_align_celeba/00000{i}.jpg": jpeg(i) for i in (1, 2)}


def samples(layout: FaceName, root: Path, files: Files, fraction: float = 0.0) -> dict[str, Sample]:
    with open_archive(put(root, files)) as source:
        return {Path(s.name).name: s for s in FACE_LAYOUTS[layout](source, HeldOut(fraction)).samples}


@pytest.mark.parametrize(("name", "text"), [("list_attr_celeba.txt", CELEBA_TXT), ("list_attr_celeba.csv", CELEBA_CSV)])
def test_celeba(tmp_path: Path, name: str, text: str) -> None:
    found = samples("celeba", tmp_path, TWO | {name: text.encode()})
    assert found["000001.jpg"].labels == {"gender": 1, "glasses": 1, "smile": 1, "attractiveness": 0, "quality": 1}
    assert found["000002.jpg"].labels == {"gender": 0, "glasses": 0, "smile": 0, "attractiveness": 1, "quality": 0}
    assert found["000001.jpg"].name == "img_align_celeba/000001.jpg"


def test_celeba_with_landmarks(tmp_path: Path) -> None:
    lists = {"list_attr_celeba.txt": CELEBA_TXT.encode(), "list_landmarks_align_celeba.txt": POINTS_TXT.encode()}
    labels = samples("celeba", tmp_path, TWO | lists)["000001.jpg"].labels
    assert (labels["left_eye_x"], labels["left_eye_y"]) == (0.5, 0.5)
    assert labels["right_mouth_y"] == pytest.approx(154 / 218)
    assert len(labels) == 15


def test_utkface_by_names_and_by_csv(tmp_path: Path) -> None:
    found = samples(
        "utkface", tmp_path / "a", {"26_1_0_2017.jpg.chip.jpg": jpeg(1), "61_1_2017.jpg": jpeg(2), "53__0_2017.jpg": jpeg(3)}
    )
    assert found["26_1_0_2017.jpg.chip.jpg"].labels == {"age": 26, "gender": 1}
    assert found["61_1_2017.jpg"].labels == {"age": 61, "gender": 1}
    assert found["53__0_2017.jpg"].labels == {"age": 53}
    by_csv: Files = {"images/a.jpg": jpeg(1), "labels.csv": b"file,age,gender,race\na.jpg,33,0,2\n"}
    assert samples("utkface", tmp_path / "b", by_csv)["a.jpg"].labels == {"age": 33, "gender": 0}


def test_mask_folders_and_head_pose(tmp_path: Path) -> None:
    found = samples("mask_folders", tmp_path / "a", {"x/with_mask/1.jpg": jpeg(1), "x/without_mask/2.jpg": jpeg(2)})
    assert [found[name].labels["mask"] for name in ("1.jpg", "2.jpg")] == [1, 0]
    posed: Files = {"1.png": png(1), "pose.csv": b"file,yaw,pitch,roll\n1.png,-30.5,10,\n"}
    assert samples("head_pose", tmp_path / "b", posed)["1.png"].labels == {"yaw": -30.5, "pitch": 10}


def test_any_columns(tmp_path: Path) -> None:
    files: Files = {"a/1.png": png(1), "b/1.png": png(2), "l.csv": b"file,age,notes,quality\na/1.png,3,x,\nb/1.png,,,0.5\n"}
    with open_archive(put(tmp_path, files)) as source:
        found = {s.name: s.labels for s in FACE_LAYOUTS["attributes_csv"](source, HeldOut(0)).samples}
    assert found == {"a/1.png": {"age": 3}, "b/1.png": {"quality": 0.5}}


@pytest.mark.parametrize(
    ("layout", "files", "message"),
    [
        (
            "attributes_csv",
            {"l.csv": b"file,age\n1.png,-3\n"},
            r"age is -3, outside 0\.\.120: 1\.png, line 2 of l\.csv",
        ),
        (
            "head_pose",
            {"l.csv": b"file,yaw,pitch,roll\n1.png,400,0,0\n"},
            r"yaw is 400, outside -180\.\.180: 1\.png, line 2 of l\.csv",
        ),
        ("head_pose", {"l.csv": b"file,yaw,pitch\n1.png,0,0\n"}, r"no column roll: l\.csv .*it has: file, yaw, pitch"),
        ("attributes_csv", {"l.csv": b"file,agee\n1.png,3\n"}, "no column with labels"),
        ("attributes_csv", {"l.csv": b"age\n3\n"}, "no column file"),
        ("attributes_csv", {"l.csv": b"file,age\n2.png,3\n"}, r"the image '2\.png' is not there: line 2 of l\.csv"),
        ("attributes_csv", {"a/2.png": b"", "b/2.png": b"", "l.csv": b"file,age\n2.png,3\n"}, r"2 images are called '2\.png'"),
        ("attributes_csv", {}, "no csv file"),
        ("attributes_csv", {"l.csv": b"file,age\n"}, "0 images and no label"),
        ("attributes_csv", {"l.csv": b"file,age\n1.png,\n"}, "1 images and no label"),
        ("attributes_csv", {"l.csv": b"file,age\n1.png,3\n1.png,4\n"}, r"the image '1\.png' is listed twice: line 3 of l\.csv"),
        ("attributes_csv", {"l.csv": b"file,age\n1.png\n"}, r"more or fewer cells than columns: line 2 of l\.csv"),
        ("attributes_csv", {"l.csv": b"file,age\n1.png,3,4\n"}, r"more or fewer cells than columns: line 2 of l\.csv"),
        ("utkface", {}, r"a name without age and gender: 1\.png"),
        ("utkface", {"200_1_0_2.jpg": b""}, "a name without age|age is 200"),
        ("mask_folders", {}, r"neither with_mask nor without_mask: 1\.png"),
        ("celeba", {}, r"no list_attr_celeba\.txt"),
        ("celeba", {"list_attr_celeba.csv": b"f,Male\n1.png,0\n"}, r"no column Eyeglasses"),
        (
            "celeba",
            {"list_attr_celeba.csv": CELEBA_CSV.replace("-1,1,1", "-1,2,1").encode()},
            r"Eyeglasses of 000001\.jpg is '2'",
        ),
        ("celeba", {"list_attr_celeba.csv": CELEBA_CSV.encode() + b"3.jpg,1\n"}, r"more or fewer cells than columns"),
    ],
)
def test_what_does_not_fit_is_named(layout: FaceName, files: Files, message: str, tmp_path: Path) -> None:
    there = TWO if layout == "celeba" else {"1.png": png(1)}
    with pytest.raises(InputError, match=message) as error:
        samples(layout, tmp_path, there | files)
    assert "\n" not in str(error.value)


def test_held_out_images_depend_on_their_names_alone(tmp_path: Path) -> None:
    many: Files = {f"with_mask/{i}.jpg": jpeg(i) for i in range(200)}
    found = samples("mask_folders", tmp_path / "a", many, fraction=0.3)
    test = {name for name, sample in found.items() if sample.split == "test"}
    assert 40 <= len(test) <= 80
    fewer = samples("mask_folders", tmp_path / "b", {f"without_mask/{i}.jpg": jpeg(i) for i in range(100)}, fraction=0.3)
    assert {name for name, sample in fewer.items() if sample.split == "test"} == {n for n in test if int(n[:-4]) < 100}
    assert not [s for s in samples("mask_folders", tmp_path / "c", many, fraction=0.0).values() if s.split == "test"]


def test_packed_labels_stand_at_their_images(tmp_path: Path) -> None:
    source = faces(tmp_path / "faces", 40)
    pack("attributes_csv", source, str(tmp_path / "set"), Options(max_block=4 << 10, shard_size=16 << 10))
    index = read_index(str(tmp_path / "set"))
    with open_archive(source) as opened:
        listed = {opened.read(s.name): s.labels for s in FACE_LAYOUTS["attributes_csv"](opened, HeldOut()).samples}
    seen = 0
    for name in ("train", "test"):
        split = split_of(index, name)
        labels = labels_by_position(split, tuple(COLUMNS))
        data = read_samples(index, split.samples(np.arange(len(split))))
        for row, image in zip(labels, data, strict=True):
            assert not isinstance(image, ValueError)
            assert decode(image).shape == (32, 32, 3)
            np.testing.assert_allclose(row, [listed[bytes(image)][column] for column in COLUMNS], rtol=1e-6)
            seen += 1
    assert seen == 40


def test_absent_columns_and_sets_without_labels(tmp_path: Path) -> None:
    files: Files = {f"{i}.png": png(i) for i in range(6)} | {
        "l.csv": b"file,age,mask\n" + b"".join(b"%d.png,%d,\n" % (i, i) for i in range(6))
    }
    pack("attributes_csv", put(tmp_path / "a", files), str(tmp_path / "set"))
    index = read_index(str(tmp_path / "set"))
    assert list(index.labels) == ["age"]
    assert np.isnan(labels_by_position(split_of(index, "train"), ["mask"])).all()
    pack(
        "folders",
        put(tmp_path / "b", {f"p{i}/{j}.png": png(i * 9 + j) for i in range(4) for j in range(3)}),
        str(tmp_path / "plain"),
    )
    assert read_index(str(tmp_path / "plain")).labels == {}


def test_other_labels_are_another_pack(tmp_path: Path) -> None:
    files: Files = {f"{i}.png": png(i) for i in range(4)}
    rows = b"".join(b"%d.png,30\n" % i for i in range(4))
    pack("attributes_csv", put(tmp_path / "a", files | {"l.csv": b"file,age\n" + rows}), str(tmp_path / "set"))
    with pytest.raises(InputError, match="overwrite"):
        pack(
            "attributes_csv",
            put(tmp_path / "b", files | {"l.csv": b"file,age\n" + rows.replace(b"30", b"31")}),
            str(tmp_path / "set"),
        )
