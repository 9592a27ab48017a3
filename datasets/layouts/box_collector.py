"""Collects the boxes of each image for the layouts, as fractions of the picture that a viewer shows.

Annotations that state the size of the stored picture have their boxes turned by EXIF's orientation; a size that fits neither
picture is an error. Impossible boxes are left out, and named in the listing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from statistics import median
from typing import Any

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.listing import Listing, Sample
from datasets.media.decode import MAX_BYTES
from datasets.media.image_header import Header, read_header, shown_box, turned_size
from datasets.shards.boxes import Box, box_within
from datasets.splits import Splits
from datasets.text_files import number_of

IDENTITY = "image"  # of all images: sets with boxes have no identities


@dataclass
class BoxCollector:
    """Collects boxes by image, and descriptions of the ``dropped`` ones."""

    archive: Archive
    headers: Mapping[str, Header]  # of the images that can be read; packing reports the others
    kept: dict[str, list[Box]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)  # images whose boxes are of the picture as stored

    def annotate(self, image: str, said: tuple[int, int] | None, where: str) -> None:
        """Mark an image as annotated. ``said``: the height and width that the annotation states; None: it states none."""
        self.kept.setdefault(image, [])
        if image in self.headers and turned_size(said, self.headers[image], where):
            self.stored.add(image)

    def add(self, image: str, corners: Sequence[float], name: str, *, ignored: bool = False, fractions: bool = False) -> None:
        """Add a box, in pixels or fractions, to an annotated image."""
        header = self.headers.get(image)
        if header is None:
            return
        height, width = (header.height, header.width) if image in self.stored else header.shown
        box = box_within(corners, (1.0, 1.0) if fractions else (width, height), name, ignored=ignored)
        if isinstance(box, Box):
            moved = shown_box(box[:4], header.orientation) if image in self.stored else box[:4]
            self.kept[image].append(Box(*moved, name, ignored))
        else:
            numbers = ", ".join(f"{value:g}" for value in corners)
            self.dropped.append(f"a box of {name} in {image} ({numbers}) {box}")

    def listing(self, splits: Splits, classes: Iterable[str], **more: Any) -> Listing:
        """Return the listing of the images in ``splits``."""
        if not splits.of:
            raise InputError("no images", self.archive.where, "is the download whole, and the layout right?")
        samples = [
            Sample(split, IDENTITY, "", name, boxes=None if name not in self.kept else tuple(self.kept[name]))
            for name, split in splits.of.items()
        ]
        shown = [self.headers[name].shown for name in splits.of if name in self.headers] or [(512, 512)]
        size = round(median(height for height, _ in shown)), round(median(width for _, width in shown))
        names = tuple(dict.fromkeys(classes))
        return Listing(samples, size, True, splits.by, classes=names, dropped=tuple(self.dropped), **more)


def headers_of(archive: Archive, images: Iterable[str]) -> dict[str, Header]:
    """Read the header of each image that can be read."""
    headers = {}
    for name in images:
        try:
            headers[name] = read_header(archive.read(name, MAX_BYTES))
        except ValueError:  # packing reports it
            continue
    return headers


def said_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """Return the height and width that an annotation states; None where it states none, or 0."""
    if not all(value not in (None, "") for value in (height, width)):
        return None
    numbers = [coordinate(value, "a side of the image", where) for value in (height, width)]
    return (round(numbers[0]), round(numbers[1])) if all(number > 0 for number in numbers) else None


def coordinate(value: Any, what: str, where: str) -> float:
    """Convert a coordinate to a number, an infinite one to NaN; raises InputError where it is no number."""
    number = number_of(value, what, where)
    return number if isfinite(number) else nan


def class_name(text: str | None, where: str) -> str:
    """Return the name of an object's class, stripped; raises InputError where it is empty."""
    if not (text or "").strip():
        raise InputError("an object without a name", where, "correct the annotation")
    return (text or "").strip()
