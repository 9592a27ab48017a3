"""The bytes of samples to arrays."""

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Image = npt.NDArray[np.uint8]
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # endings of files that `decode` takes
# Where images begin, in bytes after a multiple of 32: to rows at such multiples libjpeg-turbo writes past the cache, and a small
# JPEG takes 15% longer to decode.
OFFSET = 16

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a bad image is named by whoever asked for it, on one line
cv2.setNumThreads(0)  # loader workers are the parallelism; cv2's own pool would fight them, and hangs after a fork


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an image; of a JPEG from its header. Raises ValueError as `decode`."""
    if data[:2] == b"\xff\xd8":
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return height, width
    height, width, _ = decode(data).shape
    return height, width


def decode(data: bytes | memoryview) -> Image:
    """Decode a JPEG, PNG, BMP or WebP to RGB, uint8 [H, W, 3]. Grey is spread over the channels, alpha is dropped.

    Raises:
        ValueError: the bytes are not a whole image.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")  # strict: one that is cut off is an error
        return image
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # no bytes at all, or a header that asks for more pixels than OpenCV allows
        raise ValueError("not an image that can be decoded") from error
    if pixels is None:
        raise ValueError("not an image, or one that is cut off")
    return pixels  # type: ignore[return-value]


class Decoder:
    """Decodes one image after another into memory of its own, which it writes again: an image is good until the next.

    Fresh memory costs a seventh of decoding a small JPEG: its pages come from the kernel, and go back with the image.
    """

    def __init__(self) -> None:
        self._memory = _memory(1 << 16)

    def decode(self, data: bytes | memoryview, out: Image | None = None) -> Image:
        """As `decode`, and as ``out`` itself if that is given and has the image's size: a JPEG is then decoded to its place."""
        if data[:2] != b"\xff\xd8":
            return decode(data)
        try:
            image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=self._memory if out is None else out)
        except ValueError:  # too little memory, or a bad image, which is one again
            if out is not None:
                return self.decode(data)
            image = decode(data)
            self._memory = _memory(image.nbytes)
            return image
        return out if out is not None and image.shape == out.shape else image


def _memory(size: int) -> npt.NDArray[np.uint8]:
    memory = np.empty(size + 32, np.uint8)
    start = (OFFSET - memory.ctypes.data) % 32
    return memory[start : start + size]


def decode_sample(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Decode whatever a shard may hold: an image, or numbers in numpy's npy format.

    Raises:
        ValueError: the bytes are neither, or cut off.
    """
    if bytes(data[:6]) != b"\x93NUMPY":
        return decode(data)
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
