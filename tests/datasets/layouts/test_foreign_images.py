"""Unusual images and lists: nothing is invented, nothing is dropped silently, and errors name the file on one line."""

import io
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from boxdata import encoded, scene, xml
from headers import huge
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Files, jpeg, put, tarred
from PIL import Image as Pillow

from datasets.errors import InputError
from datasets.inspect import faults
from datasets.layouts.archive import NOWHERE, open_archive
from datasets.layouts.boxes import BOX_LAYOUTS
from datasets.layouts.faces import FACE_LAYOUTS
from datasets.layouts.identities import LAYOUTS
from datasets.layouts.listing import Listing
from datasets.loading.store import read_samples
from datasets.media.decode import decode
from datasets.pack import Layout, Options, pack
from datasets.shards.index import read_index
from datasets.skipped_files import LITTER
from datasets.splits import HeldOut
from trainers.engine.inputs import InputFile, read_image

ROOT = Path(__file__).parents[3]
EVERY = {**LAYOUTS, **FACE_LAYOUTS, **BOX_LAYOUTS}
J = jpeg(1, 60, 80)
MALE = b"Male Smiling Eyeglasses Attractive Blurry Young\n"
LINES = [b"%06d.jpg 1 -1 -1 1 -1 1\n" % i for i in range(1, 7)]
FACES: Files = {f"img_align_celeba/{i:06}.jpg": jpeg(i) for i in range(1, 7)}


def listing(layout: Layout, source: Path, fraction: float = 0.25) -> Listing:
    with open_archive(source) as opened:
        return EVERY[layout](opened, HeldOut(fraction))


def splits(found: Listing) -> dict[str, int]:
    return dict(Counter(sample.split for sample in found.samples))


def packed(layout: str, source: Path, folder: Path, *more: str, memory: int = 0) -> "subprocess.CompletedProcess[str]":
    """The command, as people run it, in so many bytes of memory."""
    command = [sys.executable, "-m", "datasets.pack", layout, str(source), str(folder), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))) if memory else None
    return subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=limit)


def coco(names: dict[int, str], ids: dict[int, int] | None = None, **image: object) -> bytes:
    ids = ids or {k: k for k in names}
    return json.dumps({
        "images": [{"id": ids[k], "file_name": n, **image} for k, n in names.items()],
        "annotations": [{"id": k, "image_id": ids[k], "category_id": 1, "bbox": [5, 5, 20, 20]} for k in names],
        "categories": [{"id": 1, "name": "cell"}],
    }).encode()  # fmt: skip


def voc(*corners: int, size: tuple[int, int] | None = None, head: str = "") -> bytes:
    data = xml([("cell", *(corners or (5, 5, 40, 40)))])  # type: ignore[arg-type]
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>".encode() if size else b""
    return head.encode() + data.replace(b"<annotation>", b"<annotation>" + said)


def turned(orientation: int, size: tuple[int, int] = (80, 60)) -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Pillow.new("RGB", size, (90, 30, 30)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


# Splits


def test_lists_of_several_years_add_up(tmp_path: Path) -> None:
    files: Files = {}
    for year, lists in {"VOC2007": {"trainval": "a b", "test": "c"}, "VOC2012": {"trainval": "d e"}}.items():
        for name, keys in lists.items():
            files[f"{year}/ImageSets/Main/{name}.txt"] = "\n".join(keys.split()).encode()
            for key in keys.split():
                files |= {f"{year}/JPEGImages/{key}.jpg": J, f"{year}/Annotations/{key}.xml": voc()}
    found = listing("voc", put(tmp_path / "years", files))
    assert splits(found) == {"train": 4, "test": 1}
    assert "VOC2012/ImageSets/Main/trainval.txt" in found.splits_by
    alike = {name.replace("/d.", "/a."): data for name, data in files.items()}  # one name in both years
    alike["VOC2012/ImageSets/Main/trainval.txt"] = b"a\ne\n"
    again = listing("voc", put(tmp_path / "alike", alike))
    assert splits(again) == {"train": 4, "test": 1}
    both = put(tmp_path / "both", files | {"VOC2007/ImageSets/Main/test.txt": b"a\nc\n"})
    with pytest.raises(InputError, match=r"VOC2007/JPEGImages/a\.jpg is in lists of test and of others"):
        listing("voc", both)


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Train", "Validation", "TESTING")])
def test_the_folder_of_a_json_says_the_split(names: tuple[str, ...], tmp_path: Path) -> None:
    files: Files = {}
    for k, split in enumerate(names):
        own = {4 * k + i: f"{4 * k + i}.jpg" for i in range(4)}
        files[f"{split}/_annotations_latest.coco.json"] = coco(own)  # "latest" is no test
        files |= {f"{split}/{name}": J for name in own.values()}
    assert splits(listing("coco", put(tmp_path, files))) == {"train": 4, "val": 4, "test": 4}


def test_equal_names_in_folders_of_splits_are_different_images(tmp_path: Path) -> None:
    files = {f"{split}/0001.jpg": jpeg(k, 60, 80) for k, split in enumerate(("train", "val"))}
    files |= {f"instances_{split}.json": coco({1: "0001.jpg"}) for split in ("train", "val")}
    found = listing("coco", put(tmp_path, files))
    assert {(s.split, s.name) for s in found.samples} == {("train", "train/0001.jpg"), ("val", "val/0001.jpg")}
    assert all(s.boxes and len(s.boxes) == 1 for s in found.samples)


def test_folders_of_splits_in_any_case(tmp_path: Path) -> None:
    people = {f"photos/{split}/{who}/{i}.jpg": J for split in ("Train", "Val") for who in "abc" for i in (0, 1)}
    found = listing("folders", put(tmp_path / "two", people))
    assert splits(found) == {"train": 6, "query": 3, "gallery": 3}
    assert {s.identity for s in found.samples} == {"a", "b", "c"}
    three = people | {f"photos/testing/{who}/{i}.jpg": J for who in "de" for i in (0, 1)}
    assert splits(listing("folders", put(tmp_path / "three", three))) == {"train": 6, "val": 6, "query": 2, "gallery": 2}
    named = {f"{who}/{i}.jpg": J for who in ("Dev", "Val", "Maria", "Test") for i in (0, 1)}  # people, not splits
    assert len({s.identity for s in listing("folders", put(tmp_path / "named", named)).samples}) == 4


def test_folders_of_splits_of_faces_and_boxes(tmp_path: Path) -> None:
    masks = {f"{split}/{mask}/{i}.jpg": J for split in ("Train", "Test") for mask in ("WithMask", "WithoutMask") for i in (0, 1)}
    found = listing("mask_folders", put(tmp_path / "masks", masks))
    assert splits(found) == {"train": 4, "test": 4}
    assert sum(s.labels["mask"] for s in found.samples) == 4
    roboflow: Files = {}
    for split in ("train", "valid"):
        roboflow[f"{split}/_annotations.csv"] = b"filename,width,height,class,xmin,ymin,xmax,ymax\n0.jpg,80,60,a,1,1,30,30\n"
        roboflow[f"{split}/0.jpg"] = J
    assert splits(listing("boxes_csv", put(tmp_path / "csv", roboflow))) == {"train": 1, "val": 1}
    by_column = {"0.jpg": J, "1.jpg": J, "l.csv": b"file,age,split\n0.jpg,30,Training\n1.jpg,40,dev\n"}
    assert splits(listing("attributes_csv", put(tmp_path / "column", by_column))) == {"train": 1, "val": 1}


def test_celebas_partition_is_the_split(tmp_path: Path) -> None:
    attributes = b"6\n" + MALE + b"".join(LINES)
    partition = b"".join(b"%06d.jpg %d\n" % (i, (i - 1) // 2) for i in range(1, 7))
    files = FACES | {"list_attr_celeba.txt": attributes, "list_eval_partition.txt": partition}
    assert splits(listing("celeba", put(tmp_path / "txt", files))) == {"train": 2, "val": 2, "test": 2}
    as_csv = b"image_id,partition\n" + partition.replace(b" ", b",")
    files = FACES | {"list_attr_celeba.txt": attributes, "list_eval_partition.csv": as_csv}
    assert splits(listing("celeba", put(tmp_path / "csv", files))) == {"train": 2, "val": 2, "test": 2}
    for wrong, what in ((partition[:-15], "does not name 000006"), (partition.replace(b"jpg 1", b"jpg 3"), "000003.jpg is '3'")):
        cut = put(tmp_path / what, files | {"list_eval_partition.csv": b"image_id,partition\n" + wrong.replace(b" ", b",")})
        with pytest.raises(InputError, match=what):
            listing("celeba", cut)


def test_a_list_shorter_than_its_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 lines where its first says 12: list_attr_celeba\.txt"):
        listing("celeba", put(tmp_path, FACES | {"list_attr_celeba.txt": b"12\n" + MALE + b"".join(LINES[:5])}))


# What counts once, and what is ambiguous


def test_a_box_that_two_files_have_counts_once(tmp_path: Path) -> None:
    images = {f"val/{i}.jpg": J for i in range(4)}
    lists = {"instances_val.json": coco({i: f"{i}.jpg" for i in range(4)})}
    lists |= {"instances_minival.json": coco({0: "0.jpg", 1: "1.jpg"})}
    found = listing("coco", put(tmp_path / "a", images | lists))
    assert [len(s.boxes or ()) for s in found.samples] == [1] * 4
    assert splits(found) == {"val": 4}
    assert found.notes == ("instances_minival.json is a subset of the other files: its 2 boxes are in them, too",)
    everywhere = json.loads(lists["instances_val.json"])
    for annotation in everywhere["annotations"]:  # all ids alike, which some tools write: other boxes stay
        annotation["id"] = 0
    everywhere["annotations"].append({**everywhere["annotations"][0], "bbox": [30, 30, 9, 9]})
    everywhere["annotations"][0]["id"] = [0]  # which nobody needs
    again = listing("coco", put(tmp_path / "b", images | {"instances_val.json": json.dumps(everywhere).encode()}))
    assert sorted(len(s.boxes or ()) for s in again.samples) == [1, 1, 1, 2]


def test_ids_and_splits_that_contradict_are_refused(tmp_path: Path) -> None:
    images = {f"{i}.jpg": J for i in range(3)}
    same_id = {"instances_train.json": coco({i: f"{i}.jpg" for i in range(3)}, {0: 0, 1: 1, 2: 1})}
    with pytest.raises(InputError, match=r"two images of the id 1: 1\.jpg and 2\.jpg: instances_train\.json"):
        listing("coco", put(tmp_path / "a", images | same_id))
    lists = {f"instances_{split}.json": coco({0: "0.jpg"}) for split in ("train", "val")}
    with pytest.raises(InputError, match=r"the image 0\.jpg is in train by instances_train\.json and in val"):
        listing("coco", put(tmp_path / "b", images | lists))


# Pictures as a viewer shows them


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("form", ["voc", "coco", "boxes_csv"])
def test_boxes_follow_the_picture(form: Layout, orientation: int, tmp_path: Path) -> None:
    """A picture that is stored lying and shown upright, with labels of either: the box lies on the same thing."""
    data = turned(orientation)
    shown_size = (60, 80) if orientation in (6, 8) else (80, 60)
    stored_box = {1: (5, 10, 20, 30), 3: (60, 30, 75, 50), 6: (10, 40, 30, 55), 8: (50, 5, 70, 20)}[orientation]
    for of, size, box in (("shown", shown_size, (5, 10, 20, 30)), ("stored", (80, 60), stored_box)):
        if of == "stored" and orientation == 3:
            continue  # unknowable: labels are taken for drawn on what was shown
        left, top, right, bottom = box
        lines = f"file,width,height,label,xmin,ymin,xmax,ymax\n0.jpg,{size[0]},{size[1]},cell,{left},{top},{right},{bottom}\n"
        one = json.loads(coco({0: "0.jpg"}, width=size[0], height=size[1]))
        one["annotations"][0]["bbox"] = [left, top, right - left, bottom - top]
        forms: dict[str, Files] = {"voc": {"0.xml": voc(*box, size=size)}, "coco": {"a.json": json.dumps(one).encode()}}
        label = {**forms, "boxes_csv": {"l.csv": lines.encode()}}[form]
        found = listing(form, put(tmp_path / of, {"0.jpg": data} | label), 0.0)
        (sample,) = found.samples
        assert sample.boxes is not None
        width, height = shown_size
        assert np.array(sample.boxes[0][:4]) * [width, height, width, height] == pytest.approx([5, 10, 20, 30])
        assert found.size == (height, width)
    with pytest.raises(InputError, match="the labels are of an image of 7x5 pixels"):
        listing("voc", put(tmp_path / "wrong", {"0.jpg": data, "0.xml": voc(size=(7, 5))}))


def test_a_turned_picture_is_packed_read_and_predicted_upright(tmp_path: Path) -> None:
    source = put(tmp_path / "in", {"0.jpg": turned(6), "0.xml": voc(size=(60, 80))})
    index = pack("voc", source, str(tmp_path / "set"), Options(held_out=0))
    assert index.about["size"] == [80, 60]
    (data,) = read_samples(index, np.arange(1))
    assert isinstance(data, bytes)
    assert decode(data).shape == read_image(InputFile("0.jpg", tmp_path / "in" / "0.jpg")).shape == (80, 60, 3)
    degraded = pack("voc", source, str(tmp_path / "fog"), Options(held_out=0, degrade="fog"))
    assert degraded.about["size"] == [80, 60]
    assert (degraded.boxes.corners == index.boxes.corners).all()  # type: ignore[union-attr]


def test_masks_are_no_images(tmp_path: Path) -> None:
    files = {f"JPEGImages/{name}.jpg": J for name in "de"} | {f"Annotations/{name}.xml": voc() for name in "de"}
    masks = {f"{folder}/d.png": encoded(scene(0)[0]) for folder in ("SegmentationClass", "SegmentationObject")}
    found = packed("voc", put(tmp_path / "in", files | masks), tmp_path / "set")
    assert found.returncode == 0
    assert "left out 2, outside JPEGImages: SegmentationClass/d.png, SegmentationObject/d.png" in found.stderr
    assert "6 files seen: 2 images packed, 2 left out, 2 lists and other texts" in found.stderr
    assert re.search(r"splits: .*; by a hash of each file's name, a fraction of 0\.25 for test", found.stderr)


# Names


def linked(root: Path) -> Path:
    """Market-1501 with a link to a file, one to a folder's, one to nothing and one that leads back up."""
    put(root, {f"{f}/{p:04}_c1_1.jpg": jpeg(p) for f in ("bounding_box_train", "query", "more") for p in (1, 2)})
    (root / "bounding_box_test").symlink_to("more")
    (root / "bounding_box_train/0001_c2_1.jpg").symlink_to("0001_c1_1.jpg")
    (root / "query/0003_c1_1.jpg").symlink_to("gone.jpg")
    (root / "query/up").symlink_to("..")
    return root


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "zip"])
def test_links_are_followed_or_named(form: str, tmp_path: Path) -> None:
    root = linked(tmp_path / "market")
    source = tmp_path / f"market.{form}" if form != "folder" else root
    if form.startswith("tar"):
        with tarfile.open(source, "w:gz" if form.endswith("gz") else "w") as archive:
            archive.add(root, "market")
    elif form == "zip":
        with zipfile.ZipFile(source, "w") as zipped:
            for path in sorted(root.rglob("*")):
                if path.is_symlink():
                    info = zipfile.ZipInfo(f"market/{path.relative_to(root)}")
                    info.external_attr = (stat.S_IFLNK | 0o777) << 16
                    zipped.writestr(info, str(path.readlink()))
                elif path.is_file():
                    zipped.write(path, f"market/{path.relative_to(root)}")
    with open_archive(source) as opened:
        found = EVERY["market1501"](opened, HeldOut())
        assert splits(found) == {"train": 3, "query": 2, "gallery": 2}
        assert {name: len(opened.read(name)) for name in opened.sizes} == opened.sizes
        assert {rule: [Path(name).name for name in names] for rule, names in opened.left_out.items()} == {
            NOWHERE: ["0003_c1_1.jpg"], "links that lead back up": ["up"],
        }  # fmt: skip


def test_what_archives_hold_besides(tmp_path: Path) -> None:
    """Sparse members are read with their holes; what leads out, stands twice or is litter is left out by rule."""
    odd = {"../out.txt": b"x", "/abs.txt": b"x", "._a.txt": b"x", "a.txt ": b"space"}
    path = tarred(tmp_path / "a.tar", {"a.txt": b"first"} | odd)
    (tmp_path / "holes").write_bytes(bytes(1 << 20) + b"end" + bytes(1 << 20))
    subprocess.run(["fallocate", "--dig-holes", "holes"], cwd=tmp_path, check=False)
    subprocess.run(["tar", "--sparse", "-rf", "a.tar", "holes"], cwd=tmp_path, check=True)
    with tarfile.open(path, "a") as archive:
        again = tarfile.TarInfo("./a.txt")
        again.size = 6
        archive.addfile(again, io.BytesIO(b"second"))
        pipe = tarfile.TarInfo("pipe")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    with open_archive(path) as source:
        assert source.read("a.txt") == b"second"
        assert source.read("a.txt ") == b"space"
        assert source.read("holes") == (tmp_path / "holes").read_bytes()
        assert source.left_out == {
            "names that lead out of the archive": ("../out.txt", "/abs.txt"),
            "replaced by a later file of the same name": ("a.txt",),
            "neither files nor folders": ("pipe",),
            LITTER: ("._a.txt",),
        }


def test_a_zip_with_backslashes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for i in range(2):
            entry = zipfile.ZipInfo("x")
            entry.filename = f"set\\images\\{i}.jpg"
            archive.writestr(entry, J)
        archive.writestr("instances.json", coco({0: ".\\images\\0.jpg", 1: "./images/1.jpg"}))
    assert sorted(s.name for s in listing("coco", tmp_path / "w.zip").samples) == ["set/images/0.jpg", "set/images/1.jpg"]


@pytest.mark.parametrize("layout", ["voc", "folders"])
def test_names_in_any_bytes(layout: str, tmp_path: Path) -> None:
    folder = "" if layout == "voc" else "one/"
    root = put(tmp_path / "in", {f"{folder}{i}.jpg": J for i in range(3)} | {"two/4.jpg": J, "two/5.jpg": J})
    for name in (b"caf\xe9.jpg", b"bad\xff.jpg", "名\n前.jpg".encode(), b"\x1b[31m.jpg"):
        (root / os.fsdecode(folder.encode() + name)).write_bytes(b"no image" if name.startswith(b"bad") else J)
    first = packed(layout, root, tmp_path / "set")
    assert (first.returncode, len(first.stderr.splitlines())) == (2, 1)
    assert f"{folder}bad\\xff.jpg (not a JPEG" in first.stderr
    assert packed(layout, root, tmp_path / "set", "--allow-unreadable", "1").returncode == 0
    index = read_index(str(tmp_path / "set"))
    assert len(index) == 8
    assert not list(faults(index, read=True))
    assert list(index.about["unreadable"]) == [f"{folder}bad\\xff.jpg"]


def test_names_with_spaces_in_lists_of_voc(tmp_path: Path) -> None:
    files = {f"JPEGImages/{n}.jpg": J for n in ("a b", "a", "c 1")} | {f"Annotations/{n}.xml": voc() for n in ("a b", "a", "c 1")}
    lists = {"ImageSets/Main/train.txt": b"a b\nc 1 -1\n", "ImageSets/Main/val.txt": b"a 1\n"}
    found = listing("voc", put(tmp_path, files | lists))
    assert {s.name: s.split for s in found.samples} == {
        "JPEGImages/a b.jpg": "train", "JPEGImages/c 1.jpg": "train", "JPEGImages/a.jpg": "val",
    }  # fmt: skip


# Sizes and broken texts


def test_a_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {"a/0.jpg": J, "a/1.jpg": huge("JPEG", 65500), "b/0.jpg": J, "b/1.png": huge("PNG", 30000)})
    ended = packed("folders", root, tmp_path / "set", memory=4_000_000_000)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert re.search(r"(a/1\.jpg \(an image of 65500x65500|b/1\.png \(an image of 30000x30000) pixels; at most", ended.stderr)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("layout", "files", "what"),
    [
        ("coco", {"a.json": DEEP}, "nested too deep"),
        ("coco", {"a.json": b"[1]"}, "no list 'images'"),
        ("coco", {"a.json": b'{"images": {}, "annotations": [], "categories": []}'}, "no list 'images'"),
        ("coco", {"a.json": coco({0: "0.jpg"}).replace(b'"id": 0', b'"id": [0]')}, "entry 0 of images has no id"),
        ("coco", {"a.json": coco({0: "0.jpg"}).replace(b"[5, 5, 20, 20]", b"[5, [5], 20, 20]")}, r"bbox is \[5\], not a number"),
        ("coco", {"a.json": coco({0: "0.jpg"}).replace(b"[5, 5, 20, 20]", b"[5, 5, true, 20]")}, "bbox is True, not a number"),
        ("coco", {"a.json": coco({0: "0.jpg"}).replace(b'"0.jpg"', b"7")}, "entry 0 of images has no file_name"),
        ("coco", {"a.json": coco({0: "0.jpg"}).replace(b'"0.jpg"', b'"\\ud800.jpg"')}, r"'\\ud800\.jpg' is not there"),
        ("coco", {"a.json": coco({0: "0.jpg"}, width="wide", height=60)}, "a side of the image is 'wide'"),
        ("boxes_csv", {"a.csv": b"file,label,xmin,ymin,xmax,ymax\n0.jpg,a,1,1,2\n"}, "fewer cells than columns: line 2 of a.csv"),
        ("boxes_csv", {"a.csv": b"file,label,xmin,ymin,xmax,ymax\n0.jpg,a," + b"9" * 200_000 + b",1,2,2\n"}, "not a csv"),
        ("boxes_csv", {"a.csv": b"file,label,xmin,ymin,xmax,ymax\n0.jpg,a,\xff,1,2,2\n"}, "not a text in UTF-8"),
        ("voc", {"0.xml": b"<a>" * 100_000}, "not an XML"),
        ("voc", {"0.xml": voc(head='<?xml version="1.0" encoding="klingon"?>')}, "not a text in klingon, which it declares"),
        ("voc", {"0.xml": voc().replace(b"<xmin>5", b"<xmin>five")}, "xmin is 'five', not a number"),
        ("cuhk03", {"manifest.csv": b"path,pid,cam,split\n0.jpg,1,a\n"}, "fewer cells than columns: line 2"),
    ],
)  # fmt: skip
def test_a_broken_text_is_one_line(layout: Layout, files: Files, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as error:
        listing(layout, put(tmp_path, {"0.jpg": J} | files))
    assert "\n" not in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "utf-16", "iso-8859-1", "Shift_JIS"])
def test_an_xml_in_the_encoding_that_it_declares(encoding: str, tmp_path: Path) -> None:
    name = "caf\xe9" if encoding == "iso-8859-1" else "\u7d30\u80de" if encoding == "Shift_JIS" else "\u7ec6\u80de"
    data = voc(head=f'<?xml version="1.0" encoding="{encoding}"?>\n').decode().replace(">cell<", f">{name}<").encode(encoding)
    assert listing("voc", put(tmp_path, {"0.jpg": J, "0.xml": data})).classes == (name,)


# Fuzzing: whatever a set's texts hold, a layout lists it or says in one line what is wrong

CELEBA = b"2\n" + MALE + b"0.jpg 1 1 1 1 1 1\n1.jpg 1 1 1 1 1 -1\n"
TEXTS: dict[Layout, Files] = {
    "voc": {"ImageSets/Main/train.txt": b"0\n", "ImageSets/Main/val.txt": b"1\n", "Annotations/0.xml": voc(size=(80, 60))},
    "coco": {
        "instances_train.json": coco({0: "JPEGImages/0.jpg"}),
        "instances_val.json": coco({1: "1.jpg"}, width=80, height=60),
    },
    "boxes_csv": {"l.csv": b"file,label,xmin,ymin,xmax,ymax,split\n0.jpg,a,1,1,2,2,train\n1.jpg,b,1,1,2,2,val\n"},
    "celeba": {"list_attr_celeba.txt": CELEBA, "list_eval_partition.txt": b"0.jpg 0\n1.jpg 2\n"},
    "attributes_csv": {"l.csv": b"file,age,yaw,split\n0.jpg,3,,train\n1.jpg,nan,-9,test\n"},
    "cuhk03": {"manifest.csv": b"path,pid,cam,split\nJPEGImages/0.jpg,1,a,train\nJPEGImages/1.jpg,2,b,val\n"},
}
PIECES = [b"", b"\0", b"\n", b",", b"[", b"{", b"<", b">", b"null", b"-1", b"1e999", b"\xff", b"../", b"nan", b" ", b"\x22"]
CHANGE = st.tuples(st.integers(0, 9), st.integers(0, 10**4), st.integers(0, 40), st.sampled_from(PIECES))


@pytest.mark.slow
@pytest.mark.parametrize("layout", TEXTS)
@settings(max_examples=400)
@given(changes=st.lists(CHANGE, max_size=4))
def test_mutated_texts_are_listed_or_refused(
    layout: Layout, changes: list[tuple[int, int, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = dict(TEXTS[layout])
    for which, at, length, piece in changes:
        name = sorted(files)[which % len(files)]
        at %= len(files[name]) + 1
        files[name] = files[name][:at] + piece + files[name][at + length :]
    root = put(tmp_path_factory.mktemp("fuzz"), {f"JPEGImages/{i}.jpg": J for i in range(2)} | files)
    names, said = set[str](), ""
    try:
        names = {sample.name for sample in listing(layout, root).samples}
    except InputError as error:
        said = str(error)
    assert names <= {f"JPEGImages/{i}.jpg" for i in range(2)}
    assert said.isprintable()  # on one line


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    """Whatever lies in a set: the summary's numbers add up to the files that are there."""
    files = {f"bounding_box_train/000{p}_c1_1.jpg": J for p in (1, 2)} | {"bounding_box_train/-1_c1_1.jpg": J}
    files |= {f"{folder}/0003_c{c}_1.jpg": J for folder in ("query", "bounding_box_test") for c in (1, 2)}
    files |= {"gt_bbox/0001_c1_1.jpg": J, "readme.txt": b"x", "Thumbs.db": b"x", "query/.DS_Store": b"x", "gt.mat": b"x"}
    printed = packed("market1501", put(tmp_path / "in", files), tmp_path / "set").stderr
    assert f"{len(files)} files seen: 6 images packed, 4 left out, 2 lists and other texts" in printed
    for line in (
        "left out 1, junk and distractors among the training images: bounding_box_train/-1_c1_1.jpg",
        "left out 1, in none of bounding_box_train, query and bounding_box_test: gt_bbox/0001_c1_1.jpg",
        f"left out 2, {LITTER}: Thumbs.db, query/.DS_Store",
        "splits: 2 train, 2 query, 2 gallery; by the names of folders",
    ):
        assert line in printed
