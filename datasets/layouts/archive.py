"""A downloaded data set: a folder, a zip or a tar, read in place, or in S3.

Nothing is unpacked. An archive in S3 is first copied to a temporary folder; the objects under a prefix are read one by one. Names
are only looked up in the archive's own listing, so no name can lead out of it.
"""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from datasets.errors import InputError
from datasets.object_storage import Bucket, Folder, open_objects
from datasets.shards.tar import members
from datasets.skipped_files import LITTER, is_litter
from datasets.text_files import text_of

COMPRESSED: dict[bytes, Callable[[Path], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # type: ignore[dict-item]
CONTAINERS = {".rec", ".bin", ".mat"}  # endings of files that hold a whole data set
GIVE = "give the folder, zip, tar, .rec, .bin or .mat that was downloaded"
S3 = "s3://"
NOWHERE = "links to missing files"
MAX_TEXT = 4 << 30  # bytes of a list or a JSON
# What reading a file of an archive raises; RuntimeError: it is encrypted.
UNREADABLE = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
PATH_MAX = 4096  # bytes of a link's target


@dataclass(frozen=True)
class Archive:
    """An opened folder, zip or tar. ``sizes``: bytes of each file by name (parts joined by ``/``), sorted by name.

    Names that are not UTF-8 have surrogate escapes. ``left_out``: names that are not among the files, by rule in words.
    ``closing``: what is closed together with the archive.
    """

    where: str
    sizes: dict[str, int]
    _read: Callable[[str], bytes]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _open: Callable[[str], IO[bytes]] | None = None
    closing: ExitStack = field(default_factory=ExitStack)

    def place(self, name: str) -> str:
        """Describe where a file lies, for messages."""
        return f"{name} in {self.where}"

    def read(self, name: str, most: int | None = None) -> bytes:
        """Read a file of at most ``most`` bytes.

        Raises:
            InputError: it cannot be read, is larger, or its length differs from the listing.
        """
        remedy = "get it again, or take it out"
        if name not in self.sizes:
            raise InputError("no such file", self.place(name), remedy)
        if most is not None and self.sizes[name] > most:
            what = f"a file of {self.sizes[name]:,} bytes, of which {most:,} are read at most"
            raise InputError(what, self.place(name), remedy)
        try:
            data = self._read(name)
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot be read ({reason})", self.place(name), remedy) from error
        if len(data) != self.sizes[name]:
            what = f"has {len(data)} bytes where {self.sizes[name]} were listed"
            raise InputError(what, self.place(name), "the file changed meanwhile, or is cut off: " + remedy)
        return data

    def text(self, name: str) -> str:
        """Read a file as text; raises InputError."""
        return text_of(self.read(name, MAX_TEXT), self.place(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a file that may be larger than memory, to read and seek while the archive is open; raises InputError."""
        try:
            return self.closing.enter_context(self._open(name)) if self._open else io.BytesIO(self.read(name))
        except UNREADABLE as error:
            raise InputError(f"cannot be read ({error})", self.place(name), "get it again, or take it out") from error


def name_of_source(source: Path | str) -> str:
    """The last part of a source's path or address."""
    address = str(source).rstrip("/")
    return address.rpartition("/")[2] if address.startswith(S3) else Path(source).resolve().name


def refuse_inside(objects: Folder | Bucket, source: Path | str) -> None:
    """Raise InputError if a destination lies inside a source."""
    address = str(source).rstrip("/")
    folder = objects.path.resolve() if isinstance(objects, Folder) else None
    if folder.is_relative_to(Path(source).resolve()) if folder else f"{objects.url}/".startswith(f"{address}/"):
        raise InputError("the destination lies inside the source", objects.url, "pack to another place")


@contextmanager
def open_archive(source: Path | str) -> Iterator[Archive]:
    """Open a folder, a zip, or a tar (also compressed by gzip, bzip2 or xz), local or in S3; the content decides which it is.

    Links to files or folders inside the archive are followed. A compressed tar has no random access, so it is first expanded to
    an unnamed temporary file; so is a file of a zip that is opened. A file with an ending in ``CONTAINERS`` counts as a folder
    of the files that differ from it in the ending only (``train.rec``, ``train.idx``).

    Raises:
        InputError: there is nothing, nothing in it, or it is none of these kinds.
    """
    where = str(source)
    with ExitStack() as stack:
        objects = open_objects(where) if where.startswith(S3) else None
        if objects and (sizes := objects.sizes()):
            files = _Files(objects.get, lambda name: io.BytesIO(objects.get(name)), sizes)
        else:
            path = stack.enter_context(_fetched(where)) if objects else Path(source)
            try:
                files = _files_of(path, where, stack)
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError) as error:
                raise InputError(f"cannot be read ({error})", where, "get it again") from error
        for name in [name for name in files.sizes if is_litter(name)]:
            del files.sizes[name]
            files.leave_out(LITTER, name)
        if not files.sizes:
            raise InputError("holds no files", where, GIVE)
        left_out = {rule: tuple(sorted(names)) for rule, names in files.left_out.items()}
        sizes = dict(sorted(files.sizes.items()))
        yield Archive(where, sizes, files.read, left_out, files.open, stack)


@dataclass
class _Files:
    """The files of an archive while it is being listed, and the functions that read and open one of them."""

    read: Callable[[str], bytes]
    open: Callable[[str], IO[bytes]]
    sizes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, size: int) -> None:
        if name in self.sizes:
            self.leave_out("replaced by a later file of the same name", name)
        self.sizes[name] = size

    def leave_out(self, rule: str, name: str) -> None:
        self.left_out[rule].append(name)


def _files_of(path: Path, where: str, stack: ExitStack) -> _Files:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError("no such folder or archive", where, GIVE)
    if _is_container(path.name):
        return _alike(path)
    if tarfile.is_tarfile(path) or _compression(path):  # first: a tar that ends in an npz file looks like a zip, too
        return _tar(stack.enter_context(_expanded(path)), where)
    if zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
        return _zip(stack.enter_context(zipfile.ZipFile(path)))
    raise InputError("neither a zip nor a tar", where, GIVE)


@contextmanager
def _fetched(address: str) -> Iterator[Path]:
    """Copy an archive from S3 to a temporary folder; of a container, also the files of its name."""
    parent, _, name = address.rpartition("/")
    bucket, stem = open_objects(parent), PurePosixPath(name).stem
    assert isinstance(bucket, Bucket)
    if not bucket.exists(name):
        raise InputError("no such folder or archive", address, GIVE)
    alike = [other for other in bucket.sizes(f"{stem}.") if "/" not in other] if _is_container(name) else [name]
    with tempfile.TemporaryDirectory(prefix="hardshard-source-") as folder:
        for each in alike:
            bucket.get_file(each, Path(folder) / each)
        yield Path(folder) / name


def _is_container(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in CONTAINERS


def _folder(root: Path) -> _Files:
    found = _Files(lambda name: (root / name).read_bytes(), lambda name: (root / name).open("rb"))
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        for name in [name for name in folders if (here / name).is_symlink()]:
            if (here / name).resolve() in [above.resolve() for above in (here, *here.parents)]:
                folders.remove(name)
                found.leave_out("links that lead back up", (here / name).relative_to(root).as_posix())
        inner = "".join(f"{part}/" for part in here.relative_to(root).parts)
        for file in files:  # plain strings: pathlib would take most of the time in a set of millions of files
            status = _status(f"{folder}/{file}")
            if status is not None and stat.S_ISREG(status.st_mode):
                found.add(inner + file, status.st_size)
            else:
                found.leave_out("neither files nor folders" if status else NOWHERE, inner + file)
    return found


def _status(path: str) -> os.stat_result | None:
    """Return the status of what a path leads to; None for a link that leads nowhere."""
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        if not os.path.islink(path):  # noqa: PTH114
            raise
        return None


def _alike(path: Path) -> _Files:
    """List a container and the files beside it with the same name but for the ending."""
    found = _Files(lambda name: (path.parent / name).read_bytes(), lambda name: (path.parent / name).open("rb"))
    for file in path.parent.iterdir():
        if file.is_file() and (file == path or (file.stem == path.stem and file.suffix.lower() not in CONTAINERS)):
            found.add(file.name, file.stat().st_size)
    return found


def _zip(archive: zipfile.ZipFile) -> _Files:
    places: dict[str, zipfile.ZipInfo] = {}
    found = _Files(lambda name: archive.read(places[name]), lambda name: _copied(archive.open(places[name])))
    links: dict[str, str] = {}
    for entry in archive.infolist():
        name = _name_in_archive(entry.filename, found)
        if name is None or entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            target = archive.read(entry)[:PATH_MAX].decode("utf-8", "surrogateescape")
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        else:
            found.add(name, entry.file_size)
            places[name] = entry
    for name, target in _followed(links, found).items():
        places[name] = places[target]
        found.add(name, places[target].file_size)
    return found


def _compression(path: Path) -> Callable[[Path], IO[bytes]] | None:
    with path.open("rb") as file:
        magic = file.read(8)
    return next((opener for start, opener in COMPRESSED.items() if magic.startswith(start)), None)


def _expanded(path: Path) -> IO[bytes]:
    opener = _compression(path)
    if opener is None:
        return path.open("rb")
    return _copied(opener(path))


def _copied(stream: IO[bytes]) -> IO[bytes]:
    """Copy a stream without random access to an unnamed temporary file, which the caller closes; closes the stream."""
    with ExitStack() as stack, stream:
        whole = stack.enter_context(tempfile.TemporaryFile(prefix="hardshard-"))
        shutil.copyfileobj(stream, whole, 1 << 20)
        whole.seek(0)
        stack.pop_all()
    return whole


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _tar(file: IO[bytes], where: str) -> _Files:
    places: dict[str, int] = {}  # where a file's bytes begin in the tar
    sparse: dict[int, list[tuple[int, int]]] = {}  # of each piece of a sparse file: its offset in the file, and its size

    def read(name: str) -> bytes:
        file.seek(places[name])
        data = bytearray(found.sizes[name])
        for start, size in sparse.get(places[name], [(0, len(data))]):
            data[start : start + size] = file.read(size)
        return bytes(data)

    def opened(name: str) -> IO[bytes]:
        if places[name] in sparse:
            return io.BytesIO(read(name))
        return io.BufferedReader(_Window(file, places[name], found.sizes[name]), 1 << 16)

    found = _Files(read, opened)
    links: dict[str, str] = {}
    for member in members(file, where, "r:"):
        name = _name_in_archive(member.name, found)
        if name is None or member.isdir():
            continue
        if member.issym():
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            links[name] = posixpath.normpath(member.linkname)
        elif member.isreg():
            found.add(name, member.size)
            places[name] = member.offset_data
            if member.issparse():
                sparse[member.offset_data] = cast(list[tuple[int, int]], member.sparse)
        else:
            found.leave_out("neither files nor folders", name)
    for name, target in _followed(links, found).items():
        places[name] = places[target]
        found.add(name, found.sizes[target])
    return found


def _name_in_archive(name: str, found: _Files) -> str | None:
    """Return a member's name with slashes only; None, noted as left out, if it would lead out of the archive."""
    name = name if "/" in name else name.replace("\\", "/")  # some Windows tools write backslashes
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/"):
        found.leave_out("names that lead out of the archive", name)
        return None
    return "/".join(parts) or None


def _followed(links: Mapping[str, str], found: _Files) -> dict[str, str]:
    """Return the file that each link leads to, directly or by other links; for a link to a folder, each file below it."""
    files: dict[str, str] = {}
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in found.sizes if any(target not in found.sizes for target in links.values()) else ():
        for folder in PurePosixPath(name).parents:
            by_folder[str(folder)].append(name)
    pending = dict(links)
    while pending:
        done = []
        for name, target in pending.items():
            if target == "." or name.startswith(f"{target}/"):
                found.leave_out("links that lead back up", name)
            elif target in found.sizes or target in files:
                files[name] = files.get(target, target)
            elif target in by_folder:
                files |= {f"{name}/{file.removeprefix(f'{target}/')}": file for file in by_folder[target]}
            else:
                continue
            done.append(name)
        for name in done:
            del pending[name]
        if not done:
            for name in pending:
                found.leave_out(NOWHERE, name)
            break
    return files
