"""Headers of JPEG, PNG, BMP and WebP files: height, width and orientation.

Orientation is EXIF's: 1 as stored, 2 to 8 mirrored or rotated. A viewer applies it, so `datasets.media.decode` does too;
`shown_box` moves boxes that were annotated on the stored picture.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datasets.errors import InputError

MAX_PIXELS = 1 << 27  # of an image: 134 million, 400 MB as RGB
PNG = b"\x89PNG\r\n\x1a\n"
NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # chunks that the pixels depend on
SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame's size
BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG's markers without a length
TURNED = frozenset({5, 6, 7, 8})  # orientations by which height and width change places


class Header(NamedTuple):
    """``height`` and ``width`` as stored; ``orientation`` from 1 to 8."""

    height: int
    width: int
    orientation: int

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width as a viewer shows the image."""
        return (self.width, self.height) if self.orientation in TURNED else (self.height, self.width)


def read_header(data: bytes | memoryview) -> Header:
    """Read the header of an image file; no pixels are decoded.

    Raises:
        ValueError: none of these formats, truncated, without area, or more than `MAX_PIXELS`.
    """
    start = bytes(data[:12])
    try:
        if start[:2] == b"\xff\xd8":
            header = _jpeg(data)
        elif start[:8] == PNG:
            header = _png(data)
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            header = _webp(data)
        elif start[:2] == b"BM":
            header = _bmp(data)
        else:
            raise ValueError("not a JPEG, PNG, BMP or WebP image")
    except (struct.error, IndexError) as error:
        raise ValueError("an image that is cut off") from error
    if header.height < 1 or header.width < 1:
        raise ValueError(f"an image of {header.width}x{header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise ValueError(f"an image of {header.width}x{header.height} pixels; at most {MAX_PIXELS:,} are read")
    return header


def jpeg_orientation(data: bytes | memoryview) -> int:
    """Return the orientation in a JPEG's EXIF, 1 without one; raises IndexError or struct.error where it is truncated."""
    return _jpeg(data, only_orientation=True).orientation


def _jpeg(data: bytes | memoryview, *, only_orientation: bool = False) -> Header:
    """Walk the segments up to the frame's size. EXIF comes before the tables (0xDB), and these before the size."""
    at, orientation = 2, 1
    while True:
        if data[at] != 0xFF:
            raise ValueError("a damaged JPEG")
        marker = data[at + 1]
        if marker == 0xFF or marker in BARE:  # padding, or a marker without a length
            at += 1 if marker == 0xFF else 2
            continue
        if marker in SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header(height, width, orientation)
        if only_orientation and (marker == 0xDB or orientation != 1):
            return Header(0, 0, orientation)
        if marker in (0xD9, 0xDA):
            raise ValueError("a JPEG without a size")
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1 and bytes(data[at + 4 : at + 10]) == b"Exif\0\0":
            orientation = exif_orientation(bytes(data[at + 10 : at + 2 + length]))
        at += 2 + length


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data (a TIFF header and its first directory); 1 where none can be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(data: bytes | memoryview) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    return Header(height, width, next((exif_orientation(exif) for name, exif in _chunks(data, PNG, ">") if name == b"eXIf"), 1))


def _webp(data: bytes | memoryview) -> Header:
    kind = bytes(data[12:16])
    orientation = 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(side, "little") + 1 for side in struct.unpack_from("<3s3s", data, 24))
        if data[20] & 8:
            found = (exif.removeprefix(b"Exif\0\0") for name, exif in _chunks(data, data[:12], "<") if name == b"EXIF")
            orientation = next((exif_orientation(exif) for exif in found), 1)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Header(height, width, orientation)


def _bmp(data: bytes | memoryview) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return Header(abs(height), width, 1)


def _chunks(data: bytes | memoryview, start: bytes | memoryview, order: str) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG (">") or a RIFF file ("<") as (name, data); only EXIF data is copied."""
    found, at = [], len(start)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(f"{order}I4s" if order == ">" else "<4sI", data, at)[:: 1 if order == ">" else -1]
        found.append((name, bytes(data[at + 8 : at + 8 + length]) if name in (b"eXIf", b"EXIF") else b""))
        at += length + (12 if order == ">" else 8 + length % 2)
    return found


def bare_png(data: bytes | memoryview) -> bytes | memoryview:
    """Return a PNG without the chunks that its pixels do not depend on: libpng prints warnings about them to stderr.

    Raises:
        ValueError: a chunk's checksum is wrong, or the file is cut off.
    """
    at, kept, bare = len(PNG), [bytes(data[: len(PNG)])], True
    while True:
        try:
            length, name = struct.unpack_from(">I4s", data, at)
            (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        except struct.error as error:
            raise ValueError("a PNG that is cut off") from error
        if name in NEEDED:
            if zlib.crc32(data[at + 4 : at + 8 + length]) != crc:
                raise ValueError("a damaged PNG: a checksum is wrong")
            kept.append(bytes(data[at : at + 12 + length]))
        else:
            bare = False
        at += 12 + length
        if name == b"IEND":
            return data if bare else b"".join(kept)


def upright(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return the pixels [H, W, 3] as a viewer shows them; [W, H, 3] where they are rotated by 90 degrees."""
    if orientation in TURNED:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def shown_box(box: tuple[float, float, float, float], orientation: int) -> tuple[float, float, float, float]:
    """Move a box (left, top, right, bottom, in fractions of the sides) from the stored picture to the one that is shown."""
    left, top, right, bottom = box
    if orientation in TURNED:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    return left, top, right, bottom


def turned_size(said: tuple[int, int] | None, header: Header, where: str) -> bool:
    """Whether labels that state the image size ``said`` (height, width) are of the stored picture, not of the shown one.

    Raises:
        InputError: the image has neither size.
    """
    if said is None or said == header.shown:
        return False
    if said == (header.height, header.width):
        return True
    height, width = header.shown
    what = f"the labels are of an image of {said[1]}x{said[0]} pixels, and it has {width}x{height}"
    raise InputError(what, where, "give the image that was labelled, or correct the labels")
