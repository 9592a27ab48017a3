"""Sets with boxes: every form leads to the same boxes, what cannot be a box is named, and odd images are taken."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from boxdata import CLASSES, coco_files, csv_files, encoded, scene, voc_files, xml
from pictures import Files, put
from testdata import archive

from datasets.errors import InputError
from datasets.inspect import facts, faults
from datasets.layouts.archive import open_archive
from datasets.layouts.boxes import BOX_LAYOUTS, BoxName
from datasets.layouts.listing import Listing
from datasets.loading.store import read_samples
from datasets.media.decode import decode
from datasets.media.image_header import read_header
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index, split_of
from datasets.splits import HeldOut

NAMELESS = b'{"images": [{"id": 1}], "annotations": [], "categories": []}'
MISSING = b'{"images": [{"id": 1, "file_name": "7.png"}], "annotations": [], "categories": []}'
STRAY = b'{"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}], "categories": []}'
EVEN = Options(held_out=0, max_block=8 << 10, shard_size=16 << 10)  # several shards and blocks


def listing(layout: BoxName, root: Path, files: Files, fraction: float = 0.0) -> Listing:
    with open_archive(put(root, files)) as source:
        return BOX_LAYOUTS[layout](source, HeldOut(fraction))


def boxes_by_image(index: Index) -> dict[bytes, list[tuple[str, list[float]]]]:
    """By an image's bytes: class and corners in pixels of 64 x 48."""
    table = index.boxes
    assert table is not None
    found = {}
    for sample, data in enumerate(read_samples(index, np.arange(len(index)))):
        rows = table.rows(sample)
        corners = (table.corners[rows] * np.array([64, 48, 64, 48])).round(3).tolist()
        names = [index.about["classes"][i] for i in table.classes[rows]]
        assert isinstance(data, bytes)
        found[data] = list(zip(names, corners, strict=True))
    return found


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("voc", voc_files(9)), ("coco", coco_files(9)), ("boxes_csv", csv_files(9, fractions=False)),
        ("boxes_csv", csv_files(9, fractions=True)),
    ],
)  # fmt: skip
def test_every_form_leads_to_the_same_boxes(tmp_path: Path, layout: BoxName, files: Files) -> None:
    pack(layout, put(tmp_path / "images", files), str(tmp_path / "set"), EVEN)
    index = read_index(str(tmp_path / "set"))
    assert len(index.shards) > 1
    assert tuple(index.about["classes"]) == CLASSES
    assert index.about["size"] == [48, 64]
    assert not list(faults(index, read=True))
    expected = {encoded(image): [(n, list(map(float, c))) for n, *c in things] for image, things in map(scene, range(9))}
    assert boxes_by_image(index) == expected
    message = facts(index)["boxes"]
    assert sum(message[name] for name in CLASSES) == sum(len(own) for own in expected.values())
    assert message["images not annotated"] == 0


def test_splits_of_voc_follow_its_lists(tmp_path: Path) -> None:
    names = {"trainval": "000\n001\n002\n003\n", "train": "000\n001\n", "val": "002\n003\n"}
    lists = {f"ImageSets/Main/{name}.txt": text.encode() for name, text in names.items()}
    files = voc_files(6) | lists

    def splits(found: Listing) -> dict[str, str]:
        return {Path(sample.name).stem: sample.split for sample in found.samples}

    assert splits(listing("voc", tmp_path / "a", files)) == dict.fromkeys(("000", "001"), "train") | dict.fromkeys(
        ("002", "003"), "val"
    )
    tested = files | {"ImageSets/Main/test.txt": b"005\n", "ImageSets/Main/long_train.txt": b"000 1\n"}
    assert splits(listing("voc", tmp_path / "b", tested)) == dict.fromkeys(("000", "001", "002", "003"), "train") | {
        "005": "test"
    }
    with pytest.raises(InputError, match="a list names the image 77, which is not there"):
        listing("voc", tmp_path / "c", files | {"ImageSets/Main/test.txt": b"77\n"})
    without_train = {name: text for name, text in files.items() if not name.endswith("Main/train.txt")}
    assert splits(listing("voc", tmp_path / "d", without_train)) == dict.fromkeys(("000", "001"), "train") | dict.fromkeys(
        ("002", "003"), "val"
    )
    without_val = {name: text for name, text in files.items() if not name.endswith("Main/val.txt")}
    assert splits(listing("voc", tmp_path / "g", without_val)) == splits(listing("voc", tmp_path / "a", files))
    by_hash = splits(listing("voc", tmp_path / "e", voc_files(40), fraction=0.5))
    assert 8 < list(by_hash.values()).count("test") < 32
    first = "".join(f"{number:03}\n" for number in range(30)).encode()
    of_these = splits(listing("voc", tmp_path / "f", voc_files(40) | {"ImageSets/Main/trainval.txt": first}, fraction=0.5))
    assert of_these == {stem: split for stem, split in by_hash.items() if int(stem) < 30}


def test_coco_says_the_split_by_its_files(tmp_path: Path) -> None:
    found = listing("coco", tmp_path, coco_files(5))
    assert sorted(sample.split for sample in found.samples) == [*["train"] * 4, "val"]


def test_what_cannot_be_a_box_is_left_out_by_name(tmp_path: Path) -> None:
    things = [("a", 5, 5, 5, 9), ("a", 9, 9, 5, 12), ("b", 70, 5, 90, 9), ("b", -10, -10, 20, 20), ("c", 1, 1, 64, 49)]
    files = {"JPEGImages/1.png": encoded(scene(0)[0]), "Annotations/1.xml": xml(things)}
    pack("voc", put(tmp_path / "images", files), str(tmp_path / "set"), EVEN)
    index = read_index(str(tmp_path / "set"))
    assert index.about["classes"] == ["b", "c"]
    assert index.about["dropped"] == [
        "a box of a in JPEGImages/1.png (5, 5, 5, 9) has no area",
        "a box of a in JPEGImages/1.png (9, 9, 5, 12) has no area",
        "a box of b in JPEGImages/1.png (70, 5, 90, 9) lies outside the image, or is smaller than a thousandth of it",
    ]
    ((_, kept),) = boxes_by_image(index).items()
    assert kept == [("b", [0, 0, 20, 20]), ("c", [1, 1, 64, 48])]


def test_unannotated_images_are_distinguished_from_empty_ones(tmp_path: Path) -> None:
    picture = {f"JPEGImages/{n}.png": encoded(scene(n)[0]) for n in range(3)}
    empty = xml(
        [],
        extra="<object><name>d</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>",
    )
    files = picture | {"Annotations/0.xml": xml([]), "Annotations/1.xml": empty}
    found = {Path(s.name).stem: s.boxes for s in listing("voc", tmp_path / "a", files).samples}
    assert found["0"] == ()
    assert found["1"] is not None
    assert found["1"][0].ignored
    assert found["2"] is None
    pack("voc", put(tmp_path / "images", picture), str(tmp_path / "set"), EVEN)  # a target: images and nothing else
    table = read_index(str(tmp_path / "set")).boxes
    assert table is not None
    assert not table.annotated.any()
    lines = b"file,xmin,ymin,xmax,ymax,label\n0.png,,,,,\n1.png,1,1,9,9,x\n"
    csv = {f"i/{n}.png": encoded(scene(n)[0]) for n in range(3)} | {"b.csv": lines}
    by_csv = {Path(s.name).stem: s.boxes for s in listing("boxes_csv", tmp_path / "b", csv).samples}
    assert by_csv["0"] == ()
    assert by_csv["2"] is None


def test_odd_images_are_taken(tmp_path: Path) -> None:
    """RGBA, grey and 16-bit images become RGB of 8 bits, and their sizes are right."""
    image, things = scene(3)
    alpha = np.dstack([image[..., ::-1], np.full(image.shape[:2], 7, np.uint8)])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    deep = image[..., ::-1].astype(np.uint16) * 257
    odd = {name: cv2.imencode(".png", pixels)[1].tobytes() for name, pixels in (("a", alpha), ("g", grey), ("d", deep))}
    for name, expected in (("a", image), ("g", np.dstack([grey] * 3)), ("d", image)):
        np.testing.assert_array_equal(decode(odd[name]), expected)
        assert read_header(odd[name]).shown == (48, 64)
    assert read_header(encoded(image, ".jpg")).shown == (48, 64)
    files = {f"JPEGImages/{name}.png": data for name, data in odd.items()}
    files |= {f"Annotations/{name}.xml": xml(things) for name in odd}
    index = pack("voc", put(tmp_path / "images", files), str(tmp_path / "set"), EVEN)
    assert len(boxes_by_image(index)) == 3


def test_an_unreadable_image_is_named_by_packing(tmp_path: Path) -> None:
    files = voc_files(3) | {"JPEGImages/001.png": b"nothing"}
    with pytest.raises(InputError, match=r"cannot be decoded: JPEGImages/001.png"):
        pack("voc", put(tmp_path / "images", files), str(tmp_path / "set"), EVEN)
    index = pack("voc", tmp_path / "images", str(tmp_path / "set"), EVEN, allow_unreadable=1)
    assert len(boxes_by_image(index)) == len(index) == 2


def test_classes_are_renamed_and_joined(tmp_path: Path) -> None:
    source = put(tmp_path / "images", voc_files(4))
    index = pack("voc", source, str(tmp_path / "set"), Options(held_out=0, rename=("long=thing", "round=thing")))
    assert index.about["classes"] == ["thing"]
    assert read_index(str(tmp_path / "set")).about["rename"] == ["long=thing", "round=thing"]
    assert {name for own in boxes_by_image(index).values() for name, _ in own} == {"thing"}
    for wrong, message in ((("short=x",), "no class 'short' to rename"), (("long",), "renames nothing")):
        with pytest.raises(InputError, match=message):
            pack("voc", source, str(tmp_path / "other"), Options(rename=wrong))


@pytest.mark.parametrize(
    ("layout", "files", "message"),
    [
        ("voc", {"Annotations/1.xml": xml([], "1.jpg"), **voc_files(1)}, "an XML names 1.jpg, which is not there"),
        ("voc", {**voc_files(1), "Annotations/000.xml": b"<annotation>"}, "not an XML"),
        ("voc", {**voc_files(1), "Annotations/000.xml": b"<!DOCTYPE x><a/>"}, "an XML with a DTD"),
        ("voc", {**voc_files(1), "Annotations/000.xml": xml([("a", 1, 2, 3, "x")])}, "ymax is 'x', not a number"),  # type: ignore[list-item]
        ("voc", {**voc_files(1), "Annotations/000.xml": xml([("", 1, 2, 3, 4)])}, "an object without a name"),
        ("voc", {"readme.txt": b"x"}, "no images"),
        ("voc", {**voc_files(1), "JPEGImages/000.bmp": encoded(scene(5)[0])}, "two images of one name"),
        ("coco", {**voc_files(1), "a.json": STRAY}, "is of an image or a category that the file does not list"),
        ("coco", voc_files(1), "no JSON of boxes"),
        ("coco", {**voc_files(1), "a.json": b"{}"}, "not COCO's JSON"),
        ("coco", {**voc_files(1), "a.json": NAMELESS}, "file_name"),
        ("coco", {**voc_files(1), "a.json": MISSING}, "the image '7.png' is not there"),
        ("boxes_csv", voc_files(1), "no csv file"),
        ("boxes_csv", {"x.csv": b"file,box\n"}, "the columns are box, file"),
        ("boxes_csv", {"x.csv": b"file,xmin,ymin,xmax,ymax,label\n1.png,1,1,2,2,a\n"}, "the image '1.png' is not there"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_on_one_line(tmp_path: Path, layout: BoxName, files: Files, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        listing(layout, tmp_path, files)
    assert "\n" not in str(error.value)


def test_a_degraded_set_says_so_and_is_the_same_again(tmp_path: Path) -> None:
    source = put(tmp_path / "images", voc_files(5) | {"JPEGImages/9.jpg": encoded(scene(9)[0], ".jpg")})
    options = Options(held_out=0, degrade="fog", seed=3)
    one, two, plain = (
        pack("voc", source, str(tmp_path / name), chosen)
        for name, chosen in (("one", options), ("two", options), ("plain", Options(held_out=0, seed=3)))
    )
    assert read_index(one.url).about["degrade"] == "fog"
    assert not {"degrade", "degrade_strength"} & set(read_index(plain.url).about)
    assert "degrade_strength" not in read_index(one.url).about
    stronger = pack("voc", source, str(tmp_path / "more"), replace(options, degrade_strength=2.0))
    assert read_index(stronger.url).about["degrade_strength"] == 2
    assert stronger.checksum != one.checksum
    for wrong, message in (
        ({"degrade_strength": 2.0}, "nothing is degraded"),
        ({"degrade": "fog", "degrade_strength": 0.0}, "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            Options(**wrong)  # type: ignore[arg-type]
    assert one.checksum == two.checksum != plain.checksum
    bright = [np.mean([decode(data).mean() for data in boxes_by_image(index)]) for index in (one, plain)]
    assert bright[0] > bright[1] + 50
    assert (one.boxes.corners == plain.boxes.corners).all()  # type: ignore[union-attr]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")}
    assert pack("voc", source, str(tmp_path / "one"), options).url == one.url  # found to be done
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")} != {}


def test_the_blood_cells(tmp_path: Path) -> None:
    """The two sets that the job is measured on: their boxes, by our count of the files."""
    pack("voc", archive("bccd.tar"), str(tmp_path / "bccd"), Options())
    source = read_index(str(tmp_path / "bccd"))
    assert {name: len(split_of(source, name)) for name in source.splits} == {"train": 292, "test": 72}
    assert set(source.about["classes"]) == {"RBC", "WBC", "Platelets"}
    assert len(source.about["dropped"]) == 2
    pack("boxes_csv", archive("bloodcells.tar"), str(tmp_path / "cells"), Options(rename=("rbc=RBC", "wbc=WBC")))
    message = facts(read_index(str(tmp_path / "cells")))
    assert message["boxes"] == {"RBC": 2237 - 1, "WBC": 103, "images not annotated": 0}
    assert message["samples"] == 100
