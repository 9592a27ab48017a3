"""The index of a shard set: where each sample lies, its identity, and which bytes form a block.

Shards are plain WebDataset tar files. The index is stored beside them, in Parquet, so that any tool can read it:

    index.json                 written last: without it a set is incomplete
    index/samples.parquet      key, identity, block, offset, size, camera       one row per sample, ordered by (block, offset)
    index/blocks.parquet       shard, identity, split, offset, size, first, count, crc32c       ordered by (shard, offset)
    index/identities.parquet   name, sorted; the row number is the identity
    index/labels.parquet       only if images have labels: one float32 column each, NaN where absent; one row per sample
    index/boxes.parquet        only if images have boxes: lists of corners, class, ignored (`datasets.shards.boxes`); per sample
    index/clips.parquet        only if identities are clips: file, frames, actions, frame_actions; one row per identity

An index may also lie elsewhere than its shards (`datasets.relabel`). Its index.json then has ``shards_at``: the URL of the folder
or prefix that holds them; or, from a folder inside or beside theirs, a relative path, so that both can be moved together.

A *block* is a run of one identity's members in one shard, from its first tar header to the end of its last member. It is
fetched by one ranged read. A sample's ``offset`` is where its image bytes begin in the shard, after the tar header.
In memory the index takes 13 bytes per sample, 29 per block, and the identities' names (17 and 33 for shards above 4 GiB; one byte
more with more than 127 cameras). Keys are read only when they are needed.

M samples, K blocks, N identities.
"""

import ctypes
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import eq
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.errors import InputError
from datasets.object_storage import Bucket, Folder, checked, open_objects
from datasets.shards import index_checks as checks
from datasets.shards.boxes import BoxTable, boxes_of_table
from datasets.shards.tar import INDEX, names_tars
from datasets.splits import evaluation_split
from datasets.text_files import json_of

FORMAT, VERSION = "hardshard", 1
MANIFEST = "index.json"
PACKING = "_packing"  # a folder of notes that exists while a set is being packed
SAMPLES, BLOCKS, IDENTITIES = "index/samples.parquet", "index/blocks.parquet", "index/identities.parquet"
LABELS, BOXES, CLIPS = "index/labels.parquet", "index/boxes.parquet", "index/clips.parquet"
JUNK, DISTRACTOR = "-1", "0"  # Market-1501's names: junk is ignored in evaluation, a distractor matches nobody

SAMPLE_COLUMNS = {"block": np.int32, "offset": np.int64, "size": np.int32, "camera": np.int16}
BLOCK_COLUMNS = {
    "shard": np.int32, "identity": np.int32, "split": np.int8, "offset": np.int64,
    "size": np.int32, "first": np.int64, "count": np.int32, "crc32c": np.int64,
}  # fmt: skip

NARROW: dict[Any, Any] = {np.int64: np.uint32, np.int16: np.int8}  # types in memory, where the values fit

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One tar file; ``size`` in bytes."""

    name: str
    size: int
    split: str


class Names(Sequence[str]):
    """Names in Arrow's memory, a few bytes each; converted to Python strings on access."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        found = self._column[place]
        return found.to_pylist() if isinstance(place, slice) else found.as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1 << 16):
            yield from self[start : start + (1 << 16)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list's


@dataclass(frozen=True, eq=False)
class Index:
    """An index in memory. ``samples`` and ``blocks`` map a column's name to its array, [M] and [K]."""

    url: str
    shards: tuple[Shard, ...]
    splits: tuple[str, ...]
    cameras: tuple[str, ...]
    identities: Sequence[str]
    samples: dict[str, npt.NDArray[Any]]
    blocks: dict[str, npt.NDArray[Any]]
    about: dict[str, Any]  # notes of the packer: layout, image size to train at, whether mirroring keeps the identity
    shards_at: str | None = field(default=None, kw_only=True)  # URL of the place that holds the shards; None: beside the index

    def __len__(self) -> int:
        return len(self.samples["block"])

    @property
    def parts(self) -> "tuple[Index, ...]":
        """The sets that were joined (`datasets.shards.joined`), else this one."""
        return (self,)

    @property
    def shards_url(self) -> str:
        """URL of the folder or prefix that holds the shards."""
        return self.shards_at or self.url

    def shard_url(self, shard: int) -> str:
        """Return the URL of a shard."""
        return f"{self.shards_url}/{self.shards[shard].name}"

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of every sample, [M]; read from the set at first use."""
        where = f"{self.url}/{SAMPLES}"
        table = checks.parquet(open_objects(self.url).get(SAMPLES), ["key"], len(self), where)
        keys: list[str] = checks.texts(table.column("key"), "key", where).to_pylist()
        return keys

    @cached_property
    def checksum(self) -> int:
        """crc32c of the blocks' checksums, identities and splits: it changes if the set is packed again with other content."""
        names = ("crc32c", "identity", "split")
        parts = [self.blocks[name].astype(BLOCK_COLUMNS[name], copy=False).tobytes() for name in names]
        parts.append("\n".join(self.identities).encode())
        return reduce(google_crc32c.extend, parts, 0)

    @cached_property
    def labels(self) -> dict[str, npt.NDArray[np.float32]]:
        """The images' labels, a column [M] each, NaN where absent; read from the set at first use."""
        table = self.table(LABELS, len(self))
        return {} if table is None else checks.labels_of(table, f"{self.url}/{LABELS}")

    @cached_property
    def boxes(self) -> BoxTable | None:
        """The boxes of all samples, in the order of the samples; None if the set was packed without boxes.

        A box's class is a position in ``about["classes"]``, the list of names.
        """
        table = self.table(BOXES, len(self))
        if table is None:
            return None
        checks.check_boxes(table, len(self.about.get("classes", ())), f"{self.url}/{BOXES}")
        return boxes_of_table(table, f"{self.url}/{BOXES}")

    @cached_property
    def clips(self) -> pa.Table:
        """The table of video clips, one row per identity; a table without columns if there are none."""
        table = self.table(CLIPS, len(self.identities))
        if table is None:
            return pa.table({})
        checks.check_clips(table, len(self.about.get("classes", ())), f"{self.url}/{CLIPS}")
        return table

    def table(self, name: str, rows: int) -> pa.Table | None:
        """Read one of the tables that only some sets have; None if this set has none. ``rows``: how many it must have."""
        objects = open_objects(self.url)
        manifest = _manifest(objects)
        if name not in manifest["tables"]:
            return None
        return checks.parquet(_checked(objects, name, manifest), None, rows, f"{self.url}/{name}")

    def identity_of(self, samples: Int64s) -> npt.NDArray[np.int32]:
        """Return the identity of each sample."""
        identity: npt.NDArray[np.int32] = self.blocks["identity"][self.samples["block"][samples]]
        return identity

    def blocks_of_shard(self, shard: int) -> tuple[int, int]:
        """Return the number of a shard's first block, and one past its last."""
        first, last = np.searchsorted(self.blocks["shard"], [shard, shard + 1])
        return int(first), int(last)

    def shards_of(self, blocks: npt.NDArray[np.integer]) -> list[int]:
        """Return the shards that hold these blocks, each once, in order."""
        shards: list[int] = np.flatnonzero(np.bincount(self.blocks["shard"][blocks])).tolist()
        return shards

    def where(self, sample: int) -> str:
        """Describe where a sample lies, for messages."""
        shard = self.shard_url(self.blocks["shard"][self.samples["block"][sample]])
        return f"{self.keys[sample]} in {shard} at byte {self.samples['offset'][sample]}"


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split, numbered by *position* 0..M-1 and sorted by identity; nothing is stored per sample.

    *Labels* number the split's N identities from 0. Label i has the positions ``identity_starts[i]`` to
    ``identity_starts[i + 1] - 1``. The K blocks are sorted by (identity, shard, offset).
    """

    index: Index
    name: str
    identities: npt.NDArray[np.int32]  # [N] the identity in the index of each label
    blocks: npt.NDArray[np.int32]  # [K]
    labels: npt.NDArray[np.int32]  # [K]
    starts: Int64s  # [K + 1] first position of each block
    identity_starts: Int64s  # [N + 1]
    skipped: Int64s | None = None  # [K] samples at the start of each block that are not in the split; None: all are

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def names(self) -> list[str]:
        """Names of the identities by label, [N]."""
        return [self.index.identities[i] for i in self.identities]

    @cached_property
    def counts(self) -> npt.NDArray[np.int32]:
        """Samples of each identity, [N]."""
        return np.diff(self.identity_starts).astype(np.int32)

    @cached_property
    def smallest(self) -> npt.NDArray[np.int32]:
        """Samples in the smallest block of each identity, [N]."""
        first_block = np.searchsorted(self.starts, self.identity_starts[:-1])
        least: npt.NDArray[np.int32] = np.minimum.reduceat(np.diff(self.starts), first_block).astype(np.int32)
        return least

    def samples(self, positions: Int64s) -> Int64s:
        """Return the number in the index of the sample at each position."""
        block = np.searchsorted(self.starts, positions, side="right") - 1
        first: Int64s = self.index.blocks["first"][self.blocks[block]] + positions - self.starts[block]
        return first if self.skipped is None else first + self.skipped[block]

    def labels_of(self, positions: Int64s) -> Int64s:
        """Return the label at each position."""
        labels: Int64s = self.labels[np.searchsorted(self.starts, positions, side="right") - 1].astype(np.int64)
        return labels

    def only(self, chosen: npt.NDArray[np.bool_]) -> "Split":
        """Return a split of the chosen positions only ([M], at least one True), with new positions and labels.

        Neighbouring chosen samples of a block form a block of the new split.
        """
        if chosen.all():
            return self
        places = np.flatnonzero(chosen)
        block = np.searchsorted(self.starts, places, side="right") - 1
        begins = np.flatnonzero((np.diff(places, prepend=-2) != 1) | (np.diff(block, prepend=-1) != 0))
        of = block[begins]
        skipped = places[begins] - self.starts[of] + (0 if self.skipped is None else self.skipped[of])
        return _split(self.index, self.name, self.blocks[of], np.diff(begins, append=len(places)), skipped)


def split_of(index: Index, name: str) -> Split:
    """Return one split of a set.

    Raises:
        InputError: the set has no such split.
    """
    if name not in index.splits:
        raise InputError(f"no split '{name}'", index.url, f"it has: {', '.join(index.splits)}")
    split = _of_blocks(index, name, np.flatnonzero(index.blocks["split"] == index.splits.index(name)))
    _ = split.counts, split.smallest  # every sampler needs them; computed here, so that their temporary memory is released too
    _release()
    return split


def whole_set(index: Index) -> Split:
    """Return all samples of a set, whatever their split."""
    return _of_blocks(index, "", np.arange(len(index.blocks["split"])))


def evaluated_split(index: Index) -> Split | None:
    """Return the split to evaluate on: test, else val, else None."""
    name = evaluation_split(index.splits)
    return None if name is None else split_of(index, name)


def _of_blocks(index: Index, name: str, blocks: npt.NDArray[np.integer]) -> Split:
    """Return a split of these blocks, which are in the order of the index: by (shard, offset)."""
    order = np.argsort(index.blocks["identity"][blocks], kind="stable")
    chosen = blocks[order].astype(np.int32)
    return _split(index, name, chosen, index.blocks["count"][chosen])


def _split(
    index: Index, name: str, blocks: npt.NDArray[np.int32], counts: npt.NDArray[np.integer], skipped: Int64s | None = None
) -> Split:
    """Return a split of blocks sorted by identity; ``counts`` samples of each, after the ``skipped`` ones."""
    identity = index.blocks["identity"][blocks]
    first_block = np.flatnonzero(np.diff(identity, prepend=-1))
    labels = np.repeat(np.arange(len(first_block), dtype=np.int32), np.diff(first_block, append=len(blocks)))
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    identity_starts = starts[np.append(first_block, len(blocks))]
    return Split(index, name, identity[first_block], blocks, labels, starts, identity_starts, skipped)


def read_index(url: str) -> Index:
    """Read a set's index.

    Raises:
        InputError: there is no set, it is incomplete, or the index is damaged or of another format.
    """
    objects = open_objects(url)
    if names_tars(url):
        raise InputError("tar files are named, and an index is needed here", url, INDEX)
    if not objects.exists(MANIFEST):
        there = objects.sizes()
        if any(name.startswith(f"{PACKING}/") for name in there):
            raise InputError("not a whole shard set (its packing was interrupted)", url, "run the same pack again to finish it")
        remedy = (
            "index it with `python -m datasets.index`" if any(name.endswith(".tar") for name in there)
            else "is the address right? `python -m datasets.pack` makes a shard set"
        )  # fmt: skip
        raise InputError("not a whole shard set (no index.json)", url, remedy)
    manifest = _manifest(objects)
    where, names = f"{objects.url}/{IDENTITIES}", _checked(objects, IDENTITIES, manifest)
    column = checks.parquet(names, ["name"], manifest["identities"], where).column("name")
    index = Index(
        url=objects.url,
        shards=tuple(Shard(s["name"], s["size"], s["split"]) for s in manifest["shards"]),
        splits=tuple(manifest["splits"]),
        cameras=tuple(manifest["cameras"]),
        identities=Names(checks.texts(column, "name", where)),
        samples=_columns(objects, SAMPLES, SAMPLE_COLUMNS, manifest, manifest["samples"]),
        blocks=_columns(objects, BLOCKS, BLOCK_COLUMNS, manifest, manifest["blocks"]),
        about=manifest.get("about", {}),
        shards_at=_shards_at(objects, manifest),
    )
    checks.check_tables(
        index.samples, index.blocks, index.shards, index.splits, len(column), len(index.cameras), objects.url
    )  # fmt: skip
    _release()
    return index


def write_index(
    objects: Folder | Bucket, index: Index, keys: Sequence[str], labels: Mapping[str, npt.NDArray[np.float32]] | None = None,
    boxes: pa.Table | None = None, clips: pa.Table | None = None,
) -> None:  # fmt: skip
    """Write an index, ``index.json`` last, so that an interrupted write leaves an incomplete set."""
    of_sample = index.identity_of(np.arange(len(index)))
    tables = {
        SAMPLES: pa.table({"key": pa.array(keys, pa.string()), "identity": of_sample, **index.samples}),
        BLOCKS: pa.table(index.blocks),
        IDENTITIES: pa.table({"name": pa.array(index.identities, pa.string())}),
        **({LABELS: pa.table(dict(labels))} if labels else {}),
        **({BOXES: boxes} if boxes is not None else {}),
        **({CLIPS: clips} if clips is not None else {}),
    }  # fmt: skip
    marks = {}
    for name, table in tables.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        objects.put(name, data)
        marks[name] = {"size": len(data), "crc32c": google_crc32c.value(data)}
    manifest = {
        "format": FORMAT, "version": VERSION,
        "samples": len(index), "blocks": len(index.blocks["first"]), "identities": len(index.identities),
        "splits": index.splits, "cameras": index.cameras,
        "shards": [{"name": s.name, "size": s.size, "split": s.split} for s in index.shards],
        "tables": marks, "about": index.about,
        **({} if index.shards_at is None else {"shards_at": link(objects, index.shards_at)}),
    }  # fmt: skip
    objects.put(MANIFEST, json.dumps(manifest, indent=1).encode())


def check_shards(index: Index) -> None:
    """Compare the shards' sizes with the index; lists the objects, reads no shard.

    Raises:
        InputError: a shard is missing or has another size than the index says.
    """
    sizes = open_objects(index.shards_url).sizes()
    for number, shard in enumerate(index.shards):
        size, where = sizes.get(shard.name), index.shard_url(number)
        if size is None:
            raise InputError("a shard that the index names is missing", where, "copy it there or pack again")
        if size != shard.size:
            what = f"the shard has {size} bytes and its index says {shard.size}"
            raise InputError(what, where, "it was cut off or replaced: copy it again or pack again")


def link(objects: Folder | Bucket, shards: str) -> str:
    """Return how the index of ``objects`` names the place of its shards; `read_index` inverts it.

    Raises:
        InputError: an index in a bucket whose shards lie in a folder, which other machines do not have.
    """
    home = open_objects(shards)
    if isinstance(home, Bucket):
        return home.url
    if isinstance(objects, Bucket):
        raise InputError(f"the shards lie in a folder, {home.url}", objects.url, "write the index to a folder, too")
    here, there = objects.path.resolve(), home.path.resolve()
    return os.path.relpath(there, here) if here.is_relative_to(there.parent) else home.url


def _shards_at(objects: Folder | Bucket, manifest: dict[str, Any]) -> str | None:
    if (said := manifest.get("shards_at")) is None:
        return None
    if isinstance(objects, Folder) and not said.startswith("s3://"):
        said = os.path.normpath(objects.path.resolve() / said)
    home = open_objects(said)
    if isinstance(objects, Bucket) and isinstance(home, Folder):
        checks.damaged("its shards_at, which leads from a bucket to a folder", f"{objects.url}/{MANIFEST}")
    return home.url


def columns(rows: Sequence[tuple[int, ...]] | Sequence[int], types: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Rows of an index as one array a column, by the column's name.

    ``types``: `SAMPLE_COLUMNS` or `BLOCK_COLUMNS`, names and types of the columns; a row has its values in the same order. Rows
    may be flattened.
    """
    table = np.array(rows, np.int64).reshape(-1, len(types))
    return {name: table[:, i].astype(dtype) for i, (name, dtype) in enumerate(types.items())}


def _manifest(objects: Folder | Bucket) -> dict[str, Any]:
    where = f"{objects.url}/{MANIFEST}"
    manifest = json_of(objects.get(MANIFEST), where, checks.REMEDY)
    if not isinstance(manifest, dict) or "format" not in manifest:
        checks.damaged("no format", where)
    form = (manifest["format"], manifest.get("version"))
    if form != (FORMAT, VERSION):
        raise InputError(f"index.json is of format {form}, this reads {(FORMAT, VERSION)}", objects.url, "pack the set again")
    checks.check_manifest(manifest, (SAMPLES, BLOCKS, IDENTITIES), where)
    try:
        for shard in manifest["shards"]:
            checked(shard["name"])
    except InputError as error:
        checks.damaged(f"a shard's name is {error.args[1]}", where)
    return manifest


def _checked(objects: Folder | Bucket, name: str, manifest: dict[str, Any]) -> bytes:
    data, mark = objects.get(name), manifest["tables"][name]
    if len(data) != mark["size"] or google_crc32c.value(data) != mark["crc32c"]:
        raise InputError("the index does not match its checksum", f"{objects.url}/{name}", "copy it again, or pack again")
    return data


def _columns(
    objects: Folder | Bucket, table: str, types: dict[str, Any], manifest: dict[str, Any], rows: int
) -> dict[str, npt.NDArray[Any]]:
    """Read the columns one by one, so that only one is in memory twice, in the types of ``NARROW`` where the values fit."""
    data, where, found = _checked(objects, table, manifest), f"{objects.url}/{table}", {}
    for name, dtype in types.items():
        values = checks.integers(checks.parquet(data, [name], rows, where).column(name), dtype, name, where)
        narrow = NARROW.get(dtype)
        fits = narrow and len(values) and values.min() >= np.iinfo(narrow).min and values.max() <= np.iinfo(narrow).max
        found[name] = values.astype(narrow if fits else dtype, copy=False)
    return found


def _release() -> None:
    """Return freed memory to the kernel: decoding and sorting took about as much as the index; Arrow and glibc would keep it."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
