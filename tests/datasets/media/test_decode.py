"""Decoding: pixels as Pillow has them, and a ValueError for whatever is not a whole image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from datasets.media.decode import Decoder, decode

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (24, 18, 3), dtype=np.uint8)
GREY = rng.integers(0, 256, (24, 18), dtype=np.uint8)
WIDE = rng.integers(0, 65536, (24, 18), dtype=np.uint16)


def encoded(image: Pillow.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def spread(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


JPEG = encoded(Pillow.fromarray(RGB), "JPEG", quality=90)
PNG = encoded(Pillow.fromarray(RGB), "PNG")
BMP = encoded(Pillow.fromarray(RGB), "BMP")
WEBP = encoded(Pillow.fromarray(RGB), "WEBP", lossless=True)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(Pillow.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_jpeg_is_pillows(options: dict[str, object]) -> None:
    data = encoded(Pillow.fromarray(RGB), "JPEG", **options)
    np.testing.assert_array_equal(decode(data), np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB")))


def test_grey_is_copied_to_all_channels() -> None:
    np.testing.assert_array_equal(decode(encoded(Pillow.fromarray(GREY), "PNG")), spread(GREY))
    data = encoded(Pillow.fromarray(GREY), "JPEG")
    np.testing.assert_array_equal(decode(data), spread(np.asarray(Pillow.open(io.BytesIO(data)))))


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([RGB, GREY])
    np.testing.assert_array_equal(decode(encoded(Pillow.fromarray(rgba), "PNG")), RGB)


def test_16_bits_keep_the_higher_8() -> None:
    found = decode(encoded(Pillow.fromarray(WIDE), "PNG"))
    assert found.dtype == np.uint8
    assert abs(found.astype(int) - spread(WIDE / 257)).max() <= 1


def test_1_bit() -> None:
    bits = GREY > 127
    np.testing.assert_array_equal(decode(encoded(Pillow.fromarray(bits), "PNG")), spread(bits * np.uint8(255)))


def test_palette() -> None:
    palette = Pillow.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("data", [JPEG, PNG, BMP, WEBP], ids=["jpeg", "png", "bmp", "webp"])
def test_memoryviews_and_single_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(decode(memoryview(data)), decode(data))
    assert decode(encoded(Pillow.new("RGB", (1, 1)), "PNG")).shape == (1, 1, 3)


@pytest.mark.parametrize("data", [JPEG, PNG, BMP, WEBP], ids=["jpeg", "png", "bmp", "webp"])
def test_cut_off(data: bytes) -> None:
    for length in {1, 2, 3, 10, 40, len(data) // 2, len(data) - 20, len(data) - 1}:
        with pytest.raises(ValueError):
            decode(data[:length])


def test_bytes_after_a_jpeg_do_no_harm() -> None:
    np.testing.assert_array_equal(decode(JPEG + bytes(500)), decode(JPEG))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello, I am a text", b"<html>404</html>" * 20, bytes(2000), b"\xff\xd8\xff\xd9", PNG[:8]]
)
def test_no_image(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_header_of_an_enormous_image() -> None:
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + PNG[24:29]
    with pytest.raises(ValueError):
        decode(PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:])


@pytest.mark.parametrize("data", [JPEG, PNG, BMP, WEBP], ids=["jpeg", "png", "bmp", "webp"])
def test_damage_gives_an_image_or_a_value_error(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    damage = np.random.default_rng(len(data))
    failed = 0
    for _ in range(200):
        broken = bytearray(data)
        for place in damage.integers(12, len(data), 3):  # not in the words that say which format it is
            broken[place] ^= int(damage.integers(1, 256))
        try:
            found = decode(bytes(broken))
        except ValueError:
            failed += 1
        else:
            assert found.dtype == np.uint8
            assert found.shape[2] == 3
    assert failed
    assert "OpenCV" not in capfd.readouterr().err  # who asks names the sample, on one line


def test_a_decoder_gives_the_same_pixels_wherever_it_puts_them() -> None:
    decoder = Decoder()
    large = encoded(Pillow.fromarray(np.tile(RGB, (9, 9, 1))), "JPEG")
    for data in (JPEG, large, PNG, JPEG, BMP, large, encoded(Pillow.fromarray(GREY), "JPEG")):
        pixels = decode(data)
        np.testing.assert_array_equal(decoder.decode(data), pixels)
        for shape in (RGB.shape, (48, 9, 3), (8, 8, 3), (500, 500, 3)):
            out = np.empty(shape, np.uint8)
            given = decoder.decode(data, out)
            np.testing.assert_array_equal(given, pixels)
            assert (given is out) == (shape == RGB.shape == pixels.shape and data[:2] == JPEG[:2])


def test_a_decoder_names_what_is_bad_and_goes_on() -> None:
    decoder, out = Decoder(), np.empty(RGB.shape, np.uint8)
    for bad in (JPEG[:-20], JPEG[:2], b"", b"text", PNG[:-20]):
        for place in (None, out):
            with pytest.raises(ValueError):
                decoder.decode(bad, place)
    assert decoder.decode(JPEG, out) is out
    np.testing.assert_array_equal(out, decode(JPEG))
