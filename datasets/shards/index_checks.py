"""Checks of an index as it is read: types in its JSON, columns of its tables, and that every number refers to something existing.

So a damaged or foreign index is reported at once in one line, instead of failing where it is used.

M samples, K blocks, N identities.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.errors import InputError

ROWS = 1 << 17  # checked at a time
REMEDY = "copy it again, or pack or index the set again"
Table = Mapping[str, npt.NDArray[Any]]


class ShardLike(Protocol):
    """A shard in the index."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def split(self) -> str:
        """Name of its split."""


def damaged(what: str, where: str) -> NoReturn:
    """Raise an InputError that says what is damaged."""
    raise InputError(f"the index is damaged ({what})", where, REMEDY)


# ---- index.json


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("size")) and _is_count(value.get("crc32c"))


def _is_shard(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_count(value.get("size")):
        return False
    return isinstance(value.get("name"), str) and isinstance(value.get("split"), str)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side) and 1 <= side <= 1 << 16 for side in value)


MANIFEST: dict[str, Callable[[Any], bool]] = {
    "samples": _is_count, "blocks": _is_count, "identities": _is_count, "splits": _is_texts, "cameras": _is_texts,
    "shards": lambda value: isinstance(value, list) and all(map(_is_shard, value)),
    "tables": lambda value: isinstance(value, dict) and all(map(_is_table, value.values())),
}  # fmt: skip
ABOUT: dict[str, Callable[[Any], bool]] = {
    "size": _is_size, "mirror": lambda value: isinstance(value, bool), "classes": _is_texts,
    "max_block": lambda value: _is_count(value) and value > 0, "stream": lambda value: isinstance(value, str),
    "layout": lambda value: isinstance(value, str), "side": _is_count,
    "rate": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6,
}  # fmt: skip


def check_manifest(manifest: dict[str, Any], tables: Sequence[str], where: str) -> None:
    """Check the fields of an index.json; raises InputError. ``tables``: those that every set must have."""
    for name, right in MANIFEST.items():
        if name not in manifest or not right(manifest[name]):
            damaged(f"its {name}", where)
    if missing := [name for name in tables if name not in manifest["tables"]]:
        damaged(f"no table {missing[0]}", where)
    names = [shard["name"] for shard in manifest["shards"]]
    if len(set(names)) != len(names) or any(shard["split"] not in manifest["splits"] for shard in manifest["shards"]):
        damaged("its shards", where)
    if "shards_at" in manifest and not (isinstance(manifest["shards_at"], str) and manifest["shards_at"]):
        damaged("its shards_at", where)
    about = manifest.get("about", {})
    if not isinstance(about, dict):
        damaged("its about", where)
    for name, right in ABOUT.items():
        if name in about and not right(about[name]):
            damaged(f"its about.{name}", where)


# ---- tables


def parquet(data: bytes, columns: list[str] | None, rows: int, where: str) -> pa.Table:
    """Read a table that must have ``rows`` rows; raises InputError.

    Reads without Arrow's threads: with them a short-lived process sometimes aborts at exit (pyarrow 26).
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        found = file.metadata.num_rows
        if found == rows:  # before memory is allocated
            table = file.read(columns=columns, use_threads=False)
            table.validate(full=True)
            found = table.num_rows  # of these columns: another may be longer
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(f"no table can be read ({' '.join(str(error).split())[:120]})", where, REMEDY) from error
    if found != rows:
        damaged(f"{found} rows where {rows} are expected", where)
    for name in columns or ():
        if table.column_names.count(name) != 1:
            damaged(f"no column {name}", where)
    return table


def integers(column: pa.ChunkedArray, dtype: Any, name: str, where: str) -> npt.NDArray[Any]:
    """Return a column of integers that fit the type, without missing values; raises InputError."""
    if not pa.types.is_integer(column.type) or column.null_count:
        damaged(f"the column {name} is not of whole numbers", where)
    values: npt.NDArray[Any] = column.to_numpy()
    if len(values) and not np.iinfo(dtype).min <= int(values.min()) <= int(values.max()) <= np.iinfo(dtype).max:
        damaged(f"numbers too large in the column {name}", where)
    return values


def texts(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Return a column of texts without missing values; raises InputError."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        damaged(f"the column {name} is not of texts", where)
    return column


def check_tables(
    samples: Table, blocks: Table, shards: Sequence[ShardLike], splits: Sequence[str], identities: int, cameras: int, where: str
) -> None:
    """Check that every row of samples [M] and blocks [K] refers to something existing; raises InputError for the first fault."""
    for what in _faults(samples, blocks, shards, splits, identities, cameras):
        damaged(what, where)


def _faults(
    samples: Table, blocks: Table, shards: Sequence[ShardLike], splits: Sequence[str], identities: int, cameras: int
) -> Iterator[str]:
    for name, most in (("shard", len(shards)), ("identity", identities), ("split", len(splits))):
        if _outside(blocks[name], 0, most - 1):
            yield f"a block's {name} is not there"
    if np.any(np.diff(blocks["shard"]) < 0):
        yield "the blocks do not stand in the order of the shards"
    sizes = np.array([shard.size for shard in shards], np.int64)
    of_split = np.array([splits.index(shard.split) for shard in shards], np.int64)
    before = 0
    for rows in _pieces(len(blocks["shard"])):
        offset, size, count, shard, first = (
            blocks[name][rows].astype(np.int64) for name in ("offset", "size", "count", "shard", "first")
        )
        if np.any(offset < 0) or np.any(size < 0) or np.any(offset > sizes[shard] - size):
            yield "a block lies outside its shard"
        if np.any(of_split[shard] != blocks["split"][rows]):
            yield "a block is of another split than its shard"
        if np.any(count < 1) or np.any(first != before + np.cumsum(count) - count):
            yield "the blocks' samples do not add up to all samples"
        before += int(count.sum())
    if before != len(samples["block"]):
        yield "the blocks' samples do not add up to all samples"
    if _outside(blocks["crc32c"], 0, 2**32 - 1):
        yield "a checksum is none"
    if _outside(samples["camera"], 0, cameras - 1):
        yield "a sample's camera is not there"
    yield from _sample_faults(samples, blocks)


def _sample_faults(samples: Table, blocks: Table) -> Iterator[str]:
    """Yield faults of samples, given that the blocks are right."""
    if _outside(samples["block"], 0, len(blocks["shard"]) - 1):
        yield "a sample's block is not there"
    for rows in _pieces(len(samples["block"])):
        block, offset, size = (samples[name][rows].astype(np.int64) for name in ("block", "offset", "size"))
        after = np.arange(rows.start, rows.stop) - blocks["first"][block]
        if np.any(after < 0) or np.any(after >= blocks["count"][block]):
            yield "samples and blocks disagree on which sample is in which block"
        start = blocks["offset"][block].astype(np.int64)
        if np.any(offset < start) or np.any(size < 0) or np.any(offset - start > blocks["size"][block].astype(np.int64) - size):
            yield "a sample lies outside its block"


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


def _outside(values: npt.NDArray[Any], least: int, most: int) -> bool:
    return bool(len(values)) and not least <= int(values.min()) <= int(values.max()) <= most


# ---- what only some sets have


def labels_of(table: pa.Table, where: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return the columns of labels, [M] each, NaN where absent; raises InputError where they hold anything but numbers."""
    found = {}
    for name in table.column_names:
        column = table.column(name)
        if not pa.types.is_floating(column.type) or column.null_count:
            damaged(f"the column {name} is not of numbers", where)
        found[name] = column.to_numpy().astype(np.float32, copy=False)
        if np.isinf(found[name]).any():
            damaged(f"an infinite number in the column {name}", where)
    return found


def check_lists(table: pa.Table, columns: Mapping[str, tuple[float, float]], where: str, *, absent: bool = False) -> None:
    """Check columns that hold lists of numbers in these ranges; raises InputError. ``absent``: whole lists may be null."""
    for name, (least, most) in columns.items():
        if name not in table.column_names or not pa.types.is_list(table.column(name).type):
            damaged(f"no column {name} of lists", where)
        column = table.column(name)
        values = pc.list_flatten(column)
        numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        if not numeric or values.null_count or (column.null_count and not absent):
            damaged(f"the column {name} is not of lists of numbers", where)
        numbers = values.to_numpy().astype(np.float64)
        if not np.all((numbers >= least) & (numbers <= most)):
            damaged(f"numbers out of range in the column {name}", where)


def check_boxes(table: pa.Table, classes: int, where: str) -> None:
    """Check a table of boxes, one row per sample: a class and a flag for each box, no negative area. Raises InputError."""
    check_lists(table, {"corners": (0, 1), "class": (0, classes - 1), "ignored": (0, 1)}, where, absent=True)
    counts = [pc.fill_null(pc.list_value_length(table.column(name)), -1).to_numpy() for name in ("corners", "class", "ignored")]
    if np.any(counts[0] != np.where(counts[1] < 0, -1, 4 * counts[1])) or np.any(counts[1] != counts[2]):
        damaged("the columns of its boxes disagree", where)
    corners = pc.list_flatten(table.column("corners")).to_numpy().reshape(-1, 4)
    if np.any(corners[:, 2:] < corners[:, :2]):
        damaged("a box ends before it begins", where)


def check_clips(table: pa.Table, classes: int, where: str) -> None:
    """Check a table of clips, one row per identity; raises InputError."""
    for name in ("file", "frames"):
        if name not in table.column_names:
            damaged(f"no column {name}", where)
    texts(table.column("file"), "file", where)
    if _outside(integers(table.column("frames"), np.int32, "frames", where), 1, 2**31 - 1):
        damaged("a clip without frames", where)
    check_lists(table, {"actions": (0, classes - 1), "frame_actions": (-1, classes - 1)}, where)
    if np.any(pc.list_value_length(table.column("actions")).to_numpy() < 1):
        damaged("a clip without an action", where)
