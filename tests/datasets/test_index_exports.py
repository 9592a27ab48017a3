"""Exports of the index: compared with the tar, and read by the tools themselves if a Python that has them is given."""

import json
import os
import sqlite3
import struct
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
from shardset import packed, pictures_in

from datasets.errors import InputError
from datasets.export import export
from datasets.inspect import faults
from datasets.object_storage import open_objects
from datasets.shards.index import Index, read_index, write_index
from datasets.shards.scan import Rules, scan

READERS = Path(__file__).parent / "export_readers.py"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("export")
    packed(pictures_in(folder / "pictures"), str(folder / "set"))
    return export(str(folder / "set"), ("dali", "wids", "energon"))


def in_tar(index: Index, shard: str) -> list[tarfile.TarInfo]:
    with tarfile.open(Path(index.url) / shard) as tar:
        return tar.getmembers()


def test_dali_lists_every_member(index: Index) -> None:
    for shard in index.shards:
        found = (Path(index.url) / shard.name).with_suffix(".idx").read_text().splitlines()
        expected = [f"jpg {m.offset_data} {m.size} {m.name}" for m in in_tar(index, shard.name)]
        assert found == [f"v1.2 {len(expected)}", *expected]


def test_wids_lists_every_shard(index: Index) -> None:
    described = json.loads((Path(index.url) / "shardindex.json").read_text())
    assert described["wids_version"] == 1
    assert [shard["url"] for shard in described["shardlist"]] == [shard.name for shard in index.shards]
    assert [shard["filesize"] for shard in described["shardlist"]] == [shard.size for shard in index.shards]
    assert sum(shard["nsamples"] for shard in described["shardlist"]) == len(index)


def test_energon_finds_every_sample(index: Index) -> None:
    meta = Path(index.url) / ".nv-meta"
    info = json.loads((meta / ".info.json").read_text())
    assert sum(info["shard_counts"].values()) == len(index)
    parts = json.loads((meta / "split.yaml").read_text())["split_parts"]
    assert [name for split in index.splits for name in parts[split]] == [shard.name for shard in index.shards]
    database = sqlite3.connect(meta / "index.sqlite")
    for number, shard in enumerate(index.shards):
        headers = [member.offset for member in in_tar(index, shard.name)]
        data = (Path(index.url) / f"{shard.name}.idx").read_bytes()
        offsets = struct.unpack(f"<{len(data) // 8}Q", data)
        assert list(offsets[:-1]) == headers
        assert offsets[-1] == headers[-1] + 512 + -(-in_tar(index, shard.name)[-1].size // 512) * 512
        rows = database.execute("SELECT byte_offset, byte_size FROM samples WHERE tar_file_id=? ORDER BY sample_index", [number])
        assert [(start, start + size) for start, size in rows] == list(pairwise(offsets))
    keys = [key for (key,) in database.execute("SELECT sample_key FROM samples ORDER BY tar_file_id, sample_index")]
    database.close()
    assert keys == list(index.keys)


def test_the_set_is_as_whole_as_before(index: Index) -> None:
    assert read_index(index.url).checksum == index.checksum
    assert not list(faults(index, read=True))


def test_a_bucket_gets_what_a_folder_gets(index: Index, s3_url: str) -> None:
    objects = open_objects(s3_url)
    for path in Path(index.url).rglob("*"):
        name = str(path.relative_to(index.url))
        if name.endswith(".tar") or name == "index.json" or name.startswith("index/"):
            objects.put(name, path.read_bytes())
    export(s3_url, ("dali", "energon"))
    for shard in index.shards:
        for name in (shard.name.replace(".tar", ".idx"), f"{shard.name}.idx"):
            assert objects.get(name) == (Path(index.url) / name).read_bytes()
    assert objects.get(".nv-meta/split.yaml") == (Path(index.url) / ".nv-meta" / "split.yaml").read_bytes()
    assert not objects.exists("shardindex.json")


def test_a_key_that_comes_twice_is_refused_for_energon(index: Index, tmp_path: Path) -> None:
    first = index.shards[0]
    objects = open_objects(str(tmp_path))
    objects.put(first.name, (Path(index.url) / first.name).read_bytes())
    objects.put("train-copy.tar", (Path(index.url) / first.name).read_bytes())
    twice, keys, _ = scan(str(tmp_path), Rules())
    write_index(objects, twice, keys)
    with pytest.raises(InputError, match="two samples have the same key"):
        export(str(tmp_path), ("energon",))
    export(str(tmp_path), ("dali", "wids"))
    assert not (tmp_path / ".nv-meta").exists()


@pytest.mark.parametrize("tool", ["wids", "energon"])
def test_the_tool_itself_reads_it(index: Index, tool: str) -> None:
    """HARDSHARD_EXPORT_PYTHON: a Python with `webdataset<1` (for wids) and `megatron-energon`; ours cannot have them."""
    python = os.environ.get("HARDSHARD_EXPORT_PYTHON")
    if not python:
        pytest.skip("HARDSHARD_EXPORT_PYTHON names no Python that has wids and megatron-energon")
    ended = subprocess.run([python, str(READERS), tool, index.url], capture_output=True, text=True, timeout=120, check=True)
    read = json.loads(ended.stdout.splitlines()[-1])
    shards = [shard.name for shard in index.shards if tool == "wids" or shard.split == "train"]
    expected = {}
    for shard in shards:
        with tarfile.open(Path(index.url) / shard) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                expected[member.name.removesuffix(".jpg")] = data.read().hex()
    assert read == expected
