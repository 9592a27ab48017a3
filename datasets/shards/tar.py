"""Tar basics: padding, names, and safe iteration over a tar that may be truncated or malicious."""

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Literal, Self

from datasets.errors import InputError, printable

RECORD = 512  # tar's unit: a header is one, data is padded to a multiple
END = bytes(2 * RECORD)
BUFFER = 1 << 16  # bytes; tarfile copies what is left of them at each read
MAX_HEADER = 1 << 20  # bytes of a long name, or of a PAX header
EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

INDEX = "index the shards with `python -m datasets.index`, and give their folder"  # what to do where tars alone do not suffice


def names_tars(url: str) -> bool:
    """Whether an address names tar files, as in ``s3://bucket/set-{000..146}.tar``, and not a shard set."""
    return url.endswith((".tar", "}"))


def padded(size: int) -> int:
    """Return the bytes that a file takes in a tar, without its header."""
    return -(-size // RECORD) * RECORD


def member_path(name: str) -> str:
    """Return a member's name as a printable path: without ``./``, and with slashes for the backslashes of Windows tools."""
    slashed = name if "/" in name else name.replace("\\", "/")
    return printable("/".join(part for part in slashed.split("/") if part not in ("", ".")))


def key_and_ending(path: str) -> tuple[str, str]:
    """Split a member's name into its sample's key and its ending, as WebDataset does: at the first dot after the last slash."""
    folder, slash, file = path.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending


class _Strict(tarfile.TarInfo):
    """Raises errors where the standard library takes a damaged header for the end of the archive, and limits header sizes."""

    _decoded = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in EXTENSIONS and found.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header of {found.size} bytes")
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
    """Yield the members of an uncompressed tar (USTAR, GNU, PAX) in order. ``r|`` reads through the data, ``r:`` seeks over it.

    ``size``: bytes of the whole tar; None: found by seeking.

    Raises:
        InputError: not a tar, damaged, truncated, or with data after its end mark; says after which byte.
    """
    offset, begun = 0, False
    total = stream.seek(0, 2) if size is None else size
    if size is None:
        stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode=mode, bufsize=BUFFER, tarinfo=_Strict) as tar:
            while (member := tar.next()) is not None:
                begun = True
                _check(member, tar.offset, total)
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps all of them
                offset = tar.offset
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    remedy = "join tars by `tar --concatenate`, not by cat; or copy the file again"
                    raise InputError(f"the tar ends at byte {offset}, and more follows", where, remedy)
    except (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError, RecursionError) as error:
        what = f"cut off or damaged after byte {offset} ({error})" if begun else f"not an uncompressed tar ({error})"
        raise InputError(what, where, "copy the file again") from error


def _check(member: tarfile.TarInfo, following: int, total: int) -> None:
    """Raise ReadError where a header's sizes contradict each other or the tar's size."""
    if not member.offset_data <= following <= total:
        raise tarfile.ReadError("unexpected end of data")
    stored = following - member.offset_data
    if member.size < 0 or (member.isreg() and not member.issparse() and padded(member.size) != stored):
        raise tarfile.ReadError(f"{printable(member.name)} is said to have {member.size} bytes, and {stored} are stored")
