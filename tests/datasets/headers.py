"""Image files whose headers say something unusual: an EXIF orientation, or a large picture in a small file."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image as Pillow

ORIENTATION = 0x0112
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def picture(kind: str, orientation: int = 1, **options: Any) -> bytes:
    """An image file with EXIF."""
    exif = Pillow.Exif()
    exif[0x010E] = "a description"
    exif[ORIENTATION] = orientation
    sink = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    Pillow.fromarray(RGB).save(sink, kind, exif=exif, **more, **options)
    return sink.getvalue()


def huge(kind: str, side: int) -> bytes:
    """A small file whose header says a large picture."""
    data = bytearray(picture(kind))
    if kind == "JPEG":
        at = data.find(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", min(side, 65500), min(side, 65500))
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, -side)
    else:
        data[20:21], data[24:30] = b"\0", (min(side, 16383) - 1).to_bytes(3, "little") * 2
    return bytes(data)
