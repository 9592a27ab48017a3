"""Decoding of samples to arrays. Pixels are as a viewer shows them: EXIF's orientation is applied."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datasets.media.image_header import PNG, bare_png, jpeg_orientation, read_header, upright
from datasets.numpy_files import array_of

Image = npt.NDArray[np.uint8]
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # endings of files that `decode` takes
MAX_BYTES = 512 << 20  # of a file that is decoded
# Images begin this many bytes after a multiple of 32. libjpeg-turbo writes rows that begin at such multiples past the cache,
# and a small JPEG then takes 15% longer to decode.
OFFSET = 16

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the caller reports a bad image, on one line
cv2.setNumThreads(0)  # loader workers are the parallelism; cv2's own pool would compete with them, and hangs after a fork


def decode(data: bytes | memoryview) -> Image:
    """Decode a JPEG, PNG, BMP or WebP to RGB, uint8 [H, W, 3]. Grey is copied to all channels, alpha is dropped.

    Raises:
        ValueError: not a complete image, or more pixels than `datasets.media.image_header.MAX_PIXELS`.
    """
    header = read_header(data)
    if data[:2] == b"\xff\xd8":
        pixels: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")  # strict: a truncated image is an error
    else:
        plain = bare_png(data) if data[:8] == PNG else data
        try:
            read = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error as error:
            raise ValueError("not an image that can be decoded") from error
        if read is None:
            raise ValueError("not an image, or one that is cut off")
        pixels = read  # type: ignore[assignment]
    return pixels if header.orientation == 1 else upright(pixels, header.orientation)


class Decoder:
    """Decodes images into a buffer that it reuses: an image is valid only until the next call.

    Allocating memory for each image takes a seventh of the time of decoding a small JPEG, as the kernel maps new pages each time.
    """

    def __init__(self) -> None:
        self._memory = _memory(1 << 16)

    def decode(self, data: bytes | memoryview, out: Image | None = None) -> Image:
        """Decode like `decode`. A JPEG of the size of ``out`` is decoded directly into it, and ``out`` itself is returned."""
        if data[:2] != b"\xff\xd8" or _orientation(data) != 1:
            return decode(data)
        try:
            image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=self._memory if out is None else out)
        except ValueError:  # the buffer is too small, or the image is bad, which the next try shows
            if out is not None:
                return self.decode(data)
            image = decode(data)
            self._memory = _memory(image.nbytes)
            return image
        return out if out is not None and image.shape == out.shape else image


def _orientation(data: bytes | memoryview) -> int:
    try:
        return jpeg_orientation(data)
    except (IndexError, ValueError):  # `decode` reports it with a better message
        return 0


def _memory(size: int) -> npt.NDArray[np.uint8]:
    memory = np.empty(size + 32, np.uint8)
    start = (OFFSET - memory.ctypes.data) % 32
    return memory[start : start + size]


def decode_sample(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Decode any sample of a shard: an image, or an array in numpy's npy format.

    Raises:
        ValueError: neither of them, or truncated.
    """
    if bytes(data[:6]) != b"\x93NUMPY":
        return decode(data)
    return array_of(data).copy()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Discard everything written to stderr, where libpng prints warnings; for single-threaded commands that report bad images."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
