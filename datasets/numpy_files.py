"""Safe reading of numpy's npy and npz files from untrusted sources.

A header is checked against the bytes that are there before memory is allocated. Nothing is unpickled.
"""

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from datasets.errors import InputError, printable

MAX_BYTES = 4 << 30  # of the arrays of one file, and of the frames of one clip
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
BAD = (
    ValueError, TypeError, SyntaxError, RecursionError, KeyError, IndexError, OSError, EOFError, RuntimeError, MemoryError,
    OverflowError, tokenize.TokenError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip


def array_of(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the array of an npy file. It shares the memory of ``data``, so it is read-only.

    Raises:
        ValueError: not an npy file, an array of objects, or another number of bytes than the header says.
    """
    file = io.BytesIO(data[: 1 << 16])  # a header is shorter
    try:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"an npy file of version {version[0]}.{version[1]}")
        shape, fortran, dtype = HEADERS[version](file)
    except BAD as error:
        raise ValueError(f"not an npy file ({' '.join(str(error).split())[:100]})") from error
    start, count = file.tell(), math.prod(shape)
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"an array {list(shape)} of {'objects' if dtype.hasobject else dtype}, not of plain values")
    if len(data) - start != count * dtype.itemsize:
        what = f"its header says {count * dtype.itemsize:,} bytes, and there are {len(data) - start:,}"
        raise ValueError(f"an array {list(shape)} of {dtype}: {what}")
    try:
        flat: npt.NDArray[Any] = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, OverflowError) as error:  # more dimensions than numpy has
        raise ValueError(f"an array {list(shape)[:40]} of {dtype}, which numpy cannot hold") from error


def arrays_of(file: IO[bytes], where: str, names: Collection[str], others: Collection[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays ``names`` of an npz file, and those of ``others`` that it has. Other arrays are not read.

    Raises:
        InputError: not an npz file of plain arrays, one of ``names`` is missing, or the arrays take more than `MAX_BYTES`.
    """
    remedy = "get it again, or write it anew"
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise InputError(f"no array {', '.join(missing)}", where, f"it has: {', '.join(members) or 'none'}")
            wanted = [name for name in (*names, *others) if name in members]
            size = sum(members[name].file_size for name in wanted)
            if size > MAX_BYTES:
                raise InputError(f"arrays of {size:,} bytes; at most {MAX_BYTES:,} are read", where, "split the file")
            return {name: array_of(archive.read(members[name])) for name in wanted}
    except BAD as error:
        raise InputError(f"not an npz file of plain arrays ({error})", where, remedy) from error


def texts_of(array: npt.NDArray[Any]) -> list[str]:
    """Return the items of an array [n] of text, bytes or whole numbers as strings; raises ValueError for any other array."""
    if array.ndim != 1 or array.dtype.kind not in "USiub":
        raise ValueError(f"an array {list(array.shape)} of {array.dtype}, not of text [n]")
    try:
        items = array.tolist()
    except (ValueError, SystemError) as error:
        raise ValueError(f"an array of {array.dtype} that holds no Unicode") from error
    return [printable(item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else str(item)) for item in items]
