"""Makes a target domain from a source domain: fog, night, blur or another stain, as pure functions.

Of an image [H, W, 3] uint8, a seed, a name and a strength, 1 for a moderate one, they make an image of the same form; boxes stay
where they are. No degraded domain is a real one: a set made so says it in its index (``about["degrade"]``).
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from zlib import crc32

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datasets.layouts.archive import Archive
from datasets.media.decode import MAX_BYTES, Image, decode, quiet_decoders

Rng = np.random.Generator
QUALITY = 95  # of JPEGs written


def fog(image: Image, rng: Rng, strength: float) -> Image:
    """Koschmieder's law: the scene fades into a bright haze, with a transmission that varies smoothly over the image."""
    height, width = image.shape[:2]
    thickness = cv2.resize(rng.uniform(0.7, 1.6, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    left = np.exp(-np.float32(strength) * thickness)[..., None]
    haze = np.float32(rng.uniform(200, 235))
    return _pixels(image * left + haze * (1 - left))


def night(image: Image, rng: Rng, strength: float) -> Image:
    """Little light: darker, bluer, and with sensor noise that grows with the light."""
    dark = (image / np.float32(255)) ** rng.uniform(1.4, 1.9) ** strength * rng.uniform(0.25, 0.4) ** strength
    lit = dark * np.array([0.8, 0.9, 1.15], np.float32) ** strength
    noise = rng.standard_normal(image.shape, np.float32) * (0.015 + 0.04 * np.sqrt(lit)) * strength
    return _pixels((lit + noise) * 255)


def blur(image: Image, rng: Rng, strength: float) -> Image:
    """Out of focus: a Gaussian with a sigma of 0.6% to 1.2% of the shorter side, times the strength."""
    sigma = rng.uniform(0.006, 0.012) * min(image.shape[:2])
    out: Image = cv2.GaussianBlur(image, (0, 0), max(strength * sigma, 0.3))  # type: ignore[assignment]
    return out


def stain(image: Image, rng: Rng, strength: float) -> Image:
    """Another stain: the channels' optical densities (Beer-Lambert) are mixed and scaled; white stays white."""
    density = -np.log((image.astype(np.float32) + 1) / 256)
    mixing = np.eye(3) * rng.uniform(0.6, 1.3, 3) + rng.uniform(0, 0.25, (3, 3))
    mixing = strength * mixing + (1 - strength) * np.eye(3)
    return _pixels(np.exp(-density @ mixing.astype(np.float32)) * 256 - 1)


Degradation = Literal["fog", "night", "blur", "stain"]
DEGRADATIONS: dict[Degradation, Callable[[Image, Rng, float], Image]] = dict(
    zip(get_args(Degradation), (fog, night, blur, stain), strict=True)
)


def degrade(image: Image, kind: Degradation, seed: int, name: str, strength: float = 1.0) -> Image:
    """Return the image as it would look in that domain; the same seed, name and strength give the same result."""
    return DEGRADATIONS[kind](image, np.random.default_rng((seed, crc32(os.fsencode(name)))), strength)


@contextmanager
def degraded(archive: Archive, images: Iterable[str], kind: Degradation, seed: int, strength: float) -> Iterator[Archive]:
    """Yield the archive with these images degraded, in a temporary folder. Images that cannot be decoded stay as they are."""
    with tempfile.TemporaryDirectory(prefix="hardshard-") as folder:
        made: dict[str, Path] = {}
        for number, name in enumerate(images):
            suffix = PurePosixPath(name).suffix.lower()
            try:
                with quiet_decoders():
                    image = decode(archive.read(name, MAX_BYTES))
            except ValueError:
                continue
            made[name] = Path(folder) / str(number)
            made[name].write_bytes(_encoded(degrade(image, kind, seed, name, strength), suffix))
        sizes = {name: made[name].stat().st_size if name in made else size for name, size in archive.sizes.items()}
        yield replace(archive, sizes=sizes, _read=lambda name: made[name].read_bytes() if name in made else archive.read(name))


def _encoded(image: Image, suffix: str) -> bytes:
    if suffix in (".jpg", ".jpeg"):
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=QUALITY)
        return data
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _pixels(values: npt.NDArray[np.floating]) -> Image:
    pixels: Image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
