"""Small pictures, and data sets of them with the names of the public ones."""

import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

Files = dict[str, bytes]


def jpeg(seed: int, height: int = 16, width: int = 8) -> bytes:
    """A JPEG unlike that of any other seed."""
    return simplejpeg.encode_jpeg(_pixels(seed, height, width), quality=80)


def png(seed: int, height: int = 16, width: int = 16) -> bytes:
    """A PNG unlike that of any other seed."""
    return cv2.imencode(".png", _pixels(seed, height, width))[1].tobytes()


def _pixels(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def market(people: int = 4, images: int = 6) -> Files:
    """Market-1501: training people, as many others in query and gallery, one junk image and one distractor."""
    names = [f"bounding_box_train/{pid:04d}_c{i % 3 + 1}s1_{i:06d}_00.jpg" for pid in range(2, 2 + people) for i in range(images)]
    for pid in range(900, 900 + people):
        names.append(f"query/{pid:04d}_c1s1_000001_00.jpg")
        names += [f"bounding_box_test/{pid:04d}_c{i % 3 + 1}s2_{i:06d}_01.jpg" for i in range(images)]
    names += ["bounding_box_test/-1_c2s1_000401_03.jpg", "bounding_box_test/0000_c1s1_000151_01.jpg"]
    return {name: jpeg(seed) for seed, name in enumerate(names)} | {"readme.txt": b"hello", "query/Thumbs.db": b"\0"}


def omniglot(characters: int = 8, drawers: int = 20) -> Files:
    """Omniglot: two alphabets."""
    files = {}
    for c in range(characters):
        folder = f"images/{('Greek', 'Japanese_(katakana)')[c % 2]}/character{c:02d}"
        files |= {f"{folder}/{394 + c:04d}_{d:02d}.png": png(100 * c + d) for d in range(1, drawers + 1)}
    return files | {"LICENSE": b"MIT", ".DS_Store": b"\0", "__MACOSX/images/._Greek": b"\0"}


def put(root: Path, files: Files) -> Path:
    """The files in a folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, files: Files) -> Path:
    """The files in a zip, folder entries as well."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("images")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Files, mode: str = "w", **options: int) -> Path:
    """The files in a tar."""
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
