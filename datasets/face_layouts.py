"""How sets of labelled faces lay out their files: from names, folders and lists to samples with labels.

Nobody is told apart here, so all images are of one identity. Held-out images, split ``test``, are those whose file name's hash
falls under the share: the same images whatever else is in the set, and whatever the order of the files.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

from datasets.errors import InputError
from datasets.labels import COLUMNS, KEYPOINTS, check_label
from datasets.layouts import HeldOut, Listing, Places, Sample, images_in, root_above, split_by_name, text_of
from datasets.source import Source

FACE = "face"
SIZE = (64, 64)
ALIGNED = (178, 218)  # width and height of CelebA's aligned images, which its landmarks are given in
CELEBA = {"Eyeglasses": "glasses", "Smiling": "smile", "Attractive": "attractiveness"}
CELEBA_INVERSE = {"Male": "gender", "Blurry": "quality"}  # 1 there is 0 here


def celeba(source: Source, held_out: HeldOut) -> Listing:
    """CelebA: images, ``list_attr_celeba.txt`` or ``.csv`` and, when there, ``list_landmarks_align_celeba`` in either form.

    Male, Eyeglasses, Smiling, Attractive and the opposite of Blurry (quality) are taken.
    """
    places = Places(source)
    landmarks = {row.file: row for row in _celeba_list(source, "list_landmarks_align_celeba", required=False)}
    samples = []
    for row in _celeba_list(source, "list_attr_celeba", required=True):
        labels = {ours: str((int(_sign(row, name)) + 1) // 2) for name, ours in CELEBA.items()}
        labels |= {ours: str((1 - int(_sign(row, name))) // 2) for name, ours in CELEBA_INVERSE.items()}
        if row.file in landmarks:
            labels |= _shares(landmarks[row.file])
        samples.append(_sample(row, places, labels, held_out))
    return _listing(samples, source)


def utkface(source: Source, held_out: HeldOut) -> Listing:
    """UTKFace: ``26_1_0_20170116.jpg`` (age, gender, ...), or a csv with file, age and gender."""
    if any(name.endswith(".csv") for name in source.sizes):
        return _by_csv(source, held_out, needed=("age", "gender"), taken=("age", "gender"))
    samples = []
    for name in images_in(source, list(source.sizes)):
        parsed = re.match(r"(\d+)_(\d?)_", PurePosixPath(name).name)  # three names of the original lack the gender
        if parsed is None:
            expected = "a name like 26_1_0_20170116174525125.jpg is expected: age_gender_race_time"
            raise InputError("a name that tells no age and gender", f"{name} in {source.where}", expected)
        labels = _checked({"age": parsed[1], "gender": parsed[2]}, f"{name} in {source.where}")
        samples.append(Sample(split_by_name(name, held_out), FACE, "", name, labels))
    return Listing(samples, SIZE, mirror=True)


def mask_folders(source: Source, held_out: HeldOut) -> Listing:
    """Two folders of images, ``with_mask`` and ``without_mask``."""
    samples = []
    for name in images_in(source, list(source.sizes)):
        folder = {"with_mask": 1.0, "without_mask": 0.0}.get(PurePosixPath(name).parent.name)
        if folder is None:
            raise InputError(
                "an image in neither with_mask nor without_mask", f"{name} in {source.where}", "is the layout right?"
            )
        samples.append(Sample(split_by_name(name, held_out), FACE, "", name, {"mask": folder}))
    return Listing(samples, SIZE, mirror=True)


def head_pose(source: Source, held_out: HeldOut) -> Listing:
    """Images and a csv: file, yaw, pitch, roll in degrees."""
    needed = ("yaw", "pitch", "roll")
    return _by_csv(source, held_out, needed, needed)


def attributes_csv(source: Source, held_out: HeldOut) -> Listing:
    """Images and a csv: file, and any columns of `datasets.labels`; an empty cell is an absent label."""
    return _by_csv(source, held_out, (), tuple(COLUMNS))


FaceName = Literal["celeba", "utkface", "mask_folders", "head_pose", "attributes_csv"]
FACE_LAYOUTS: dict[FaceName, Callable[[Source, HeldOut], Listing]] = dict(
    zip(get_args(FaceName), (celeba, utkface, mask_folders, head_pose, attributes_csv), strict=True)
)


class _Row(NamedTuple):
    """A line of a list: which image it is about, its cells by column, and its place in words."""

    file: str
    cells: Mapping[str, str]
    where: str


def _by_csv(source: Source, held_out: HeldOut, needed: tuple[str, ...], taken: tuple[str, ...]) -> Listing:
    places = Places(source)
    lists = [name for name in source.sizes if name.endswith(".csv")]
    if len(lists) != 1:
        raise InputError(f"{len(lists)} csv files", source.where, f"one is expected: file,{','.join(needed or taken)}")
    samples = []
    for number, cells in _csv_rows(source, lists[0], needed, taken):
        row = _Row(cells["file"], cells, f"line {number} of {lists[0]} in {source.where}")
        samples.append(_sample(row, places, {name: cells[name] for name in taken if name in cells}, held_out))
    return _listing(samples, source)


def _csv_rows(source: Source, name: str, needed: tuple[str, ...], taken: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    rows = csv.DictReader(text_of(source, name).splitlines())
    columns = set(rows.fieldnames or ())
    where = f"{name} in {source.where}"
    if missing := [column for column in ("file", *needed) if column not in columns]:
        raise InputError(f"no column {', '.join(missing)}", where, f"it has: {', '.join(sorted(columns))}")
    if not columns & set(taken):
        raise InputError("no column with labels", where, f"name columns as in: {', '.join(taken)}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError("more or fewer cells than columns", f"line {number} of {where}", "is the file whole?")
        yield number, dict(row)


def _celeba_list(source: Source, stem: str, *, required: bool) -> Iterator[_Row]:
    """The rows of one of CelebA's lists: the original text (a count, the columns, a line an image) or a csv of it."""
    name = next((name for name in source.sizes if PurePosixPath(name).name in (f"{stem}.txt", f"{stem}.csv")), None)
    if name is None:
        if required:
            root_above(source, f"{stem}.txt", f"CelebA has its {stem}.txt, or .csv")
        return
    lines = text_of(source, name).splitlines()
    if name.endswith(".txt"):
        lines = ["file " + lines[1], *lines[2:]] if len(lines) > 1 else lines
        table = [(number, line.split()) for number, line in enumerate(lines, 2)]
    else:
        table = [(number, cells) for number, cells in enumerate(csv.reader(lines), 1)]
    columns = table[0][1] if table else []
    for number, cells in table[1:]:
        where = f"line {number} of {name} in {source.where}"
        if len(cells) != len(columns):
            raise InputError(f"{len(cells)} cells where {len(columns)} are expected", where, "is the download whole?")
        yield _Row(cells[0], dict(zip(columns, cells, strict=True)), where)


def _listing(samples: list[Sample], source: Source) -> Listing:
    """What a list of faces says; raises InputError where it names an image twice, or has no label at all."""
    if not any(sample.labels for sample in samples):
        raise InputError(f"{len(samples)} images and no label", source.where, "is the list the right one?")
    name, count = Counter(sample.name for sample in samples).most_common(1)[0]
    if count > 1:
        raise InputError(f"an image is listed {count} times", f"{name} in {source.where}", "keep one of its lines")
    return Listing(samples, SIZE, mirror=True)


def _sign(row: _Row, column: str) -> str:
    value = row.cells.get(column)
    if value is None:
        raise InputError(f"no column {column}", row.where, "is it CelebA's list?")
    if value not in ("1", "-1"):
        raise InputError(f"{column} of {row.file} is '{value}'", row.where, "1 or -1 is expected")
    return value


def _shares(row: _Row) -> dict[str, str]:
    """CelebA's landmarks, pixels of the aligned image, as shares of its sides."""
    theirs = [f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"]
    shares = {}
    for place, (name, column) in enumerate(zip(theirs, KEYPOINTS, strict=True)):
        try:
            shares[column] = str(float(row.cells[name]) / ALIGNED[place % 2])
        except (KeyError, ValueError) as error:
            raise InputError(f"no number under {name} for {row.file}", row.where, "is it CelebA's list?") from error
    return shares


def _sample(row: _Row, places: Places, labels: Mapping[str, str], held_out: HeldOut) -> Sample:
    checked = _checked(labels, f"{row.file}, {row.where}")
    return Sample(split_by_name(row.file, held_out), FACE, "", places.find(row.file, row.where), checked)


def _checked(labels: Mapping[str, str], where: str) -> dict[str, float]:
    values = {column: check_label(column, text, where) for column, text in labels.items()}
    return {column: value for column, value in values.items() if value is not None}
