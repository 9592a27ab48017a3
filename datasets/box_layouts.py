"""How sets of images with boxes lay out their files: Pascal VOC's folders and XML, COCO's JSON, a csv of boxes.

Images are of one identity, as nobody is told apart. Coordinates are taken as edges, without VOC's offset of one pixel. The size
of an image is its own, not what its annotation says: a layout reads the headers of images here. Boxes that cannot be are left
out, and named in the listing.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from statistics import median
from typing import Any, Literal, get_args
from xml.etree import ElementTree

from datasets.boxes import Box, box_within
from datasets.decode import size_of
from datasets.errors import InputError
from datasets.layouts import HeldOut, Listing, Places, Sample, images_in, split_by_name, text_of
from datasets.source import Source

IDENTITY = "image"
LARGEST_FRACTION = 2.0  # a file of boxes none of which goes beyond this gives fractions, not pixels
FILE_COLUMNS, CLASS_COLUMNS = ("file", "image", "filename"), ("label", "class")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Boxes:
    """Collects boxes by image; what is no box is noted by name."""

    sizes: Mapping[str, tuple[int, int]]  # width, height
    where: str
    kept: dict[str, list[Box]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def add(self, image: str, corners: Sequence[float], name: str, *, ignored: bool = False, fractions: bool = False) -> None:
        own = self.kept.setdefault(image, [])
        if image not in self.sizes:  # unreadable, which packing will say
            return
        box = box_within(corners, (1.0, 1.0) if fractions else self.sizes[image], name, ignored=ignored)
        if isinstance(box, Box):
            own.append(box)
        else:
            numbers = ", ".join(f"{value:g}" for value in corners)
            self.dropped.append(f"a box of {name} in {image} ({numbers}) {box}")

    def listing(self, splits: Mapping[str, str], classes: Iterable[str]) -> Listing:
        """Samples for the images that ``splits`` names."""
        if not splits:
            raise InputError("no images", self.where, "is the download whole, and the layout right?")
        samples = [
            Sample(split, IDENTITY, "", name, boxes=None if name not in self.kept else tuple(self.kept[name]))
            for name, split in splits.items()
        ]
        sides = [self.sizes[name] for name in splits if name in self.sizes] or [(512, 512)]
        size = round(median(height for _, height in sides)), round(median(width for width, _ in sides))
        return Listing(samples, size, mirror=True, classes=tuple(dict.fromkeys(classes)), dropped=tuple(self.dropped))


def voc(source: Source, held_out: HeldOut) -> Listing:
    """Pascal VOC: ``Annotations/*.xml`` beside images of the same stems, anywhere below; images without an XML are not annotated.

    ``ImageSets/Main``: what its test list names is held out, else what its val list names beside others; else a share is, of what
    is listed, or of all.
    """
    images = list(images_in(source, list(source.sizes)))
    by_stem = {PurePosixPath(name).stem: name for name in images}
    if len(by_stem) < len(images):
        twice = next(name for name in images if by_stem[PurePosixPath(name).stem] != name)
        raise InputError("two images of one name, so that an XML could mean either", f"{twice} in {source.where}", "rename one")
    boxes = _Boxes(_sizes(source, images), source.where)
    for name in source.sizes:
        if name.endswith(".xml"):
            where = f"{name} in {source.where}"
            root = _xml(text_of(source, name), where)
            image = by_stem.get(PurePosixPath(name).stem)
            if image is None:
                told = root.findtext("filename") or "an image"
                raise InputError(f"an XML names {told}, which is not there", where, "is the download whole?")
            boxes.kept.setdefault(image, [])
            for thing in root.iter("object"):
                corners = [_number(thing.findtext(f"bndbox/{side}"), side, where) for side in CORNERS]
                boxes.add(image, corners, _named(thing.findtext("name"), where), ignored=thing.findtext("difficult") == "1")
    classes = sorted({box.name for own in boxes.kept.values() for box in own})
    return boxes.listing(_voc_splits(source, by_stem, held_out), classes)


def _voc_splits(source: Source, by_stem: Mapping[str, str], held_out: HeldOut) -> dict[str, str]:
    lists: dict[str, list[str]] = {}
    for name in source.sizes:
        path = PurePosixPath(name)
        if path.match("ImageSets/Main/*.txt") and path.stem in ("train", "val", "trainval", "test"):
            lists[path.stem] = [line.split()[0] for line in text_of(source, name).splitlines() if line.strip()]
            for stem in lists[path.stem]:
                if stem not in by_stem:
                    remedy = "is the download whole?"
                    raise InputError(f"a list names the image {stem}, which is not there", f"{name} in {source.where}", remedy)
    named = {stem for stems in lists.values() for stem in stems}
    listed = {stem: name for stem, name in by_stem.items() if stem in named or not lists}
    test = set(lists.get("test") or (lists.get("val") if len(lists) > 1 else None) or [])
    if not test:
        return {name: split_by_name(name, held_out) for name in listed.values()}
    return {name: "test" if stem in test else "train" for stem, name in listed.items()}


def coco(source: Source, held_out: HeldOut) -> Listing:
    """COCO: JSON with images, annotations and categories (``instances_*.json`` where there are such). A file with train, val or
    test in its name says the split of its images; of any other a share is held out."""
    files = [name for name in source.sizes if name.endswith(".json")]
    files = [name for name in files if PurePosixPath(name).name.startswith("instances_")] or files
    if not files:
        raise InputError("no JSON of boxes", source.where, "COCO has annotations/instances_train2017.json and the like")
    places, splits, classes = Places(source), dict[str, str](), list[str]()
    found: list[tuple[str, Sequence[float], str, bool]] = []
    for file in files:
        where = f"{file} in {source.where}"
        told = _coco_json(text_of(source, file), where)
        images = {image["id"]: places.find(str(image["file_name"]), where) for image in told["images"]}
        names = {category["id"]: str(category["name"]).strip() for category in told["categories"]}
        stem = PurePosixPath(file).stem
        split = "train" if "train" in stem else "test" if "val" in stem or "test" in stem else ""
        splits |= {name: split or split_by_name(name, held_out) for name in images.values()}
        classes += names.values()
        for one in told["annotations"]:
            if one["image_id"] not in images or one["category_id"] not in names:
                raise InputError("a box of an unknown image or category", where, f"annotation {one.get('id')}: mend the file")
            left, top, width, height = (_number(value, "bbox", where) for value in one["bbox"])
            box = (left, top, left + width, top + height)
            found.append((images[one["image_id"]], box, names[one["category_id"]], bool(one.get("iscrowd"))))
    boxes = _Boxes(_sizes(source, splits), source.where, {name: [] for name in splits})
    for image, corners, name, crowd in found:
        boxes.add(image, corners, name, ignored=crowd)
    return boxes.listing(splits, classes)


def boxes_csv(source: Source, held_out: HeldOut) -> Listing:
    """Images and one csv: file (or image, filename), xmin, ymin, xmax, ymax, label (or class); pixels, or fractions of the sides.

    A line with an empty label says that the image shows nothing; images that no line names are not annotated.
    """
    lists = [name for name in source.sizes if name.endswith(".csv")]
    if len(lists) != 1:
        raise InputError(f"{len(lists)} csv files", source.where, "one is expected: file,xmin,ymin,xmax,ymax,label")
    where = f"{lists[0]} in {source.where}"
    rows = csv.DictReader(text_of(source, lists[0]).splitlines())
    columns = set(rows.fieldnames or ())
    file, label = (next((name for name in names if name in columns), "") for names in (FILE_COLUMNS, CLASS_COLUMNS))
    if not file or not label or not columns.issuperset(CORNERS):
        raise InputError(
            f"the columns are {', '.join(sorted(columns)) or 'none'}", where, "file,xmin,ymin,xmax,ymax,label are expected"
        )
    places = Places(source)
    splits = {name: split_by_name(name, held_out) for name in images_in(source, list(source.sizes))}
    boxes = _Boxes(_sizes(source, splits), source.where)
    found: list[tuple[str, list[float], str]] = []
    for number, row in enumerate(rows, 2):
        line = f"line {number} of {where}"
        image, name = places.find(row[file] or "", line), (row[label] or "").strip()
        boxes.kept.setdefault(image, [])
        if name:
            found.append((image, [_number(row[side], side, line) for side in CORNERS], name))
    fractions = all(abs(value) <= LARGEST_FRACTION for _, corners, _ in found for value in corners)
    for image, corners, name in found:
        boxes.add(image, corners, name, fractions=fractions)
    return boxes.listing(splits, sorted({name for *_, name in found}))


BoxName = Literal["voc", "coco", "boxes_csv"]
BOX_LAYOUTS: dict[BoxName, Callable[[Source, HeldOut], Listing]] = dict(
    zip(get_args(BoxName), (voc, coco, boxes_csv), strict=True)
)


def renamed(listing: Listing, renames: Sequence[str]) -> Listing:
    """The listing with classes renamed as "rbc=RBC" says; two that come to be the same are one.

    Raises:
        InputError: that is no such pair, or names a class that there is not.
    """
    if not renames:
        return listing
    pairs = dict(text.partition("=")[::2] for text in renames)
    there = listing.classes or ()
    for text in renames:
        old, _, new = text.partition("=")
        if not old or not new:
            raise InputError(f"'{text}' renames nothing", "--rename", "write old=new")
        if old not in there:
            raise InputError(f"no class '{old}' to rename", "--rename", f"there are: {', '.join(there) or 'none'}")
    classes = tuple(dict.fromkeys(pairs.get(name, name) for name in there))
    samples = [sample.renamed(pairs) for sample in listing.samples]
    return replace(listing, samples=samples, classes=classes)


def _sizes(source: Source, images: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Width and height of each image that can be read."""
    sizes = {}
    for name in images:
        try:
            height, width = size_of(source.read(name))
        except ValueError:  # packing will name it
            continue
        sizes[name] = (width, height)
    return sizes


def _xml(text: str, where: str) -> ElementTree.Element:
    remedy = "a VOC annotation is expected"
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # with which an XML can swell to gigabytes
        raise InputError("an XML with a DTD", where, remedy)
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - without a DTD there is nothing to expand
    except ElementTree.ParseError as error:
        raise InputError(f"not an XML ({error})", where, remedy) from error


def _coco_json(text: str, where: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
        lists = {name: told[name] for name in ("images", "annotations", "categories")}
        wanted = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id", "bbox"), "categories": ("id", "name")}
        for name, keys in wanted.items():
            for one in lists[name]:
                if any(key not in one for key in keys) or len(one.get("bbox", range(4))) != 4:
                    raise KeyError(f"one of {name} without {', '.join(keys)}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not COCO's JSON ({error})", where, "images, annotations and categories are expected") from error
    return lists


def _number(text: Any, what: str, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is {text!r}, not a number", where, "mend the annotation") from error
    return value if math.isfinite(value) else math.nan


def _named(text: str | None, where: str) -> str:
    if not (text or "").strip():
        raise InputError("an object without a name", where, "mend the annotation")
    return (text or "").strip()
