"""Random augmentation of training images: flip, shift, turn, paste a patch of another image, change colours, erase.

`datasets.shards.labels` moves the labels accordingly.
The random numbers of a whole global batch come from one generator of (seed, step), so the result for an image does not depend
on the worker that prepares it. B images of the global batch, H x W the training size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.media.decode import Image
from datasets.seeding import generator

MEAN = np.array([124, 116, 104], np.uint8)  # ImageNet's mean in 0..255, which normalisation maps to zero
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: what red, green and blue add to the brightness
POOL = 128  # images that patches are cut from
GREY = MEAN.tolist()  # the same for OpenCV, which flips and fills three-byte pixels 15 times as fast as NumPy


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images."""

    flip: bool | None = None
    """Mirror every second image at random; None: only if the data set allows it (persons: yes, letters: no)."""
    shift: float = 0.05
    """Pad by this fraction of the height, then crop at random."""
    turn: float = 0.0
    """Rotate about the centre by up to this many degrees, in either direction."""
    erase: float = 0.0
    """Fraction of images in which a random rectangle is erased (Zhong et al., Random Erasing, AAAI 2020)."""
    jitter: float = 0.0
    """Change brightness, contrast and saturation at random, each by up to this fraction."""
    patch: float = 0.0
    """Fraction of images onto which a random rectangle of another image is pasted, as if something hid a part (Zhou et al.,
    OSNet, ICCV 2019). The rectangles come from 128 training images, the same for the whole run."""

    def __post_init__(self) -> None:
        for name in ("shift", "erase", "jitter", "patch"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augment.{name} is {getattr(self, name)}", "augment", "give a fraction from 0 to 1")
        if not 0 <= self.turn <= 180:
            raise InputError(f"augment.turn is {self.turn}", "augment", "give degrees from 0 to 180")


@dataclass(frozen=True, eq=False)
class Changes:
    """The random changes of each image of a global batch, in the order of application; arrays [B], in pixels of H x W."""

    flip: npt.NDArray[np.bool_]
    turn: npt.NDArray[np.float64]  # degrees, clockwise as seen
    down: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    erase: npt.NDArray[np.int64]  # [B, 4] top, left, height, width; height 0: nothing
    colour: npt.NDArray[np.float64] | None  # [B, 3, 4]: maps red, green, blue and 1 to the new colour; None: no change
    patch: npt.NDArray[np.int64]  # [B, 7] height (0: nothing) and width, image of the pool, top and left there, top and left here

    @cached_property
    def nothing(self) -> list[bool]:
        """Which images are not changed at all, [B]."""
        unmoved = ~self.flip & (self.turn == 0) & (self.down == 0) & (self.right == 0)
        still: list[bool] = (unmoved & (self.erase[:, 2] == 0) & (self.patch[:, 0] == 0) & (self.colour is None)).tolist()
        return still

    def apply(self, row: int, image: Image, out: Image, pool: Sequence[Image] = ()) -> None:
        """Write the changed image [H, W, 3] to ``out``, which must not share its memory. ``pool``: the `POOL` images [H, W, 3]
        that patches are cut from, if there are patches."""
        height, width = image.shape[:2]
        flip, down, right = bool(self.flip[row]), int(self.down[row]), int(self.right[row])
        if self.turn[row]:
            image, flip = turned(cv2.flip(image, 1) if flip else image, self.turn[row]), False  # type: ignore[arg-type]
        if flip:
            right = -right  # as ``out`` is mirrored afterwards, in place
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
        tall, wide, number, *there, top, left = self.patch[row].tolist()
        if tall:
            out[top : top + tall, left : left + wide] = pool[number][there[0] : there[0] + tall, there[1] : there[1] + wide]
        if self.colour is not None:
            cv2.transform(out, self.colour[row], dst=out)  # rounds, and clips to 0..255
        top, left, tall, wide = self.erase[row].tolist()
        if tall and wide:
            cv2.rectangle(out, (left, top), (left + wide - 1, top + tall - 1), GREY, cv2.FILLED)

    def geometry(self, rows: range, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return how these rows were moved, [b, 4]: flip (0 or 1), turn in degrees, down and right as fractions of (H, W)."""
        moves = [self.flip[rows], self.turn[rows], self.down[rows] / size[0], self.right[rows] / size[1]]
        return np.stack(moves, axis=1).astype(np.float32)


def draw_changes(config: AugmentConfig, mirror: bool, size: tuple[int, int], batch: int, seed: int, step: int) -> Changes:
    """Draw the changes of a step's global batch. ``mirror``: whether the data set allows mirroring."""
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
    # Drawn last, so that the other changes are the same without it.
    colour = colour_changes(1 + (rng.random((3, batch)) * 2 - 1) * config.jitter) if config.jitter else None
    patch = draw_patches(rng, config.patch, size, batch) if config.patch else np.zeros((batch, 7), np.int64)
    return Changes(flip, turn, shifts[0], right, np.stack([top, left, tall, wide], axis=1), colour, patch)


def draw_patches(rng: np.random.Generator, fraction: float, size: tuple[int, int], batch: int) -> npt.NDArray[np.int64]:
    """Draw patches (`Changes.patch`): an area of 1 to 50% and a shape of 1:10 to 10:1, the ranges of OSNet's code, relative to
    H : W; what is higher or wider than the image is cut. Its turning and mirroring of patches are left out."""
    u, limits = rng.random((8, batch)), np.array(size)[:, None]
    area, ratio = 0.01 + 0.49 * u[1], 10 ** (2 * u[2] - 1)
    shape = np.minimum(np.sqrt([area * ratio, area / ratio]) * limits, limits).astype(np.int64) * (u[0] < fraction)
    corners = (u[4:] * np.tile(limits - shape + 1, (2, 1))).astype(np.int64)
    return np.concatenate([shape, [(u[3] * POOL).astype(np.int64)], corners]).T


def colour_changes(factors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The changes of colour [B, 3, 4] by factors [3, B] of brightness, contrast (about the grey of ImageNet's mean) and
    saturation: all three are linear in the colour, so one matrix does them."""
    brightness, contrast, saturation = factors[:, :, None, None]
    mixed = saturation * np.eye(3) + (1 - saturation) * LUMA  # rows: what makes up the new red, green, blue
    added = np.broadcast_to((1 - contrast) * (LUMA @ MEAN), (len(mixed), 3, 1))
    return np.concatenate([contrast * brightness * mixed, added], axis=2)


def turned(image: Image, degrees: float) -> Image:
    """Rotate an image about its centre, clockwise; what comes in from outside is MEAN."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    out: Image = cv2.warpAffine(image, matrix, (width, height), borderValue=GREY)  # type: ignore[assignment]
    return out


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Resize an image to (H, W), without keeping its aspect ratio, as usual in re-identification."""
    if image.shape[:2] == size:
        return image
    shrinks = image.shape[0] > size[0] and image.shape[1] > size[1]
    out: Image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[assignment]
    return out
