"""``python -m datasets.export URL``: write the index in the formats of other WebDataset readers, beside the shards.

    dali       train-000000.idx ...   what DALI's wds2idx writes: fn.readers.webdataset(paths=..., index_paths=...)
    wids       shardindex.json        what `widsindex create` writes: wids.ShardListDataset("shardindex.json")
    energon    .nv-meta/, *.tar.idx   what `energon prepare` writes: megatron.energon.get_train_dataset(URL, ...)

The shards do not change. The index does not hold the members' names, so each shard is read once: in a folder only its headers,
in a bucket all of it.
"""

import json
import sqlite3
import struct
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, cast

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.object_storage import Bucket, Folder, open_objects
from datasets.shards.index import Index, Shard, check_shards, read_index
from datasets.shards.tar_reader import Samples, TarReader, samples_of

Form = Literal["dali", "wids", "energon"]
META = ".nv-meta"
SCHEMA = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER, content_byte_size INTEGER);
"""
LOOKUPS = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""  # created after all rows are inserted


def export(url: str, forms: tuple[Form, ...], done: Callable[[Shard], None] = lambda _: None) -> Index:
    """Write these formats beside a set's shards, replacing older ones. The main file of each format is written last.

    Raises:
        InputError: the set is not complete, a shard is damaged, or (energon) two samples have the same key.
    """
    index = read_index(url)
    check_shards(index)
    objects = open_objects(index.shards_url)
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Path(folder) / "index.sqlite")
        for number, shard in enumerate(index.shards):
            samples = walk(objects, shard)
            counts[shard.name] = len(samples)
            if "dali" in forms:
                objects.put(shard.name.removesuffix(".tar") + ".idx", dali_index(samples))
            if "energon" in forms:
                objects.put(f"{shard.name}.idx", energon_offsets(samples))
                table.add(number, samples, index.shards_url)
            done(shard)
        table.close()
        if "energon" in forms:
            objects.put_file(f"{META}/index.sqlite", table.path)
            for name, text in energon_files(index, counts).items():
                objects.put(f"{META}/{name}", text.encode())
    if "wids" in forms:
        objects.put("shardindex.json", wids_index(index, counts).encode())
    return index


def walk(objects: Folder | Bucket, shard: Shard) -> Samples:
    """Return a shard's samples."""
    where = f"{objects.url}/{shard.name}"
    if isinstance(objects, Folder):
        with Path(where).open("rb") as file:
            return samples_of(file, where, "r:")
    reader = TarReader(objects, shard.name, shard.size, lambda _: None, keep=False)
    return samples_of(cast(IO[bytes], reader), where, "r|", shard.size)


def dali_index(samples: Samples) -> bytes:
    """Return DALI's index: `v1.2 N`, then one line per sample with the ending, offset, size and name of each member."""
    lines = [" ".join(f"{part.ending} {part.offset} {part.size} {part.name}" for part in sample) for sample in samples]
    return "\n".join([f"v1.2 {len(samples)}", *lines, ""]).encode()


def wids_index(index: Index, counts: dict[str, int]) -> str:
    """Return wids' JSON: the shards with their sizes and numbers of samples. URLs are relative to the file."""
    shards = [{"url": shard.name, "nsamples": counts[shard.name], "filesize": shard.size} for shard in index.shards]
    name = index.shards_url.rpartition("/")[2]
    return json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}, indent=2)


def energon_offsets(samples: Samples) -> bytes:
    """Return Energon's offsets as unsigned 64-bit numbers: where each sample begins, and where the last one ends."""
    end = samples[-1][-1].end if samples else 0
    return struct.pack(f"<{len(samples) + 1}Q", *(sample[0].start for sample in samples), end)


def energon_files(index: Index, counts: dict[str, int]) -> dict[str, str]:
    """Return the small files of .nv-meta by name (JSON is valid YAML). Energon then yields a sample as a dict of bytes."""
    splits = {split: [shard.name for shard in index.shards if shard.split == split] for split in index.splits}
    return {
        "index.uuid": str(uuid.UUID(int=index.checksum)),  # changes only with the content
        "split.yaml": json.dumps({"split_parts": splits, "exclude": []}, indent=2),
        "dataset.yaml": json.dumps({"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}),
        ".info.json": json.dumps({"shard_counts": counts}, indent=2),
    }


class Table:
    """Writes Energon's index.sqlite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path)
        self._database.executescript(SCHEMA)

    def add(self, shard: int, samples: Samples, url: str) -> None:
        """Add rows for the samples of a shard, and for the tar members of each. ``shard``: its number; ``url``: its address, for
        error messages."""
        rows = [(shard, s[0].key, number, s[0].start, s[-1].end - s[0].start) for number, s in enumerate(samples)]
        parts = [(shard, n, part.ending, part.offset, part.size) for n, sample in enumerate(samples) for part in sample]
        try:
            self._database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise InputError("two samples have the same key, which Energon refuses", url, "leave out --forms energon") from error
        self._database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)

    def close(self) -> None:
        """Create the lookups and close the file."""
        self._database.executescript(LOOKUPS)
        self._database.commit()
        self._database.close()


@dataclass(frozen=True)
class Export:
    """Write the index of a shard set in the formats of other readers, beside its shards."""

    url: str = field(kw_only=True, metadata=POSITIONAL)
    """A folder or s3://bucket/prefix."""
    forms: tuple[Form, ...] = ("dali", "wids", "energon")
    """dali: a .idx for each shard; wids: shardindex.json; energon: .nv-meta and a .tar.idx for each shard."""


def main() -> None:
    """The command."""
    args = parse(Export, "python -m datasets.export")
    index = export(args.url, args.forms)
    print(f"exported the index of {len(index.shards)} shards at {index.shards_url} for {', '.join(args.forms)}")


if __name__ == "__main__":
    run_main(main)
