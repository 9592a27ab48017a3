"""Layouts of labelled faces: from names, folders and lists to samples with labels.

There are no identities here, so all images have the same one. Where neither lists nor folders give the splits, a hash of each
file's name decides: an image's split does not depend on other files.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.listed_files import ListedFiles
from datasets.layouts.listing import Listing, Sample, images_in, root_above
from datasets.shards.labels import COLUMNS, KEYPOINTS, check_label
from datasets.splits import HeldOut, Splits, checked_split, split_of_file, splits_by_names
from datasets.text_files import WHOLE, csv_columns, csv_rows

FACE = "face"
SIZE = (64, 64)
ALIGNED = (178, 218)  # width and height of CelebA's aligned images, which its landmarks are given in
CELEBA = {"Eyeglasses": "glasses", "Smiling": "smile", "Attractive": "attractiveness"}
CELEBA_INVERSE = {"Male": "gender", "Blurry": "quality"}  # 1 there is 0 here
PARTITION = {"0": "train", "1": "val", "2": "test"}  # CelebA's numbers


def celeba(archive: Archive, held_out: HeldOut) -> Listing:
    """Read CelebA: images, ``list_attr_celeba`` and, if present, ``list_landmarks_align_celeba`` and ``list_eval_partition``.

    Lists are ``.txt`` or ``.csv``. Labels are Male, Eyeglasses, Smiling, Attractive and the opposite of Blurry (quality). Splits
    come from the partition.
    """
    places = ListedFiles(images_in(archive, list(archive.sizes)))
    landmarks = {row.file: row for row in _celeba_list(archive, "list_landmarks_align_celeba", required=False)}
    partition = {row.file: row for row in _celeba_list(archive, "list_eval_partition", required=False)}
    labelled: dict[str, dict[str, float]] = {}
    split_of: dict[str, str] = {}
    for row in _celeba_list(archive, "list_attr_celeba", required=True):
        labels = {ours: str((int(_sign(row, name)) + 1) // 2) for name, ours in CELEBA.items()}
        labels |= {ours: str((1 - int(_sign(row, name))) // 2) for name, ours in CELEBA_INVERSE.items()}
        if row.file in landmarks:
            labels |= _keypoints(landmarks[row.file])
        name = _found(row, places, labelled)
        labelled[name] = _checked(labels, f"{row.file}, {row.where}")
        if partition:
            split_of[name] = _partition(row, partition)
    by = Splits(split_of, "list_eval_partition") if partition else splits_by_names(labelled, held_out, archive.where)
    return _listing(labelled, by, archive)


def utkface(archive: Archive, held_out: HeldOut) -> Listing:
    """Read UTKFace: ``26_1_0_20170116.jpg`` (age, gender, ...), or a csv with file, age and gender."""
    if any(name.endswith(".csv") for name in archive.sizes):
        return _by_csv(archive, held_out, needed=("age", "gender"), taken=("age", "gender"))
    labelled = {}
    for name in images_in(archive, list(archive.sizes)):
        parsed = re.match(r"(\d+)_(\d?)_", PurePosixPath(name).name)  # three names of the original lack the gender
        if parsed is None:
            expected = "a name like 26_1_0_20170116174525125.jpg is expected: age_gender_race_time"
            raise InputError("a name without age and gender", archive.place(name), expected)
        labelled[name] = _checked({"age": parsed[1], "gender": parsed[2]}, archive.place(name))
    return _listing(labelled, splits_by_names(labelled, held_out, archive.where), archive)


def mask_folders(archive: Archive, held_out: HeldOut) -> Listing:
    """Read two folders of images, ``with_mask`` and ``without_mask`` (``WithMask``, ...), optionally below folders of splits."""
    labelled = {}
    for name in images_in(archive, list(archive.sizes)):
        folder = re.sub(r"[^a-z]", "", PurePosixPath(name).parent.name.lower())
        if folder not in ("withmask", "withoutmask"):
            raise InputError("an image in neither with_mask nor without_mask", archive.place(name), "is the layout right?")
        labelled[name] = {"mask": float(folder == "withmask")}
    return _listing(labelled, splits_by_names(labelled, held_out, archive.where), archive)


def head_pose(archive: Archive, held_out: HeldOut) -> Listing:
    """Read images and a csv with file, yaw, pitch and roll in degrees."""
    needed = ("yaw", "pitch", "roll")
    return _by_csv(archive, held_out, needed, needed)


def attributes_csv(archive: Archive, held_out: HeldOut) -> Listing:
    """Read images and a csv with file and any columns of `datasets.shards.labels`; an empty cell is an absent label."""
    return _by_csv(archive, held_out, (), tuple(COLUMNS))


FaceName = Literal["celeba", "utkface", "mask_folders", "head_pose", "attributes_csv"]
FACE_LAYOUTS: dict[FaceName, Callable[[Archive, HeldOut], Listing]] = dict(
    zip(get_args(FaceName), (celeba, utkface, mask_folders, head_pose, attributes_csv), strict=True)
)


class _Row(NamedTuple):
    """A line of a list: the image that it names, its cells by column, and where it is, in words."""

    file: str
    cells: Mapping[str, str]
    where: str


def _by_csv(archive: Archive, held_out: HeldOut, needed: tuple[str, ...], taken: tuple[str, ...]) -> Listing:
    """Read one csv or more. Splits come from their column ``split``, else from their names or folders."""
    places = ListedFiles(images_in(archive, list(archive.sizes)))
    lists = [name for name in archive.sizes if name.endswith(".csv")]
    if not lists:
        raise InputError("no csv file", archive.where, f"one is expected: file,{','.join(needed or taken)}")
    labelled: dict[str, dict[str, float]] = {}
    split_of: dict[str, str] = {}
    for name in lists:
        folder, of_file = str(PurePosixPath(name).parent), split_of_file(name) if len(lists) > 1 else ""
        if not set(columns := csv_columns(archive.text(name))) & set(taken):
            raise InputError("no column with labels", archive.place(name), f"name columns as in: {', '.join(taken)}")
        for where, cells in csv_rows(archive.text(name), archive.place(name), ("file", *needed)):
            row = _Row(cells["file"], cells, where)
            image = _found(row, places, labelled, folder, of_file)
            labelled[image] = _checked({column: cells[column] for column in taken if column in columns}, f"{row.file}, {where}")
            if "split" in columns or of_file:
                split_of[image] = checked_split(cells["split"], where) if "split" in columns else of_file
    if split_of and (without := next((name for name in labelled if name not in split_of), None)):
        what = "an image without a split, while others have one"
        raise InputError(what, archive.place(without), "give all lists a column split")
    by = Splits(split_of, "the lists") if split_of else splits_by_names(labelled, held_out, archive.where)
    return _listing(labelled, by, archive)


def _celeba_list(archive: Archive, stem: str, *, required: bool) -> Iterator[_Row]:
    """Yield the rows of one of CelebA's lists, in the original form or as a csv.

    The original form has a count, the columns, and a line for each image; the partition has only these lines.
    """
    name = next((name for name in archive.sizes if PurePosixPath(name).name in (f"{stem}.txt", f"{stem}.csv")), None)
    if name is None:
        if required:
            root_above(archive, f"{stem}.txt", f"CelebA has its {stem}.txt, or .csv")
        return
    text = archive.text(name)
    if name.endswith(".csv"):
        file = next(iter(csv_columns(text)), "")
        yield from (_Row(row[file], row, where) for where, row in csv_rows(text, archive.place(name)))
        return
    table = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    columns = ["file", "partition"]
    if len(table) > 1 and len(table[0][1]) == 1:
        (_, (count,)), (_, header), *table = table
        columns = ["file", *header]
        if count != str(len(table)):
            raise InputError(f"{len(table)} lines where its first says {count}", archive.place(name), "is the download whole?")
    for number, cells in table:
        where = f"line {number} of {archive.place(name)}"
        if len(cells) != len(columns):
            raise InputError(f"{len(cells)} cells where {len(columns)} are expected", where, WHOLE)
        yield _Row(cells[0], dict(zip(columns, cells, strict=True)), where)


def _found(row: _Row, places: ListedFiles, listed: Mapping[str, object], beside: str = "", split: str = "") -> str:
    """Return the image that a row names; raises InputError where it does not exist, or an earlier row named it."""
    name = places.find(row.file, row.where, beside, split)
    if name in listed:
        raise InputError(f"the image '{row.file}' is listed twice", row.where, "keep one of its lines")
    return name


def _partition(row: _Row, partition: Mapping[str, _Row]) -> str:
    own = partition.get(row.file)
    if own is None:
        raise InputError(f"the partition does not name {row.file}", row.where, "is list_eval_partition whole?")
    number = next((cell for column, cell in own.cells.items() if column == "partition"), "")
    if number not in PARTITION:
        raise InputError(f"the partition of {row.file} is '{number}'", own.where, "0 (train), 1 (val) or 2 (test) is expected")
    return PARTITION[number]


def _listing(labelled: Mapping[str, Mapping[str, float]], splits: Splits, archive: Archive) -> Listing:
    """Return the listing of labelled images; raises InputError where none has a label."""
    if not any(labelled.values()):
        raise InputError(f"{len(labelled)} images and no label", archive.where, "is the list the right one?")
    samples = [Sample(splits.of[name], FACE, "", name, labels) for name, labels in labelled.items()]
    return Listing(samples, SIZE, mirror=True, splits_by=splits.by)


def _sign(row: _Row, column: str) -> str:
    value = row.cells.get(column)
    if value is None:
        raise InputError(f"no column {column}", row.where, "is it CelebA's list?")
    if value not in ("1", "-1"):
        raise InputError(f"{column} of {row.file} is '{value}'", row.where, "1 or -1 is expected")
    return value


def _keypoints(row: _Row) -> dict[str, str]:
    """Convert CelebA's landmarks, in pixels of the aligned image, to fractions of its sides."""
    theirs = [f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"]
    fractions = {}
    for place, (name, column) in enumerate(zip(theirs, KEYPOINTS, strict=True)):
        try:
            fractions[column] = str(float(row.cells[name]) / ALIGNED[place % 2])
        except (KeyError, ValueError) as error:
            raise InputError(f"no number under {name} for {row.file}", row.where, "is it CelebA's list?") from error
    return fractions


def _checked(labels: Mapping[str, str], where: str) -> dict[str, float]:
    values = {column: check_label(column, text, where) for column, text in labels.items()}
    return {column: value for column, value in values.items() if value is not None}
