"""Pascal VOC's layout: a folder of images, an XML for each annotated image, and lists of splits; for one year or several."""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from xml.etree import ElementTree

from datasets.errors import InputError
from datasets.layouts.archive import MAX_TEXT, Archive
from datasets.layouts.box_collector import BoxCollector, class_name, coordinate, headers_of, said_size
from datasets.layouts.listing import Listing, images_in
from datasets.splits import WORDS, HeldOut, Splits, split_by_hash, splits_by_names
from datasets.text_files import xml_of

CORNERS = ("xmin", "ymin", "xmax", "ymax")
IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets"


class _Images:
    """Finds the image of an XML, or of a line in a list, by the set (one of several years) and the stem of its name."""

    def __init__(self, images: Iterable[str]) -> None:
        self._by_stem: dict[str, list[tuple[str, str, str]]] = {}
        for name in images:
            root, stem = _in_voc(name, IMAGES)
            self._by_stem.setdefault(PurePosixPath(stem).name, []).append((root, stem, name))

    def find(self, root: str, stem: str, where: str) -> str | None:
        """Return the image with this stem, of several the one in the same set; None for none.

        Raises:
            InputError: it is ambiguous.
        """
        found = self._by_stem.get(PurePosixPath(stem).name, [])
        for narrowed in ([one for one in found if one[0] == root], [one for one in found if one[:2] == (root, stem)]):
            found = narrowed if len(found) > 1 and narrowed else found
        if len(found) > 1:
            what = f"two images of one name, so that it could mean either: {found[0][2]} and {found[1][2]}"
            raise InputError(what, where, "rename one, and what names it")
        return found[0][2] if found else None


def _in_voc(name: str, folder: str) -> tuple[str, str]:
    """Return the path of a file's set (the one above ``folder``, else the file's own), and its path in there, without ending."""
    path = PurePosixPath(name).with_suffix("")
    if folder in path.parts[:-1]:
        at = path.parts.index(folder)
        return "/".join(path.parts[:at]), "/".join(path.parts[at + 1 :])
    return str(path.parent), path.name


def voc(archive: Archive, held_out: HeldOut) -> Listing:
    """Read Pascal VOC, also several years side by side: ``Annotations/*.xml``, and images with the same stems in ``JPEGImages``.

    XML and images may also lie together in any folder. Images without an XML are not annotated. Splits come from
    ``ImageSets/Main``: with a list of test images, all other listed images are for training (VOC 2007); otherwise the val list is
    val. Without lists, splits come from folders, else from a hash.
    """
    everything = list(images_in(archive, list(archive.sizes)))
    images = [name for name in everything if IMAGES in PurePosixPath(name).parts[:-1]] or everything
    found, boxes = _Images(images), BoxCollector(archive, headers_of(archive, images))
    for name in archive.sizes:
        if name.endswith(".xml"):
            where = archive.place(name)
            root = xml_of(archive.read(name, MAX_TEXT), where, "a VOC annotation is expected")
            image = found.find(*_in_voc(name, ANNOTATIONS), where)
            if image is None:
                named = root.findtext("filename") or "an image"
                raise InputError(f"an XML names {named}, which is not there", where, "is the download whole?")
            boxes.annotate(image, said_size(root.findtext("size/height"), root.findtext("size/width"), where), where)
            for thing in root.iter("object"):
                boxes.add(image, _corners(thing, where), class_name(thing.findtext("name"), where), ignored=_is_difficult(thing))
    classes = sorted({box.name for own in boxes.kept.values() for box in own})
    others = f"outside {IMAGES}"
    left_out = dict.fromkeys(images, "named by no list of ImageSets/Main")
    return boxes.listing(_voc_splits(archive, found, images, held_out), classes, left_out=left_out, others=others)


def _corners(thing: ElementTree.Element, where: str) -> list[float]:
    return [coordinate(thing.findtext(f"bndbox/{side}"), side, where) for side in CORNERS]


def _is_difficult(thing: ElementTree.Element) -> bool:
    return (thing.findtext("difficult") or "").strip() == "1"


def _voc_splits(archive: Archive, found: _Images, images: Sequence[str], held_out: HeldOut) -> Splits:
    lists: dict[str, dict[str, str]] = {}  # by the list's name: its images, and where each is listed, in words
    files = []
    for name in archive.sizes:
        path = PurePosixPath(name)
        if path.match("ImageSets/Main/*.txt") and (kind := path.stem.lower()) in WORDS:
            files.append(name)
            own = lists.setdefault(kind if kind == "trainval" else WORDS[kind], {})
            for number, line in enumerate(archive.text(name).splitlines(), 1):
                where = f"line {number} of {archive.place(name)}"
                if line.strip():
                    own[_voc_listed(line.strip(), _in_voc(name, LISTS)[0], found, where)] = where
    if not lists:
        return splits_by_names(images, held_out, archive.where)
    listed = dict.fromkeys(image for own in lists.values() for image in own)
    if "val" not in lists and lists.get("train") and lists.get("trainval"):
        lists["val"] = {image: where for image, where in lists["trainval"].items() if image not in lists["train"]}
    held = "test" if lists.get("test") else "val" if lists.get("val") and len(lists) > 1 else ""
    if not held:
        by = f"{files[0]}, and a hash of each file's name, a fraction of {held_out.fraction:g} for test"
        return Splits({image: split_by_hash(image, held_out) for image in listed}, by)
    others = ("train", "val", "trainval") if held == "test" else ("train",)
    if both := next((image for kind in others for image in lists.get(kind, {}) if image in lists[held]), None):
        raise InputError(f"the image {both} is in lists of {held} and of others", lists[held][both], "take it out of one")
    return Splits({image: held if image in lists[held] else "train" for image in listed}, ", ".join(files))


def _voc_listed(line: str, root: str, found: _Images, where: str) -> str:
    """Return the image of a line: a stem, which may have spaces, and optionally a flag (1, 0 or -1) after it."""
    stem, _, flag = line.rpartition(" ")
    candidates = (line, stem.strip()) if flag in ("1", "-1", "0") else (line,)
    image = next((name for candidate in candidates if (name := found.find(root, candidate, where))), None)
    if image is None:
        raise InputError(f"a list names the image {line}, which is not there", where, "is the download whole?")
    return image
