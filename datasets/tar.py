"""The few tar facts that shards rest on: headers of our own, padding, and walking a tar that may be cut off."""

import tarfile
from collections.abc import Iterator
from typing import IO, Literal, Self

from datasets.errors import InputError

RECORD = 512  # tar's unit: a header is one, data is padded to a multiple
END = bytes(2 * RECORD)


def padded(size: int) -> int:
    """A file's bytes in a tar, without its header."""
    return -(-size // RECORD) * RECORD


def header(name: str, size: int) -> bytes:
    """A USTAR header with nothing in it that differs between two packs of the same file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, encoding="ascii", errors="strict")


class _Strict(tarfile.TarInfo):
    """The standard library takes a damaged or missing header for the end of the archive; this does not."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("no end mark" if not buf else str(error)) from error


def members(stream: IO[bytes], where: str, mode: Literal["r|", "r:"]) -> Iterator[tarfile.TarInfo]:
    """Every member of an uncompressed tar in its order; USTAR, GNU and PAX forms. ``r|`` reads on, ``r:`` seeks over data.

    Raises:
        InputError: no tar, or one that is damaged or cut off: says after which byte.
    """
    offset = 0
    try:
        with tarfile.open(fileobj=stream, mode=mode, bufsize=1 << 20, tarinfo=_Strict) as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # else it remembers all of them
                offset = tar.offset
    except (tarfile.TarError, EOFError) as error:
        what = f"not an uncompressed tar ({error})" if offset == 0 else f"cut off or damaged after byte {offset} ({error})"
        raise InputError(what, where, "copy the file again") from error
