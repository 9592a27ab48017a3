"""Frame strips: STRIP neighbouring frames of a clip in one file of a shard, so that a reader can fetch only the frames it needs.

RGB frames are stacked vertically in a JPEG, flow in a PNG (lossless), skeletons in an npy file. A clip of T frames has
ceil(T / STRIP) strips; only the last may be shorter.
"""

import io
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datasets.media.decode import decode_sample

STRIP = 8
QUALITY = 90
LONGEST = 65_500  # pixels of a side that a JPEG may have
MAX_PIXELS = 1 << 27  # of a strip: what `datasets.media.decode` takes
Stream = Literal["rgb", "flow", "skeletons"]
SUFFIX: dict[Stream, str] = {"rgb": ".jpg", "flow": ".png", "skeletons": ".npy"}
Frames = npt.NDArray[Any]  # uint8 [T, H, W, 3], or of skeletons float32 [T, J, D]


def strips_of(frames: Frames, stream: Stream) -> list[bytes]:
    """Encode a clip's frames as strips.

    Raises:
        ValueError: the frames are too large for a picture that can be decoded again.
    """
    height, width = frames.shape[1:3]
    if stream != "skeletons" and (max(STRIP * height, width) > LONGEST or STRIP * height * width > MAX_PIXELS):
        raise ValueError(f"frames of {height}x{width} are too large for strips of {STRIP}: lower --side")
    return [_encode(frames[start : start + STRIP], stream) for start in range(0, len(frames), STRIP)]


def frames_of_strip(data: bytes | memoryview, count: int) -> Frames:
    """Decode the ``count`` frames of a strip.

    Raises:
        ValueError: it cannot be decoded, or holds another number of frames.
    """
    strip = decode_sample(data)
    if strip.dtype != np.uint8:
        frames = strip
    elif strip.shape[0] % count:
        raise ValueError(f"a picture {strip.shape[0]} rows high is no strip of {count} frames")
    else:
        frames = strip.reshape(count, -1, *strip.shape[1:])
    if len(frames) != count:
        raise ValueError(f"{len(frames)} frames where {count} are expected")
    return frames


def _encode(frames: Frames, stream: Stream) -> bytes:
    if stream == "skeletons":
        sink = io.BytesIO()
        np.save(sink, np.ascontiguousarray(frames, np.float32))
        return sink.getvalue()
    picture = np.ascontiguousarray(frames.reshape(-1, *frames.shape[2:]))
    if stream == "rgb":
        return bytes(simplejpeg.encode_jpeg(picture, quality=QUALITY))
    done, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return png.tobytes()
