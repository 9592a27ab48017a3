"""Layouts of images of identities: from an archive's names to samples with their split, identity and camera.

A layout is a function from an archive to a ``Listing``. It reads lists and manifests, and of images at most the headers.

Identity names become folder names in the shards, so `clean` restricts their characters. Market-1501 has two special names:
``-1`` is junk, which evaluation ignores, and ``0`` is a distractor, which matches nobody. Only `market1501` produces them.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, get_args

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.cuhk03_mat import cuhk03_mat
from datasets.layouts.held_out import draw_queries, evaluated, first_of_each_camera, hold_out, no_two_alike
from datasets.layouts.listed_files import listed_path
from datasets.layouts.listing import Listing, Sample, clean, images_in, root_above
from datasets.layouts.recordio import rec
from datasets.shards.index import DISTRACTOR, JUNK
from datasets.splits import HeldOut, checked_split, split_word
from datasets.text_files import csv_rows

MARKET = ("bounding_box_train", "query", "bounding_box_test")


def market1501(archive: Archive, _: HeldOut) -> Listing:
    """Read Market-1501: ``0002_c1s1_000451_03.jpg``; also sets in its form, such as CUHK03-NP (``0001_c1_1.png``)."""
    return _three_folders(archive, MARKET, r"(-1|\d+)_c(\d+)", "0002_c1s1_000451_03.jpg")


def dukemtmc(archive: Archive, _: HeldOut) -> Listing:
    """Read DukeMTMC-reID or Occluded-Duke: Market-1501's folders with ``0001_c2_f0046182.jpg``."""
    return _three_folders(archive, MARKET, r"(\d+)_c(\d+)_f\d+", "0001_c2_f0046182.jpg")


def veri776(archive: Archive, _: HeldOut) -> Listing:
    """Read VeRi-776: ``image_train``, ``image_query`` and ``image_test`` with ``0001_c001_00016450_0.jpg``."""
    found = _three_folders(archive, ("image_train", "image_query", "image_test"), r"(\d+)_c(\d+)_", "0001_c001_00016450_0.jpg")
    return replace(found, size=(256, 256))


def vehicleid(archive: Archive, _: HeldOut, test: int) -> Listing:
    """Read PKU VehicleID: ``image/`` and, of ``train_test_split/``, ``train_list.txt`` and ``test_list_<test>.txt``.

    A line is the name of an image without its ending, and its vehicle. The protocol draws the gallery, an image of each vehicle,
    ten times anew, so all images of the test list are in one split ``test``, without query and gallery.
    """
    root = root_above(archive, "train_test_split", "VehicleID has the folders image and train_test_split")
    images = {str(PurePosixPath(name).with_suffix("")): name for name in archive.sizes if name.startswith(f"{root}image/")}
    samples: list[Sample] = []
    for split, file in (("train", "train_list.txt"), ("test", f"test_list_{test}.txt")):
        listed = f"{root}train_test_split/{file}"
        for number, line in enumerate(archive.text(listed).splitlines(), 1):
            words, where = line.split(), f"line {number} of {archive.place(listed)}"
            if words and (len(words) != 2 or not words[1].isdigit()):
                raise InputError("a line that cannot be read", where, "lines like `0000001 1234` are expected: image, vehicle")
            if words and f"{root}image/{words[0]}" not in images:
                raise InputError(f"the image '{words[0]}' is not there", where, "is the download whole?")
            samples += [Sample(split, clean(words[1]), split, images[f"{root}image/{words[0]}"])] if words else []
    _check_apart(samples, archive.place(f"{root}train_test_split"))
    by, others = f"train_list.txt and test_list_{test}.txt", f"in neither train_list.txt nor test_list_{test}.txt"
    return Listing(samples, (256, 256), mirror=True, splits_by=by, others=others)


def last(archive: Archive, _: HeldOut) -> Listing:
    """Read LaST: ``train/<person>/``, ``test/query/``, ``test/gallery/<person>/``, as below ``val``; names begin ``7_``.

    Each part numbers its people on its own, so identities get the part's name before the number. Its images come from films, and
    its protocol counts each as a camera of its own: here queries are one camera and the gallery another, which leaves out as
    little. The val images are one split, in which cameras keep query and gallery apart.
    """
    above = root_above(archive, "gallery", "train, and query and gallery below test, are expected")
    root = above.removesuffix("test/").removesuffix("val/")
    samples = []
    for folder in ("train", "val/query", "val/gallery", "test/query", "test/gallery"):
        part, kind = folder.split("/") if "/" in folder else (folder, "")
        inside = [name for name in archive.sizes if name.startswith(f"{root}{folder}/")]
        if not inside and part != "val":
            raise InputError("an empty or missing folder", archive.place(root + folder), "is the download whole?")
        split = kind if part == "test" else part
        for name in images_in(archive, inside):
            parsed = re.match(r"(\d+)_", PurePosixPath(name).name)
            if parsed is None:
                expected = "a name that begins with the person's number and _ is expected"
                raise InputError("a name that says no person", archive.place(name), expected)
            samples.append(Sample(split, f"{part}-{int(parsed[1])}", kind or part, name))
    others = "in none of train, val and test"
    return Listing(samples, (256, 128), mirror=True, splits_by="the names of folders", others=others)


def msmt17(archive: Archive, _: HeldOut) -> Listing:
    """Read MSMT17, V1 (``train``, ``test``) or V2 (``mask_train_v2``, ``mask_test_v2``), by its lists.

    A line is ``0000/0000_000_01_0303morning_0015_0.jpg 0``; the third field is the camera. Train and test both number their
    people from 0, so identities get ``train-`` or ``test-`` before the number. The validation list holds training people: it is
    part of the paper's 32,621 training images.
    """
    root = root_above(archive, "list_train.txt", "MSMT17 has list_train.txt, list_query.txt and list_gallery.txt")
    v2 = any(name.startswith(f"{root}mask_train_v2/") for name in archive.sizes)
    train, test = ("mask_train_v2", "mask_test_v2") if v2 else ("train", "test")
    samples = []
    for part, split, folder in (
        ("train", "train", train), ("val", "train", train), ("query", "query", test), ("gallery", "gallery", test),
    ):  # fmt: skip
        list_name = f"{root}list_{part}.txt"
        if part == "val" and list_name not in archive.sizes:
            continue
        for number, line in enumerate(archive.text(list_name).splitlines(), 1):
            if not line.strip():
                continue
            parsed = re.fullmatch(r"(\S+/\d+_\d+_(\d+)_\S+)\s+(\d+)", line.strip())
            if parsed is None:
                expected = "lines like `0000/0000_000_01_0303morning_0015_0.jpg 0` are expected"
                raise InputError("a line that cannot be read", f"line {number} of {list_name} in {archive.where}", expected)
            name, camera, pid = f"{root}{folder}/{parsed[1]}", parsed[2], parsed[3]
            _listed(archive, name, list_name)
            samples.append(Sample(split, f"{'train' if split == 'train' else 'test'}-{pid}", f"c{camera}", name))
    return Listing(samples, (256, 128), mirror=True, splits_by="its lists")


def cuhk03(archive: Archive, _: HeldOut) -> Listing:
    """Read CUHK03 with a ``manifest.csv``: path, pid, cam and split (train, or val: people who are not in train).

    For the val people, the first image in each camera is a query and all others are the gallery, as in the CUHK03-NP protocol.
    If a camera has only one image of a person, it goes to the gallery, so that the queries of the other camera have a match.
    """
    manifest = root_above(archive, "manifest.csv", "CUHK03 needs its manifest.csv: path,pid,cam,split") + "manifest.csv"
    samples = []
    for line, row in csv_rows(archive.text(manifest), archive.place(manifest), ("path", "pid", "cam", "split")):
        name = manifest.removesuffix("manifest.csv") + listed_path(row["path"])
        _listed(archive, name, manifest)
        samples.append(Sample(checked_split(row["split"], line), clean(row["pid"]), row["cam"], name))
    _check_apart(samples, archive.place(manifest))
    by = f"the column split of {manifest}"
    return Listing(evaluated(samples, first_of_each_camera), (160, 64), mirror=True, splits_by=by)


def folders(archive: Archive, held_out: HeldOut) -> Listing:
    """Read one folder per identity, optionally below folders of splits: ``train``; ``test``, ``val``, or ``query``, ``gallery``.

    This is also the form of torchvision's ``ImageFolder``: deeper folders belong to the identity above them.
    Queries and gallery are drawn from ``test``, or ``val`` where there is no test; without such folders, from a fraction of the
    identities. Cameras are unknown: each split counts as one camera, so that the same-camera rule of evaluation removes nothing.
    """
    names = list(images_in(archive, list(archive.sizes)))
    begin = _inside(names)  # after the folders that contain everything
    depths: dict[str, int] = defaultdict(lambda: 99)
    for name in names:
        top = name[begin:].partition("/")[0]
        depths[top] = min(depths[top], 1 + name.count("/", begin))
    splits = {top: split_word(top) for top, depth in depths.items() if depth > 2 and split_word(top)}
    if splits and (set(splits) != set(depths) or "train" not in splits.values()):
        expected = "train, with test, val, or query and gallery, and nothing else beside them is expected"
        raise InputError(f"the folders {', '.join(sorted(depths)[:9])}", archive.where, expected)
    depth = 1 if splits else 0
    samples = []
    identities: dict[str, str] = {}
    for name in names:
        top, *inner = name[begin:].split("/", depth + 1)
        if len(inner) < depth + 1:
            raise InputError("an image outside any identity's folder", archive.place(name), "one folder per identity is expected")
        folder = inner[0] if splits else top
        if folder not in identities:
            identities[folder] = clean(folder)
        samples.append(Sample(splits.get(top, ""), identities[folder], "", name))
    no_two_alike(identities, archive)
    drawn = evaluated(samples, lambda test: draw_queries(test, held_out.seed)) if splits else hold_out(samples, held_out)
    by = "the names of folders" if splits else f"a fraction of {held_out.fraction:g} of the identities, drawn by the seed"
    return Listing([replace(s, camera=s.split) for s in drawn], (224, 224), mirror=True, splits_by=by)


def omniglot(archive: Archive, held_out: HeldOut) -> Listing:
    """Read Omniglot: ``<alphabet>/<character>/<class>_<drawer>.png``, anywhere in the archive.

    A character is an identity, its drawer a camera. Alphabets in several of its parts (Greek, Latin) are read once.
    """
    samples: dict[str, Sample] = {}
    twice: dict[str, str] = {}
    for name in images_in(archive, list(archive.sizes)):
        parts = PurePosixPath(name).parts[-3:]
        drawer = re.fullmatch(r"\d+_(\d+)", PurePosixPath(name).stem)
        if len(parts) < 3 or drawer is None:
            expected = "<alphabet>/<character>/<class>_<drawer>.png is expected, as in Greek/character01/0394_01.png"
            raise InputError("not a name of Omniglot's", archive.place(name), expected)
        sample = Sample("", clean(f"{parts[0]}_{parts[1]}"), f"drawer{drawer[1]}", name)
        if samples.setdefault("/".join(parts), sample) is not sample:
            twice[name] = "of an alphabet that another part of the set holds, too"
    no_two_alike({"_".join(key.split("/")[:2]) for key in samples}, archive)
    drawn = hold_out(list(samples.values()), held_out)
    by = f"a fraction of {held_out.fraction:g} of the characters, drawn by the seed"
    return Listing(drawn, (64, 64), mirror=False, splits_by=by, left_out=twice)


Name = Literal[
    "market1501", "dukemtmc", "msmt17", "cuhk03", "cuhk03_detected", "cuhk03_labeled", "last", "veri776",
    "vehicleid800", "vehicleid1600", "vehicleid2400", "folders", "omniglot", "rec",
]  # fmt: skip
FUNCTIONS: tuple[Callable[[Archive, HeldOut], Listing], ...] = (
    market1501, dukemtmc, msmt17, cuhk03, partial(cuhk03_mat, boxes="detected"), partial(cuhk03_mat, boxes="labeled"),
    last, veri776, *(partial(vehicleid, test=count) for count in (800, 1600, 2400)), folders, omniglot, rec,
)  # fmt: skip
LAYOUTS: dict[Name, Callable[[Archive, HeldOut], Listing]] = dict(zip(get_args(Name), FUNCTIONS, strict=True))


def _three_folders(archive: Archive, folders: tuple[str, str, str], pattern: str, example: str) -> Listing:
    """Read folders of training, query and gallery images whose names begin with person and camera, by a pattern."""
    all_three = f"{folders[0]}, {folders[1]} and {folders[2]}"
    root = root_above(archive, folders[0], f"{all_three} are expected")
    samples, left_out = [], {}
    for folder, split in zip(folders, ("train", "query", "gallery"), strict=True):
        inside = [name for name in archive.sizes if name.startswith(f"{root}{folder}/")]
        if not inside:
            raise InputError("an empty or missing folder", archive.place(root + folder), "is the download whole?")
        for name in images_in(archive, inside):
            parsed = re.match(pattern, PurePosixPath(name).name)
            if parsed is None:
                expected = f"a name like {example} is expected"
                raise InputError("a name that says no person and camera", archive.place(name), expected)
            identity = DISTRACTOR if parsed[1] != JUNK and int(parsed[1]) == 0 else parsed[1]
            if split != "train" or identity not in (JUNK, DISTRACTOR):
                samples.append(Sample(split, identity, f"c{parsed[2]}", name))
            else:
                left_out[name] = "junk and distractors among the training images"
    others = f"in none of {all_three}"
    return Listing(samples, (256, 128), mirror=True, splits_by="the names of folders", left_out=left_out, others=others)


def _check_apart(samples: list[Sample], where: str) -> None:
    """Raise InputError for an identity that is in train and in another split."""
    train, test = ({s.identity for s in samples if (s.split == "train") == trained} for trained in (True, False))
    if both := sorted(train & test):
        other = next(s.split for s in samples if s.identity == both[0] and s.split != "train")
        what = f"identity {both[0]} is in train and in {other}"
        raise InputError(what, where, "give different identities different names")


def _inside(names: list[str]) -> int:
    """Return the length of the path of folders that contain all of these sorted names, but for an identity's folder."""
    if not names:
        return 0
    around = posixpath.commonprefix([names[0], names[-1]]).split("/")[:-1]
    kept = min(len(around), min(name.count("/") for name in names) - 1)
    return sum(len(folder) + 1 for folder in around[: max(kept, 0)])


def _listed(archive: Archive, name: str, list_name: str) -> None:
    if name not in archive.sizes:
        raise InputError(f"{list_name} names an image that is not there", archive.place(name), "is the download whole?")
