"""Image bytes to pixels."""

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Image = npt.NDArray[np.uint8]

cv2.setNumThreads(0)  # loader workers are the parallelism; cv2's own pool would fight them, and hangs after a fork


def decode(data: bytes | memoryview) -> Image:
    """Decode a JPEG, PNG, BMP or WebP to RGB, uint8 [H, W, 3]. Grey is spread over the channels, alpha is dropped.

    Raises:
        ValueError: the bytes are not a whole image.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        if bytes(data[-2:]) != b"\xff\xd9" and b"\xff\xd9" not in bytes(data[-64:]):
            raise ValueError("the JPEG is cut off (no end marker)")
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")
        return image
    pixels = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if len(data) else None
    )
    if pixels is None:
        raise ValueError("not an image, or one that is cut off")
    return pixels  # type: ignore[return-value]
