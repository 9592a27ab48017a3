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
from pathlib import PurePosixPath
from typing import Literal, get_args

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.held_out import draw_queries, evaluated, first_of_each_camera, hold_out, no_two_alike
from datasets.layouts.listed_files import listed_path
from datasets.layouts.listing import Listing, Sample, clean, images_in, root_above
from datasets.layouts.recordio import rec
from datasets.shards.index import DISTRACTOR, JUNK
from datasets.splits import HeldOut, checked_split, split_word
from datasets.text_files import csv_rows


def market1501(archive: Archive, _: HeldOut) -> Listing:
    """Read Market-1501: ``0002_c1s1_000451_03.jpg``; also sets in its form, such as CUHK03-NP (``0001_c1_1.png``)."""
    return _three_folders(archive, r"(-1|\d+)_c(\d+)", "0002_c1s1_000451_03.jpg")


def dukemtmc(archive: Archive, _: HeldOut) -> Listing:
    """Read DukeMTMC-reID: Market-1501's folders with ``0001_c2_f0046182.jpg``."""
    return _three_folders(archive, r"(\d+)_c(\d+)_f\d+", "0001_c2_f0046182.jpg")


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
    train, test = ({s.identity for s in samples if (s.split == "train") == trained} for trained in (True, False))
    if both := sorted(train & test):
        other = next(s.split for s in samples if s.identity == both[0] and s.split != "train")
        what = f"person {both[0]} is in train and in {other}"
        raise InputError(what, archive.place(manifest), "give different people different names")
    by = f"the column split of {manifest}"
    return Listing(evaluated(samples, first_of_each_camera), (160, 64), mirror=True, splits_by=by)


def folders(archive: Archive, held_out: HeldOut) -> Listing:
    """Read one folder per identity, optionally below folders of splits: ``train``; ``test``, ``val``, or ``query``, ``gallery``.

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
        samples.append(Sample(splits.get(top, ""), identities.setdefault(folder, clean(folder)), "", name))
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


Name = Literal["market1501", "dukemtmc", "msmt17", "cuhk03", "folders", "omniglot", "rec"]
LAYOUTS: dict[Name, Callable[[Archive, HeldOut], Listing]] = dict(
    zip(get_args(Name), (market1501, dukemtmc, msmt17, cuhk03, folders, omniglot, rec), strict=True)
)


def _three_folders(archive: Archive, pattern: str, example: str) -> Listing:
    root = root_above(archive, "bounding_box_train", "bounding_box_train, query and bounding_box_test are expected")
    samples, left_out = [], {}
    for folder, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
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
    others = "in none of bounding_box_train, query and bounding_box_test"
    return Listing(samples, (256, 128), mirror=True, splits_by="the names of folders", left_out=left_out, others=others)


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
