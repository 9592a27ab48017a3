"""Adds five keypoints to a packed set of faces, found by MTCNN (Zhang et al., 2016): to train and measure keypoints.

    pip install --no-deps facenet-pytorch              holds the weights; it does not need the old torch that it asks for
    python -m benchmarks.face_points SHARDS FOLDER
    python -m datasets.pack attributes_csv FOLDER NEW_SHARDS

The points are another network's, so a figure measured on them is the agreement with that network. Images in which it finds no
face keep their other labels.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.loading.store import read_samples
from datasets.media.decode import decode
from datasets.shards.index import Index, read_index, split_of
from datasets.shards.labels import COLUMNS, KEYPOINTS

SURE = 0.95  # probability of a face, from which its points are taken
SMALLEST = 0.3  # of the image's shorter side: the smallest face that is looked for
TOGETHER = 32  # images of one size in a pass
Images = Sequence[npt.NDArray[np.uint8]]
Find = Callable[[Images], list[npt.NDArray[np.float64] | None]]  # images -> points [5, 2] in pixels, or None


@dataclass(frozen=True)
class FacePoints:
    """Add keypoints."""

    shards: str = field(metadata=POSITIONAL)
    """The set, packed by a layout of faces."""
    folder: Path = field(metadata=POSITIONAL)
    """Gets the images and labels.csv, for the layout attributes_csv."""


def write_with_points(index: Index, folder: Path, find: Find) -> tuple[int, int]:
    """Write each image of the set, and labels.csv with its labels, split and points; returns the images and those with points."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [name for name in COLUMNS if name in index.labels and name not in KEYPOINTS]
    count = found = 0
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "split", *labels, *KEYPOINTS])
        for name in index.splits:
            split = split_of(index, name)
            for first in range(0, len(split), TOGETHER):
                samples = split.samples(np.arange(first, min(first + TOGETHER, len(split)), dtype=np.int64))
                stored = [data for data in read_samples(index, samples) if isinstance(data, bytes)]
                if len(stored) < len(samples):
                    raise InputError("an image cannot be read", index.url, "check the set with `python -m datasets.inspect`")
                images = [decode(data) for data in stored]
                for sample, data, image, points in zip(samples.tolist(), stored, images, find(images), strict=True):
                    own = f"{name}-{count:06d}.jpg"
                    (folder / own).write_bytes(data)
                    known = ["" if np.isnan(index.labels[label][sample]) else index.labels[label][sample] for label in labels]
                    height, width = image.shape[:2]
                    placed = [""] * len(KEYPOINTS) if points is None else (points / (width, height)).round(5).ravel().tolist()
                    rows.writerow([own, name, *known, *placed])
                    count, found = count + 1, found + (points is not None)
    return count, found


def mtcnn(images: Images) -> list[npt.NDArray[np.float64] | None]:
    """The points of each image's largest face; raises InputError if facenet-pytorch is not installed."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError as error:
        raise InputError("facenet-pytorch is not installed", "", "pip install --no-deps facenet-pytorch") from error
    sizes = {image.shape[:2] for image in images}
    finder = MTCNN(min_face_size=round(SMALLEST * min(min(size) for size in sizes)))
    groups = [[place for place, image in enumerate(images) if image.shape[:2] == size] for size in sizes]
    points: list[npt.NDArray[np.float64] | None] = [None] * len(images)
    for group in groups:  # it takes images of one size
        _, probabilities, found = finder.detect([Image.fromarray(images[place]) for place in group], landmarks=True)
        for place, probability, own in zip(group, probabilities, found, strict=True):
            if probability[0] is not None and probability[0] >= SURE:
                points[place] = np.asarray(own[0], dtype=np.float64)
    return points


def main(options: FacePoints) -> None:
    """Write the folder, and print how many images have points."""
    count, found = write_with_points(read_index(options.shards), options.folder, mtcnn)
    print(f"{found:,} of {count:,} images with keypoints in {options.folder}")


if __name__ == "__main__":
    run_main(lambda: main(parse(FacePoints, "python -m benchmarks.face_points")))
