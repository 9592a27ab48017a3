"""How each data set lays out its files: from a source's names to samples with their split, identity and camera.

A layout is a function from a source to a ``Listing``; it reads lists and manifests, of images their headers at most.

Identity names become folder names in the shards, so they are cleaned (``clean``). Two names have a meaning, Market-1501's:
``-1`` is junk, left out of evaluation, and ``0`` a distractor, who matches nobody; only `market1501` gives them.
"""

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal, TypeVar, get_args
from zlib import crc32

import numpy as np

from datasets.boxes import Box
from datasets.decode import IMAGES
from datasets.errors import InputError
from datasets.index import DISTRACTOR, JUNK
from datasets.source import Source

COMPANIONS = {".txt", ".md", ".csv", ".json", ".xml", ".mat", ".html", ".pdf"}  # text that data sets carry along
T = TypeVar("T")
QUERIES_IN = 5  # of a held-out identity's images, one in so many is a query


@dataclass(frozen=True)
class Sample:
    """One image: ``name`` is its path in the source, ``labels`` what is known of the columns in `datasets.labels`.

    ``boxes``: None where nobody looked for any.
    """

    split: str
    identity: str
    camera: str
    name: str
    labels: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None

    def renamed(self, names: Mapping[str, str]) -> "Sample":
        """With other names of its boxes' classes."""
        boxes = None if self.boxes is None else tuple(box._replace(name=names.get(box.name, box.name)) for box in self.boxes)
        return replace(self, boxes=boxes)


@dataclass(frozen=True)
class Listing:
    """A data set. ``size`` is the [h, w] to train at; ``mirror``: does a mirrored image show the same identity?

    Of a set with boxes: the names of its ``classes``, and which boxes were ``dropped``, in words.
    """

    samples: list[Sample]
    size: tuple[int, int]
    mirror: bool
    classes: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Which identities are kept from training, where a data set does not say: a share of them, drawn by ``seed``."""

    share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError("the held-out share of identities must be at least 0 and below 1", str(self.share))


def market1501(source: Source, _: HeldOut) -> Listing:
    """Market-1501: ``0002_c1s1_000451_03.jpg``. Also sets in its form, such as CUHK03-NP (``0001_c1_1.png``)."""
    return Listing(_three_folders(source, r"(-1|\d+)_c(\d+)", "0002_c1s1_000451_03.jpg"), (256, 128), mirror=True)


def dukemtmc(source: Source, _: HeldOut) -> Listing:
    """DukeMTMC-reID: Market-1501's folders with ``0001_c2_f0046182.jpg``."""
    return Listing(_three_folders(source, r"(\d+)_c(\d+)_f\d+", "0001_c2_f0046182.jpg"), (256, 128), mirror=True)


def msmt17(source: Source, _: HeldOut) -> Listing:
    """MSMT17, V1 (``train``, ``test``) or V2 (``mask_train_v2``, ``mask_test_v2``), by its lists.

    The lists name ``0000/0000_000_01_0303morning_0015_0.jpg 0``: the camera is the third field. Train and test number
    different people from 0, so their names carry ``train-`` or ``test-``. The validation list holds training people:
    it belongs to the 32,621 training images of the paper.
    """
    root = root_above(source, "list_train.txt", "MSMT17 has list_train.txt, list_query.txt and list_gallery.txt")
    v2 = any(name.startswith(f"{root}mask_train_v2/") for name in source.sizes)
    train, test = ("mask_train_v2", "mask_test_v2") if v2 else ("train", "test")
    samples = []
    for part, split, folder in (
        ("train", "train", train), ("val", "train", train), ("query", "query", test), ("gallery", "gallery", test),
    ):  # fmt: skip
        list_name = f"{root}list_{part}.txt"
        if part == "val" and list_name not in source.sizes:
            continue
        for number, line in enumerate(text_of(source, list_name).splitlines(), 1):
            if not line.strip():
                continue
            parsed = re.fullmatch(r"(\S+/\d+_\d+_(\d+)_\S+)\s+(\d+)", line.strip())
            if parsed is None:
                expected = "lines like `0000/0000_000_01_0303morning_0015_0.jpg 0` are expected"
                raise InputError("a line that cannot be read", f"line {number} of {list_name} in {source.where}", expected)
            name, camera, pid = f"{root}{folder}/{parsed[1]}", parsed[2], parsed[3]
            _listed(source, name, list_name)
            samples.append(Sample(split, f"{'train' if split == 'train' else 'test'}-{pid}", f"c{camera}", name))
    return Listing(samples, (256, 128), mirror=True)


def cuhk03(source: Source, _: HeldOut) -> Listing:
    """CUHK03 in manifest form: ``manifest.csv`` with path, pid, cam and split (train, val: other people).

    Of the val people, the first image in each camera is a query and all others are the gallery, as in the CUHK03-NP
    protocol, so that the same-camera rule has work to do. A camera's only image of a person stays in the gallery:
    the person's queries in the other camera need something to find.
    """
    manifest = root_above(source, "manifest.csv", "CUHK03 needs its manifest.csv: path,pid,cam,split") + "manifest.csv"
    rows = csv.DictReader(text_of(source, manifest).splitlines())
    if missing := {"path", "pid", "cam", "split"} - set(rows.fieldnames or ()):
        what = f"no column {', '.join(sorted(missing))}"
        raise InputError(what, f"{manifest} in {source.where}", "path,pid,cam,split are expected")
    train: list[Sample] = []
    val: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for number, row in enumerate(rows, 2):
        name = manifest.removesuffix("manifest.csv") + (row["path"] or "")
        if row["split"] not in ("train", "val"):
            where = f"line {number} of {manifest} in {source.where}"
            raise InputError(f"split '{row['split']}'", where, "train or val is expected")
        _listed(source, name, manifest)
        sample = Sample(row["split"], clean(row["pid"]), row["cam"], name)
        if sample.split == "train":
            train.append(sample)
        else:
            val[sample.identity, sample.camera].append(sample)
    if both := sorted({s.identity for s in train} & {identity for identity, _ in val}):
        what = f"person {both[0]} is in train and in val"
        raise InputError(what, f"{manifest} in {source.where}", "give different people different names")
    test = []
    for of_camera in val.values():
        first, *rest = sorted(of_camera, key=lambda s: s.name)
        test += [replace(first, split="query" if rest else "gallery"), *(replace(s, split="gallery") for s in rest)]
    return Listing(train + test, (160, 64), mirror=True)


def folders(source: Source, held_out: HeldOut) -> Listing:
    """One folder per identity, below ``train``, ``query`` and ``gallery``, or ``train`` and ``test`` (``val``), or none.

    ``test`` becomes queries and gallery; with no such folders a share of the identities does. Cameras are unknown: each
    split counts as one camera of its own, so that evaluation's same-camera rule takes nothing away.
    """
    names = list(images_in(source, list(source.sizes)))
    parts = {name: PurePosixPath(name).parts for name in names}
    if len({p[0] for p in parts.values()}) == 1 and all(len(p) > 2 for p in parts.values()):
        parts = {name: p[1:] for name, p in parts.items()}  # one folder around everything
    tops = {p[0] for p in parts.values()}
    splits = tops & {"train", "query", "gallery", "test", "val"}
    if splits and tops not in ({"train", "query", "gallery"}, {"train", "test"}, {"train", "val"}):
        expected = "train with query and gallery, or with test, or with val, is expected beside nothing else"
        raise InputError(f"the folders {', '.join(sorted(tops)[:9])}", source.where, expected)
    depth = 1 if splits else 0
    samples = []
    for name, p in parts.items():
        if len(p) < depth + 2:
            expected = "one folder per identity is expected"
            raise InputError("an image outside any identity's folder", f"{name} in {source.where}", expected)
        samples.append(Sample(p[0] if splits else "", clean(p[depth]), "", name))
    _no_two_alike({p[depth] for p in parts.values()}, source)
    if splits & {"test", "val"}:
        samples = [s for s in samples if s.split == "train"] + _queries([s for s in samples if s.split != "train"], held_out.seed)
    elif not splits:
        samples = _hold_out(samples, held_out)
    return Listing([replace(s, camera=s.split) for s in samples], (224, 224), mirror=True)


def omniglot(source: Source, held_out: HeldOut) -> Listing:
    """Omniglot: ``<alphabet>/<character>/<class>_<drawer>.png``, anywhere in the source. A character is an identity, its drawer a
    camera. Alphabets that stand in several of its parts (Greek, Latin) are taken once."""
    samples: dict[str, Sample] = {}
    for name in images_in(source, list(source.sizes)):
        parts = PurePosixPath(name).parts[-3:]
        drawer = re.fullmatch(r"\d+_(\d+)", PurePosixPath(name).stem)
        if len(parts) < 3 or drawer is None:
            expected = "<alphabet>/<character>/<class>_<drawer>.png is expected, as in Greek/character01/0394_01.png"
            raise InputError("not a name of Omniglot's", f"{name} in {source.where}", expected)
        samples.setdefault("/".join(parts), Sample("", clean(f"{parts[0]}_{parts[1]}"), f"drawer{drawer[1]}", name))
    _no_two_alike({"_".join(key.split("/")[:2]) for key in samples}, source)
    return Listing(_hold_out(list(samples.values()), held_out), (64, 64), mirror=False)


Name = Literal["market1501", "dukemtmc", "msmt17", "cuhk03", "folders", "omniglot"]
LAYOUTS: dict[Name, Callable[[Source, HeldOut], Listing]] = dict(
    zip(get_args(Name), (market1501, dukemtmc, msmt17, cuhk03, folders, omniglot), strict=True)
)


def clean(name: str) -> str:
    """A name as it can stand in a tar and in a WebDataset key: of ASCII letters, digits, ``_`` and ``-``, and without a meaning.

    Other ASCII becomes ``-``, anything else its code point in hexadecimal; ``0`` and ``-1`` get ``id-`` before them.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", lambda match: "-" if match[0].isascii() else f"u{ord(match[0]):04x}", name.strip())
    return f"id-{safe}" if safe in (JUNK, DISTRACTOR, "") else safe


def shuffled(items: Sequence[T], seed: int, purpose: str) -> list[T]:
    """The items in an order drawn from seed and purpose alone."""
    return [items[i] for i in np.random.default_rng((seed, crc32(purpose.encode()))).permutation(len(items))]


def _no_two_alike(names: Iterable[str], source: Source) -> None:
    by_clean: dict[str, str] = {}
    for name in sorted(names):
        other = by_clean.setdefault(clean(name), name)
        if other != name:
            raise InputError(f"identities '{other}' and '{name}' both become '{clean(name)}'", source.where, "rename one of them")


def _three_folders(source: Source, pattern: str, example: str) -> list[Sample]:
    root = root_above(source, "bounding_box_train", "bounding_box_train, query and bounding_box_test are expected")
    samples = []
    for folder, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
        inside = [name for name in source.sizes if name.startswith(f"{root}{folder}/")]
        if not inside:
            raise InputError("an empty or missing folder", f"{root}{folder} in {source.where}", "is the download whole?")
        for name in images_in(source, inside):
            parsed = re.match(pattern, PurePosixPath(name).name)
            if parsed is None:
                expected = f"a name like {example} is expected"
                raise InputError("a name that says no person and camera", f"{name} in {source.where}", expected)
            identity = DISTRACTOR if parsed[1] != JUNK and int(parsed[1]) == 0 else parsed[1]
            if split != "train" or identity not in (JUNK, DISTRACTOR):
                samples.append(Sample(split, identity, f"c{parsed[2]}", name))
    return samples


def _hold_out(samples: list[Sample], held_out: HeldOut) -> list[Sample]:
    """Draw identities for testing, at least one; all others train."""
    identities = sorted({sample.identity for sample in samples})
    count = min(max(round(held_out.share * len(identities)), 1), len(identities) - 1) if held_out.share else 0
    test = set(shuffled(identities, held_out.seed, "held-out identities")[:count])
    train = [replace(sample, split="train") for sample in samples if sample.identity not in test]
    return train + _queries([sample for sample in samples if sample.identity in test], held_out.seed)


def _queries(samples: list[Sample], seed: int) -> list[Sample]:
    """Of each identity draw one image in `QUERIES_IN` as queries, at least one; the rest, and an only image, are the gallery."""
    by_identity: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.name):
        by_identity[sample.identity].append(sample)
    test = []
    for identity, own in by_identity.items():
        count = max(len(own) // QUERIES_IN, 1) if len(own) > 1 else 0
        drawn = shuffled(own, seed, f"queries of {identity}")
        test += [replace(sample, split="query") for sample in drawn[:count]]
        test += [replace(sample, split="gallery") for sample in drawn[count:]]
    return test


def images_in(source: Source, names: list[str]) -> Iterable[str]:
    """Those of the names that are images; what is neither image nor companion is refused."""
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGES:
            yield name
        elif suffix not in COMPANIONS and PurePosixPath(name).stem not in ("LICENSE", "README"):
            expected = f"{', '.join(sorted(IMAGES))} are taken"
            raise InputError("not an image by its name", f"{name} in {source.where}", f"{expected}: convert it or take it out")


class Places:
    """Finds the images that a list names: a name stands for the one image whose path ends in it."""

    def __init__(self, source: Source) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in images_in(source, list(source.sizes)):
            self._by_name[PurePosixPath(name).name].append(name)

    def find(self, file: str, where: str) -> str:
        """The path in the source; raises InputError when there is none, or more than one."""
        found = [name for name in self._by_name[PurePosixPath(file).name] if f"/{name}".endswith(f"/{file}")]
        if len(found) != 1:
            what = f"{len(found)} images are called" if found else "an image is named that is not there:"
            raise InputError(f"{what} '{file}'", where, "is the download whole?")
        return found[0]


def split_by_name(name: str, held_out: HeldOut) -> str:
    """Test for the held-out share of file names, by their hash: the same images whatever else is in the set."""
    digest = hashlib.sha256(PurePosixPath(name).name.encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < held_out.share * 2**64 else "train"


def root_above(source: Source, marker: str, expected: str) -> str:
    """The path, with its last slash, above the file or folder ``marker`` that lies nearest to the top."""
    found = [PurePosixPath(name).parts for name in source.sizes]
    roots = [parts[: parts.index(marker)] for parts in found if marker in parts]
    if not roots:
        raise InputError(f"no {marker}", f"{source.where}, which begins with {next(iter(source.sizes))}", expected)
    return "".join(f"{part}/" for part in min(roots, key=len))


def text_of(source: Source, name: str) -> str:
    """A file as text; raises InputError."""
    try:
        return source.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not a text in UTF-8", f"{name} in {source.where}", "is the download whole?") from error


def _listed(source: Source, name: str, list_name: str) -> None:
    if name not in source.sizes:
        raise InputError(f"{list_name} names an image that is not there", f"{name} in {source.where}", "is the download whole?")
