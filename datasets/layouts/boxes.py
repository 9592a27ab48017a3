"""Layouts of images with boxes: Pascal VOC, COCO, csv. Coordinates are edges of pixels, without VOC's offset of one pixel."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal, get_args

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.box_collector import BoxCollector, coordinate, headers_of, said_size
from datasets.layouts.coco import coco
from datasets.layouts.listed_files import ListedFiles
from datasets.layouts.listing import Listing, images_in
from datasets.layouts.voc import CORNERS, voc
from datasets.splits import HeldOut, Splits, checked_split, split_of_file, splits_by_names
from datasets.text_files import cell, csv_columns, csv_rows

LARGEST_FRACTION = 2.0  # if no coordinate in a file is above this, they are fractions, not pixels
FILE_COLUMNS, CLASS_COLUMNS = ("file", "image", "filename"), ("label", "class")


def boxes_csv(archive: Archive, held_out: HeldOut) -> Listing:
    """Read images and one csv or more with file (or image, filename), xmin, ymin, xmax, ymax, label (or class).

    Coordinates are pixels, or fractions of the sides. Optional columns: split; width and height of the annotated picture. A line
    with an empty label means that the image shows nothing; images on no line are not annotated. Splits come from the column
    split, else from the names or folders of several csv files, else from the images' folders, else from a hash.
    """
    lists = [name for name in archive.sizes if name.endswith(".csv")]
    if not lists:
        raise InputError("no csv file", archive.where, "one is expected: file,xmin,ymin,xmax,ymax,label")
    images = list(images_in(archive, list(archive.sizes)))
    places, boxes = ListedFiles(images), BoxCollector(archive, headers_of(archive, images))
    splits, names = dict[str, str](), set[str]()
    for file in lists:
        split = split_of_file(file) if len(lists) > 1 else ""
        found: list[tuple[str, list[float], str]] = []
        for line, row in _box_rows(archive, file):
            image = places.find(cell(row, FILE_COLUMNS), line, str(PurePosixPath(file).parent), split)
            boxes.annotate(image, said_size(row.get("height"), row.get("width"), line), line)
            own = checked_split(row["split"], line) if "split" in row else split
            if own and splits.setdefault(image, own) != own:
                raise InputError(f"the image {image} is in {splits[image]} and in {own}", line, "take it out of one of them")
            if name := cell(row, CLASS_COLUMNS):
                found.append((image, [coordinate(row[side], side, line) for side in CORNERS], name))
        fractions = all(abs(value) <= LARGEST_FRACTION for _, corners, _ in found for value in corners)
        for image, corners, name in found:
            boxes.add(image, corners, name, fractions=fractions)
            names.add(name)
    if not splits:
        return boxes.listing(splits_by_names(images, held_out, archive.where), sorted(names))
    return boxes.listing(Splits(splits, "the csv files"), sorted(names), others="named by no csv, so that its split is not known")


def _box_rows(archive: Archive, file: str) -> Iterable[tuple[str, dict[str, str]]]:
    text, where = archive.text(file), archive.place(file)
    columns = set(csv_columns(text))
    if not (columns.issuperset(CORNERS) and columns.intersection(FILE_COLUMNS) and columns.intersection(CLASS_COLUMNS)):
        what = f"the columns are {', '.join(sorted(columns)) or 'none'}"
        raise InputError(what, where, "file,xmin,ymin,xmax,ymax,label are expected")
    return csv_rows(text, where)


BoxName = Literal["voc", "coco", "boxes_csv"]
BOX_LAYOUTS: dict[BoxName, Callable[[Archive, HeldOut], Listing]] = dict(
    zip(get_args(BoxName), (voc, coco, boxes_csv), strict=True)
)


def renamed(listing: Listing, renames: Sequence[str]) -> Listing:
    """Return the listing with classes renamed by pairs such as "rbc=RBC"; two classes with the same new name become one.

    Raises:
        InputError: not such a pair, or no such class.
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
