"""The few tar facts that shards rest on: headers of our own, padding, names, and walking a tar that may be cut off or crafted."""

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Literal, Self

from datasets.errors import InputError, printable

RECORD = 512  # tar's unit: a header is one, data is padded to a multiple
END = bytes(2 * RECORD)
MAX_HEADER = 1 << 20  # bytes of a long name, or of a PAX header
EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def padded(size: int) -> int:
    """A file's bytes in a tar, without its header."""
    return -(-size // RECORD) * RECORD


def header(name: str, size: int) -> bytes:
    """A USTAR header with nothing in it that differs between two packs of the same file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, encoding="ascii", errors="strict")


def member_path(name: str) -> str:
    """A member's name as a path: without ``./``, with slashes where a tool of Windows wrote none, and printable."""
    slashed = name if "/" in name else name.replace("\\", "/")
    return printable("/".join(part for part in slashed.split("/") if part not in ("", ".")))


def key_and_ending(path: str) -> tuple[str, str]:
    """A member's sample and what it is there, as WebDataset splits names: at the first dot after the last slash."""
    folder, slash, file = path.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending


class _Strict(tarfile.TarInfo):
    """The standard library takes a damaged or missing header for the end of the archive, and reads as much as a header asks for;
    this does not."""

    _decoded = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in EXTENSIONS and found.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header that tells of {found.size} bytes")
        return found

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("no end mark" if str(error) == "empty header" else str(error)) from error

    def _decode_pax_field(self, value: bytes, *how: Any) -> str:
        self._decoded += len(value)
        if self._decoded > self.size:  # records that overlap would take the square of the header's size
            raise tarfile.ReadError("a PAX header whose records overlap")
        return super()._decode_pax_field(value, *how)  # type: ignore[misc,no-any-return]


def members(stream: IO[bytes], where: str, mode: Literal["r|", "r:"], size: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Every member of an uncompressed tar in its order; USTAR, GNU and PAX forms. ``r|`` reads on, ``r:`` seeks over data.

    ``size``: of the whole tar, in bytes; None: it is asked of the stream.

    Raises:
        InputError: no tar, or one that is damaged or cut off, or goes on behind its end mark: says after which byte.
    """
    offset, begun = 0, False
    total = stream.seek(0, 2) if size is None else size
    if size is None:
        stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode=mode, bufsize=1 << 20, tarinfo=_Strict) as tar:
            while (member := tar.next()) is not None:
                begun = True
                _check(member, tar.offset, total)
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # else it remembers all of them
                offset = tar.offset
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    remedy = "join tars by `tar --concatenate`, not by cat; or copy the file again"
                    raise InputError(f"the tar ends at byte {offset}, and more follows", where, remedy)
    except (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError, RecursionError) as error:
        what = f"cut off or damaged after byte {offset} ({error})" if begun else f"not an uncompressed tar ({error})"
        raise InputError(what, where, "copy the file again") from error


def _check(member: tarfile.TarInfo, following: int, total: int) -> None:
    """Refuse sizes that lie: the next header stands where they say, and a stream would be read until there."""
    if not member.offset_data <= following <= total:
        raise tarfile.ReadError("unexpected end of data")
    stored = following - member.offset_data
    if member.size < 0 or (member.isreg() and not member.issparse() and padded(member.size) != stored):
        raise tarfile.ReadError(f"{printable(member.name)} is said to have {member.size} bytes, and {stored} are stored")
