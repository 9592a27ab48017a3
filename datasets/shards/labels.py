"""Labels of face images: the known columns, their ranges, and how they follow an augmented image.

C columns of `COLUMNS`; an absent label is NaN.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.shards.index import Split

Floats = npt.NDArray[np.float32]

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left as seen in the picture
KEYPOINTS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
COLUMNS: dict[str, tuple[float, float]] = {  # least and greatest value
    **dict.fromkeys(KEYPOINTS, (-0.5, 1.5)),  # fractions of the image's width and height; a point may lie outside
    "gender": (0, 1),  # 0 male, 1 female, as UTKFace numbers them
    "glasses": (0, 1),
    "mask": (0, 1),
    "smile": (0, 1),
    "age": (0, 120),  # years
    "quality": (0, 1),
    "attractiveness": (0, 1),
    "yaw": (-180, 180),  # degrees
    "pitch": (-180, 180),
    "roll": (-180, 180),  # clockwise as seen in the picture
}


def check_label(column: str, text: str, where: str) -> float | None:
    """Parse a label from a file; None if it is absent (empty or ``nan``).

    Raises:
        InputError: not a number, or outside the column's range.
    """
    if text.strip().lower() in ("", "nan"):
        return None
    least, most = COLUMNS[column]
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{column} is '{text}', not a number", where, "correct it, or leave it empty") from error
    if not least <= value <= most:
        raise InputError(f"{column} is {value:g}, outside {least:g}..{most:g}", where, "correct it, or leave it empty")
    return value


def labels_by_position(split: Split, columns: Sequence[str]) -> Floats:
    """Return the labels of a split's samples, [M, C]; NaN where one is absent."""
    samples, labels = split.samples(np.arange(len(split))), split.index.labels
    absent = np.full(len(split), np.nan, np.float32)
    return np.stack([labels[name][samples] if name in labels else absent for name in columns], axis=1)


def moved_labels(labels: Floats, columns: Sequence[str], moves: Floats, size: tuple[int, int], *, make_roll: bool) -> Floats:
    """Move labels [b, C] with their augmented images of (H, W); ``moves`` [b, 4] as from `Changes.geometry`.

    ``make_roll``: an image without a roll counts as upright, so that its turn becomes its roll. A turn does not change yaw and
    pitch.
    """
    out = {name: labels[:, i] for i, name in enumerate(columns)}
    flip, turn = moves[:, 0] > 0, moves[:, 1]
    if KEYPOINTS[0] in out:
        out |= _moved_points(out, moves, size)
    for name in ("yaw", "roll"):
        if name in out:
            out[name] = np.where(flip, -out[name], out[name])
    if "roll" in out:
        upright = np.nan_to_num(out["roll"], nan=0.0) if make_roll else out["roll"]
        out["roll"] = (upright + turn + 180) % 360 - 180
    return np.stack([out[name] for name in columns], axis=1).astype(np.float32)


def _moved_points(labels: dict[str, Floats], moves: Floats, size: tuple[int, int]) -> dict[str, Floats]:
    (height, width), (flip, turn, down, right) = size, moves.T
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    moved: dict[str, Floats] = {}
    for point in POINTS:
        side, _, part = point.partition("_")
        other = f"{'right' if side == 'left' else 'left'}_{part}" if part else point
        x = np.where(flip > 0, 1 - labels[f"{other}_x"], labels[f"{point}_x"])
        y = np.where(flip > 0, labels[f"{other}_y"], labels[f"{point}_y"])
        across, along = (x - 0.5) * width, (y - 0.5) * height  # pixels from the centre
        moved[f"{point}_x"] = 0.5 + (across * cos - along * sin) / width + right
        moved[f"{point}_y"] = 0.5 + (across * sin + along * cos) / height + down
    return moved
