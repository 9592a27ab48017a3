"""COCO's layout: images, and JSON files of images, annotations and categories."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from datasets.errors import InputError
from datasets.layouts.archive import MAX_TEXT, Archive
from datasets.layouts.box_collector import BoxCollector, class_name, coordinate, headers_of, said_size
from datasets.layouts.listed_files import ListedFiles
from datasets.layouts.listing import Listing, images_in
from datasets.splits import HeldOut, Splits, split_by_hash, split_of_file
from datasets.text_files import json_of

COCO = "images, annotations and categories are expected"


class _CocoFile(NamedTuple):
    """A parsed COCO file: paths by image id, sizes by path, class names by category id, and the annotations."""

    file: str
    images: dict[Any, str]
    sizes: dict[str, tuple[int, int] | None]
    names: dict[Any, str]
    annotations: list[dict[str, Any]]
    split: str


def coco(archive: Archive, held_out: HeldOut) -> Listing:
    """Read COCO: JSON with images, annotations and categories; only ``instances_*.json`` where there are such files.

    The split comes from the file's name, else from its folder, else from a hash of each image's name. A box in several files
    counts once.
    """
    files = [name for name in archive.sizes if name.endswith(".json")]
    files = [name for name in files if PurePosixPath(name).name.startswith("instances_")] or files
    if not files:
        raise InputError("no JSON of boxes", archive.where, "COCO has annotations/instances_train2017.json and the like")
    places = ListedFiles(images_in(archive, list(archive.sizes)))
    parsed = [_coco_file(archive, file, places) for file in files]
    splits = _coco_splits(parsed, held_out, archive)
    boxes = BoxCollector(archive, headers_of(archive, splits.of))
    for one in parsed:
        for image, said in one.sizes.items():
            boxes.annotate(image, said, f"{image}, of {archive.place(one.file)}")
    subsets = _coco_boxes(parsed, boxes, archive)
    return boxes.listing(
        splits, [name for one in parsed for name in one.names.values()], notes=subsets, others="named by no JSON"
    )


def _coco_file(archive: Archive, file: str, places: ListedFiles) -> _CocoFile:
    where, split, folder = archive.place(file), split_of_file(file), str(PurePosixPath(file).parent)
    lists = _coco_lists(json_of(archive.read(file, MAX_TEXT), where, COCO), where)
    images: dict[Any, str] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for one in lists["images"]:
        name = places.find(one["file_name"], where, folder, split)
        if images.setdefault(one["id"], name) != name:
            raise InputError(f"two images of the id {one['id']!r}: {images[one['id']]} and {name}", where, "give each its own id")
        sizes[name] = said_size(one.get("height"), one.get("width"), where)
    names: dict[Any, str] = {}
    for one in lists["categories"]:
        name = class_name(str(one["name"]), where)
        if names.setdefault(one["id"], name) != name:
            what = f"two categories of the id {one['id']!r}: {names[one['id']]} and {name}"
            raise InputError(what, where, "give each its own id")
    return _CocoFile(file, images, sizes, names, lists["annotations"], split)


def _coco_splits(parsed: Sequence[_CocoFile], held_out: HeldOut, archive: Archive) -> Splits:
    of: dict[str, str] = {}
    said_by: dict[str, str] = {}
    for one in parsed:
        for image in one.images.values():
            if one.split and of.setdefault(image, one.split) != one.split:
                what = f"the image {image} is in {of[image]} by {said_by[image]} and in {one.split} by another file"
                raise InputError(what, archive.place(one.file), "take it out of one of them")
            said_by.setdefault(image, one.file)
    unsaid = {image: split_by_hash(image, held_out) for one in parsed for image in one.images.values() if image not in of}
    by = ["the names of the files and their folders"] if of else []
    by += [f"a hash of each file's name, a fraction of {held_out.fraction:g} for test"] if unsaid else []
    return Splits(of | unsaid, "; else ".join(by))


def _coco_boxes(parsed: Sequence[_CocoFile], boxes: BoxCollector, archive: Archive) -> tuple[str, ...]:
    """Add the boxes of all files, each once. Returns notes about files whose boxes are all in other files."""
    seen: set[tuple[object, ...]] = set()
    by_id: dict[tuple[object, ...], str] = {}
    subsets = []
    for one in sorted(parsed, key=lambda one: -len(one.annotations)):
        where, fresh = archive.place(one.file), 0
        for annotation in one.annotations:
            if annotation["image_id"] not in one.images or annotation["category_id"] not in one.names:
                what = f"annotation {annotation.get('id')!r} is of an image or a category that the file does not list"
                raise InputError(what, where, "correct the file")
            image, name = one.images[annotation["image_id"]], one.names[annotation["category_id"]]
            left, top, width, height = (coordinate(value, "bbox", where) for value in annotation["bbox"])
            box, own_id = (image, name, left, top, width, height), annotation.get("id")
            known = isinstance(own_id, int | str) and by_id.setdefault((image, name, own_id), one.file) != one.file
            if known or box in seen:
                continue
            seen.add(box)
            fresh += 1
            corners = (left, top, left + width, top + height)
            boxes.add(image, corners, name, ignored=annotation.get("iscrowd") in (1, True))
        if one.annotations and not fresh:
            subsets.append(f"{one.file} is a subset of the other files: its {len(one.annotations):,} boxes are in them, too")
    return tuple(subsets)


def _coco_lists(parsed: Any, where: str) -> dict[str, list[dict[str, Any]]]:
    """Return the three lists of COCO's JSON, after checking the keys and types of every entry."""
    needed: dict[str, dict[str, tuple[type, ...]]] = {
        "images": {"id": (int, float, str), "file_name": (str,)},
        "annotations": {"image_id": (int, float, str), "category_id": (int, float, str), "bbox": (list,)},
        "categories": {"id": (int, float, str), "name": (str, int)},
    }
    for name, keys in needed.items():
        if not isinstance(parsed, dict) or not isinstance(parsed.get(name), list):
            raise InputError(f"not COCO's JSON: no list '{name}'", where, COCO)
        for number, one in enumerate(parsed[name]):
            for key, types in keys.items():
                value = one.get(key) if isinstance(one, dict) else None
                whole = isinstance(value, types) and not isinstance(value, bool)
                if not whole or (isinstance(value, list) and len(value) != 4):
                    what = f"not COCO's JSON: entry {number} of {name} has no {key} that can be read"
                    raise InputError(what, where, COCO)
    return {name: parsed[name] for name in needed}
