"""Image headers: size and orientation as in Pillow, pictures and boxes as a viewer shows them, no decompression bombs."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from headers import ORIENTATION, RGB, huge, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from datasets.errors import InputError
from datasets.media.decode import Decoder, decode, decode_sample
from datasets.media.image_header import MAX_PIXELS, bare_png, read_header, shown_box, turned_size, upright

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(kind: str, orientation: int) -> None:
    data = picture(kind, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB"))
    for read in (decode, decode_sample, Decoder().decode, lambda data: decode(memoryview(data))):
        np.testing.assert_array_equal(read(data), expected)
    out = np.zeros_like(expected)
    np.testing.assert_array_equal(Decoder().decode(data, out), expected)
    assert read_header(data).shown == expected.shape[:2]
    assert read_header(data).orientation == orientation


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("before", [b"", b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", b"\xff\xe2\0\x06ICC_\xff\xff"])
def test_exif_of_either_byte_order_and_after_other_segments(order: str, before: bytes) -> None:
    tiff = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IHHHIHH", 8, 1, ORIENTATION, 3, 1, 8, 0)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    sink = io.BytesIO()
    Pillow.fromarray(RGB).save(sink, "JPEG")
    data = sink.getvalue()[:2] + before + segment + sink.getvalue()[2:]
    np.testing.assert_array_equal(decode(data), np.rot90(decode(sink.getvalue()), 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_stored_picture_lies_on_the_same_pixels_of_the_shown_one(orientation: int) -> None:
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[4:8, 9:21] = 255
    rows, columns = np.nonzero(upright(stored, orientation)[..., 0])
    height, width = upright(stored, orientation).shape[:2]
    expected = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
    assert shown_box((9 / 30, 4 / 20, 21 / 30, 8 / 20), orientation) == pytest.approx(expected)


def test_labels_say_which_picture_they_are_of() -> None:
    turned, plain = read_header(picture("JPEG", 6)), read_header(picture("JPEG", 3))
    assert turned.shown == (30, 20)
    assert not turned_size((30, 20), turned, "x")
    assert turned_size((20, 30), turned, "x")
    assert not turned_size(None, turned, "x")
    assert not turned_size((20, 30), plain, "x")  # turned by 180 degrees: unknowable, and labels are drawn on what is shown
    with pytest.raises(InputError, match=r"the labels are of an image of 7x5 pixels, and it has 20x30: x\.xml"):
        turned_size((5, 7), turned, "x.xml")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_picture_that_is_too_large_is_refused_before_memory_is_taken(kind: str) -> None:
    data = huge(kind, 30000)
    for read in (decode, decode_sample, Decoder().decode, read_header):
        with pytest.raises(ValueError, match=r"an image of \d+x\d+ pixels; at most"):
            read(data)


@given(st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]), st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6))
@settings(max_examples=300)
def test_a_damaged_picture_is_read_or_a_value_error(kind: str, at: int, value: int, cut: int) -> None:
    data = bytearray(picture(kind))
    data[at % min(len(data), 200)] = value  # most of what is parsed stands at the beginning
    try:
        header = read_header(bytes(data[: 1 + cut % (2 * len(data))]))
        assert 0 < header.height * header.width <= MAX_PIXELS
        decode(bytes(data))
    except ValueError:
        pass


def test_decoders_write_no_lines_of_their_own() -> None:
    """libpng prints warnings about colour profiles and damaged pixels to stderr."""
    with_profile, damaged = picture("PNG", icc_profile=b"broken" * 30), bytearray(picture("PNG"))
    damaged[-30] ^= 255
    assert bare_png(picture("PNG", 1))[:8] == b"\x89PNG\r\n\x1a\n"
    code = (
        "import sys; from datasets.media.decode import decode\n"
        f"decode({with_profile!r})\n"
        f"try: decode({bytes(damaged)!r})\nexcept ValueError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "a damaged PNG: a checksum is wrong\n")
