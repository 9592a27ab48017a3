"""A data set as it was downloaded: a folder, a zip or a tar, read in place. Nothing is unpacked: a name in an archive is only
ever looked up in the archive's own listing, so it can lead nowhere else."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from datasets.errors import InputError
from datasets.tar import members

COMPRESSED: dict[bytes, Callable[[Path], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # type: ignore[dict-item]
GIVE = "give the folder, zip or tar that was downloaded"
CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}


@dataclass(frozen=True)
class Source:
    """Files by name (parts joined by ``/``) with their sizes in bytes, sorted by name, without what desktops leave behind."""

    where: str
    sizes: dict[str, int]
    _read: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            InputError: it cannot be read, or is not as long as it was when listed.
        """
        remedy = "get it again, or take it out"
        if name not in self.sizes:
            raise InputError("no such file", f"{name} in {self.where}", remedy)
        try:
            data = self._read(name)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot be read ({reason})", f"{name} in {self.where}", remedy) from error
        if len(data) != self.sizes[name]:
            what = f"has {len(data)} bytes where {self.sizes[name]} were listed"
            raise InputError(what, f"{name} in {self.where}", "the file changed meanwhile, or is cut off: " + remedy)
        return data


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A folder, a ``.zip``, or a ``.tar`` (also compressed by gzip, bzip2 or xz), told apart by content: first whether it is a
    tar, since one that ends in an npz file passes for a zip, too.

    A compressed tar allows no random access, so it is expanded once, as one nameless temporary file.

    Raises:
        InputError: nothing there, nothing in it, or neither of these kinds.
    """
    with ExitStack() as stack:
        try:
            if path.is_dir():
                sizes, read = _folder(path)
            elif not path.is_file():
                raise InputError("no such folder or archive", str(path), GIVE)
            elif tarfile.is_tarfile(path) or _compression(path):
                sizes, read = _tar(stack.enter_context(_expanded(path)), str(path))
            elif zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
                sizes, read = _zip(stack.enter_context(zipfile.ZipFile(path)))
            else:
                raise InputError("neither a zip nor a tar", str(path), GIVE)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"cannot be read ({error})", str(path), "get it again") from error
        sizes = {name: size for name, size in sorted(sizes.items()) if not _is_clutter(name)}
        if not sizes:
            raise InputError("holds no files", str(path), GIVE)
        yield Source(str(path), sizes, read)


Files = tuple[dict[str, int], Callable[[str], bytes]]


def _is_clutter(name: str) -> bool:
    return any(part in CLUTTER or part.startswith(".") for part in PurePosixPath(name).parts)


def _folder(root: Path) -> Files:
    sizes: dict[str, int] = {}
    seen: set[Path] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(here.resolve())
        paths = [here / name for name in files if (here / name).is_file()]
        sizes |= {path.relative_to(root).as_posix(): path.stat().st_size for path in paths}
    return sizes, lambda name: (root / name).read_bytes()


def _zip(archive: zipfile.ZipFile) -> Files:
    return {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}, archive.read


def _compression(path: Path) -> Callable[[Path], IO[bytes]] | None:
    with path.open("rb") as file:
        magic = file.read(8)
    return next((opener for start, opener in COMPRESSED.items() if magic.startswith(start)), None)


def _expanded(path: Path) -> IO[bytes]:
    opener = _compression(path)
    if opener is None:
        return path.open("rb")
    with ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile(prefix="hardshard-"))
        with opener(path) as packed:
            shutil.copyfileobj(packed, whole, 1 << 20)
        whole.seek(0)
        stack.pop_all()  # it is the caller's to close
    return whole


def _tar(file: IO[bytes], where: str) -> Files:
    places: dict[str, tuple[int, int]] = {}
    for member in members(file, where, "r:"):
        name = member.name.removeprefix("./")
        if member.islnk() and member.linkname.removeprefix("./") in places:
            places[name] = places[member.linkname.removeprefix("./")]
        elif member.isreg() and not member.issparse():
            places[name] = (member.offset_data, member.size)

    def read(name: str) -> bytes:
        offset, size = places[name]
        file.seek(offset)
        return file.read(size)

    return {name: size for name, (_, size) in places.items()}, read
