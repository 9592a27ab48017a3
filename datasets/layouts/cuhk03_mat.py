"""CUHK03 as published: ``cuhk-03.mat`` (MATLAB v7.3, which is HDF5), with its images as arrays of pixels.

``detected`` and ``labeled`` have a cell for each of five pairs of cameras; in it, a row for each person has up to ten images, the
first five of one camera. ``testsets`` has 20 lists of 100 test people. Names of images and the meaning of the new protocol's
lists are those of torchreid and of CUHK03-NP.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.held_out import first_of_each_camera
from datasets.layouts.listing import Listing, Sample, root_above
from datasets.media.image_header import MAX_PIXELS
from datasets.splits import HeldOut

if TYPE_CHECKING:
    import h5py

MAT = "cuhk-03.mat"
OF_A_CAMERA = 5  # images of a person
WHOLE = "is it CUHK03's own file, and whole?"


def cuhk03_mat(archive: Archive, _: HeldOut, boxes: Literal["detected", "labeled"]) -> Listing:
    """Read CUHK03's images in the boxes of a detector or of people; their pixels are stored as PNG.

    Splits are those of the new protocol if its ``cuhk03_new_protocol_config_<boxes>.mat`` is there. Else the first of the 20 test
    sets is held out: the first image of a person in each camera is a query, and the others are the gallery.
    """
    import h5py

    name = root_above(archive, MAT, f"{MAT} of cuhk03_release is expected") + MAT
    place = archive.place(name)
    file = archive.closing.enter_context(tempfile.TemporaryFile(prefix="hardshard-"))  # noqa: SIM115
    try:
        with h5py.File(archive.open(name), "r") as mat:
            images = _stored(_images(mat, boxes, place), file)
            test = {(int(pair), int(person)) for pair, person in _array(mat, _cells(mat, "testsets", place)[0], place)}
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise InputError(f"not a {MAT} that can be read ({error})", place, WHOLE) from error
    if not images:
        raise InputError(f"no {boxes} images", place, WHOLE)

    def read(image: str) -> bytes:
        start, size = images[image]
        file.seek(start)
        return file.read(size)

    split_of, by = _new_protocol(archive, boxes)
    if missing := sorted(split_of.keys() - images.keys()):
        raise InputError(f"the image {missing[0]} is not there", archive.place(by), f"are it and {MAT} whole?")
    samples = [_sample(image, split_of.get(image, "")) for image in images if not split_of or image in split_of]
    if not split_of:
        samples, by = _classic(samples, test), f"the first test set of {name}"
    inside = replace(archive, sizes={image: size for image, (_, size) in images.items()}, _read=read)
    return Listing(samples, (160, 64), mirror=True, splits_by=by, others=f"not named by {by}", archive=inside)


def _sample(image: str, split: str) -> Sample:
    pair, person, camera, _ = image.split("_")
    return Sample(split, f"{pair}_{person}", f"c{camera}", image)


def _classic(samples: list[Sample], test: set[tuple[int, int]]) -> list[Sample]:
    held = {f"{pair}_{person:03d}" for pair, person in test}
    train = [replace(sample, split="train") for sample in samples if sample.identity not in held]
    return train + first_of_each_camera([sample for sample in samples if sample.identity in held])


def _stored(images: Iterator[tuple[str, npt.NDArray[np.uint8]]], file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Append the images [H, W, 3] to a file as PNG; returns where each begins, and its size."""
    places = {}
    for name, pixels in images:
        data = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))[1].tobytes()
        places[name] = (file.tell(), len(data))
        file.write(data)
    return places


def _images(mat: "h5py.File", boxes: str, place: str) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield the images by name, ``<pair>_<person>_<camera>_<number>.png``, each [H, W, 3]."""
    for pair, cell in enumerate(_cells(mat, boxes, place), 1):
        for person, row in enumerate(_array(mat, cell, place), 1):
            for number, reference in enumerate(row, 1):
                pixels = _array(mat, reference, place)
                if pixels.ndim == 3:  # else an empty cell: not everybody has ten images
                    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
                        raise InputError(f"an image of {pixels.dtype} {list(pixels.shape)}", place, WHOLE)
                    yield f"{pair}_{person:03d}_{1 + (number > OF_A_CAMERA)}_{number:02d}.png", pixels


def _cells(mat: "h5py.File", name: str, place: str) -> list[Any]:
    """Return the references of a variable that is a column or a row of cells."""
    import h5py

    if not isinstance(mat.get(name, getlink=True), h5py.HardLink):  # another kind could lead to another file
        raise InputError(f"no variable {name}", place, WHOLE)
    return list(_array(mat, name, place).ravel())


def _array(mat: "h5py.File", name: Any, place: str) -> npt.NDArray[Any]:
    """Read a variable by name or reference, with MATLAB's order of axes."""
    data = mat[name]
    if data.external or data.is_virtual or data.size > 3 * MAX_PIXELS:
        raise InputError("a variable too large, or stored in another file", place, WHOLE)
    found: npt.NDArray[Any] = data[()].T
    return found


def _new_protocol(archive: Archive, boxes: str) -> tuple[dict[str, str], str]:
    """Return the split of each image by the new protocol (Zhong et al., CVPR 2017), and its file; empty without one."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    file = f"cuhk03_new_protocol_config_{boxes}.mat"
    name = next((name for name in archive.sizes if PurePosixPath(name).name == file), "")
    if not name:
        return {}, ""
    split_of: dict[str, str] = {}
    try:
        found = loadmat(BytesIO(archive.read(name)), variable_names=["filelist", "train_idx", "query_idx", "gallery_idx"])
        names = [str(cell.item()) for cell in found["filelist"].ravel()]
        for split in ("train", "query", "gallery"):
            for number in found[f"{split}_idx"].ravel().tolist():
                if not 1 <= number <= len(names) or names[number - 1] in split_of:
                    raise InputError(f"image {number} of its {split} list", archive.place(name), "once, from 1 on, is expected")
                split_of[names[number - 1]] = split
    except (MatReadError, OSError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError) as error:
        raise InputError(f"not a list of the protocol ({error})", archive.place(name), WHOLE) from error
    return split_of, name
