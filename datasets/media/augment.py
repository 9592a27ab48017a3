"""Training images: resized, and changed at random in ways that keep who is on them (`datasets.shards.labels` changes the labels along).

The random numbers of a whole global batch come from one generator of (seed, step), so an image is changed in the same way
on whatever worker it is prepared. B images, H x W the size trained at.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.media.decode import Image
from datasets.seeding import generator

MEAN = np.array([124, 116, 104], np.uint8)  # ImageNet's, in 0..255: what the model sees as zero
GREY = MEAN.tolist()  # the same for OpenCV, which flips and fills 15 times as fast as NumPy where a pixel is three bytes


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images."""

    flip: bool | None = None
    """Mirror every second image; None: if the data set says that this keeps the identity (persons yes, letters no)."""
    shift: float = 0.05
    """Pad by this share of the height, then crop at random."""
    turn: float = 0.0
    """Turn about the centre by up to so many degrees, either way."""
    erase: float = 0.0
    """Fraction of images in which a random rectangle is erased (Zhong et al., Random Erasing, AAAI 2020)."""

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1 or not 0 <= self.erase <= 1:
            raise InputError("augment.shift and augment.erase are shares", "augment", "give numbers from 0 to 1")
        if not 0 <= self.turn <= 180:
            raise InputError(f"augment.turn is {self.turn}", "augment", "give degrees from 0 to 180")


@dataclass(frozen=True, eq=False)
class Changes:
    """What is done to each image of a global batch, in this order; arrays of [B], pixels of the H x W image."""

    flip: npt.NDArray[np.bool_]
    turn: npt.NDArray[np.float64]  # degrees, clockwise as seen
    down: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    erase: npt.NDArray[np.int64]  # [B, 4] top, left, height, width; height 0: nothing

    @cached_property
    def nothing(self) -> list[bool]:
        """Which images stay as they are, [B]."""
        unmoved = ~self.flip & (self.turn == 0) & (self.down == 0) & (self.right == 0)
        still: list[bool] = (unmoved & (self.erase[:, 2] == 0)).tolist()
        return still

    def apply(self, row: int, image: Image, out: Image) -> None:
        """Write an image that has the size trained at, [H, W, 3], into ``out``, which is other memory, as it is changed."""
        height, width = image.shape[:2]
        flip, down, right = bool(self.flip[row]), int(self.down[row]), int(self.right[row])
        if self.turn[row]:
            image, flip = turned(cv2.flip(image, 1) if flip else image, self.turn[row]), False  # type: ignore[arg-type]
        if flip:
            right = -right  # mirrored afterwards, in place
        if abs(down) >= height or abs(right) >= width:
            out[:] = MEAN
        elif down or right:
            source = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
            edges = max(0, down), max(0, -down), max(0, right), max(0, -right)
            cv2.copyMakeBorder(source, *edges, cv2.BORDER_CONSTANT, dst=out, value=GREY)
        else:
            out[:] = image
        if flip:
            cv2.flip(out, 1, dst=out)
        top, left, tall, wide = self.erase[row].tolist()
        if tall and wide:
            cv2.rectangle(out, (left, top), (left + wide - 1, top + tall - 1), GREY, cv2.FILLED)

    def geometry(self, rows: range, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """What moves the content of these rows [b, 4]: flip (0 or 1), turn in degrees, down and right as shares of (H, W)."""
        moves = [self.flip[rows], self.turn[rows], self.down[rows] / size[0], self.right[rows] / size[1]]
        return np.stack(moves, axis=1).astype(np.float32)


def draw_changes(config: AugmentConfig, mirror: bool, size: tuple[int, int], batch: int, seed: int, step: int) -> Changes:
    """The changes of the global batch of a step. ``mirror``: the data set says that mirroring keeps the identity."""
    rng, (height, width) = generator(seed, "augment", step), size
    u = rng.random((7, batch))
    flip = u[0] < (0.5 if (mirror if config.flip is None else config.flip) else 0)
    most = round(config.shift * height)
    area, ratio = 0.02 + u[4] * 0.31, np.exp((u[5] * 2 - 1) * np.log(3.3))  # torchvision's ranges; the shape is relative to H : W
    tall = np.minimum(np.sqrt(area * ratio) * height, height).astype(np.int64) * (u[3] < config.erase)
    wide = np.minimum(np.sqrt(area / ratio) * width, width).astype(np.int64)
    place = rng.random((2, batch))
    top, left = (place[0] * (height - tall + 1)).astype(np.int64), (place[1] * (width - wide + 1)).astype(np.int64)
    shifts = (u[1:3] * (2 * most + 1)).astype(np.int64) - most
    right = np.clip(shifts[1], -width, width)  # the padding follows the height, which may be many times the width
    turn = (rng.random(batch) * 2 - 1) * config.turn
    return Changes(flip, turn, shifts[0], right, np.stack([top, left, tall, wide], axis=1))


def turned(image: Image, degrees: float) -> Image:
    """An image turned about its centre, clockwise as seen; what comes in from outside is MEAN."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    out: Image = cv2.warpAffine(image, matrix, (width, height), borderValue=GREY)  # type: ignore[assignment]
    return out


def resize(image: Image, size: tuple[int, int]) -> Image:
    """An image at (H, W); its aspect ratio is not kept, as usual in re-identification."""
    if image.shape[:2] == size:
        return image
    shrinks = image.shape[0] > size[0] and image.shape[1] > size[1]
    out: Image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[assignment]
    return out
