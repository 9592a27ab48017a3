"""Inspecting reports every difference between shards and index."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from pictures import market, png, put, tarred

from datasets.inspect import facts, faults
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.shards.index import read_index, write_index
from datasets.shards.scan import Rules, scan


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A sound set."""
    pack("market1501", put(tmp_path / "market", market()), str(tmp_path / "set"), Options(shard_size=40_000, max_block=6_000))
    return tmp_path / "set"


def run(*args: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "datasets.inspect", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def found(url: Path, read: bool = True) -> list[str]:
    """The faults of a set."""
    return list(faults(read_index(str(url)), read))


def with_column(url: Path, table: str, column: str, change: Callable[[Any], Any]) -> None:
    """Write the set's index with a column changed."""
    index = read_index(str(url))
    columns = {**getattr(index, table), column: change(getattr(index, table)[column].copy())}
    write_index(open_objects(str(url)), replace(index, **{table: columns}), index.keys)


def test_a_sound_set_is_printed_without_faults(packed: Path) -> None:
    ended = run(packed)
    assert ended.returncode == 0, ended.stderr
    for part in ("train", "query", "gallery", "54 images of 10 identities in 3 cameras", "256x128", "whole and sound: checksums"):
        assert part in ended.stdout, part


def test_json_is_one_object_with_all_facts(packed: Path) -> None:
    reported = json.loads(run(packed, "--json").stdout)
    assert (reported["samples"], reported["identities"], reported["cameras"], reported["faults"]) == (54, 10, 3, [])
    assert reported["verified"] == "everything"
    assert reported["splits"]["train"]["samples_per_identity"] == [6, 6.0, 6]
    assert reported["splits"]["gallery"]["samples_per_identity"] == [1, 6.0, 6]
    assert reported["bytes"] == sum(path.stat().st_size for path in packed.glob("*.tar"))
    images = sum(len(data) for name, data in market().items() if name.endswith(".jpg"))
    assert reported["tar_overhead"] == pytest.approx(1 - images / reported["bytes"])


def test_a_set_on_s3(tmp_path: Path, s3_bucket: str) -> None:
    pack("market1501", put(tmp_path / "market", market()), s3_bucket)
    assert json.loads(run(s3_bucket, "--json").stdout)["faults"] == []


@pytest.mark.parametrize("read", [False, True])
def test_missing_and_short_shards_are_all_named(packed: Path, read: bool) -> None:
    (packed / "query-000000.tar").unlink()
    short = (packed / "train-000000.tar").read_bytes()[:-3000]
    (packed / "train-000000.tar").write_bytes(short)
    reported = found(packed, read)
    assert [fault.partition(":")[0] for fault in reported] == ["train-000000.tar", "query-000000.tar"]
    assert f"has {len(short)} bytes" in reported[0]
    ended = run(packed)
    assert ended.returncode == 2
    assert ended.stdout.count("FAULT ") == 2
    assert ended.stderr.splitlines()[-1].startswith("error: 2 faults, the first: train-000000.tar: has")


def test_a_flipped_byte_is_found_by_its_block_only(packed: Path) -> None:
    index = read_index(str(packed))
    block = 3
    shard = packed / index.shards[index.blocks["shard"][block]].name
    data = bytearray(shard.read_bytes())
    data[index.blocks["offset"][block] + 700] ^= 1
    shard.write_bytes(data)
    (reported,) = found(packed)
    assert reported.startswith(f"{shard.name} at byte {index.blocks['offset'][block]}: the checksum of ")
    assert f"identity {index.identities[index.blocks['identity'][block]]} is wrong" in reported
    assert found(packed, read=False) == []


def shifted(values: Any) -> Any:
    values[5] += 1
    return values


@pytest.mark.parametrize(
    ("table", "column", "words"),
    [
        ("samples", "offset", "the tar has no member"),
        ("samples", "size", "bytes, at byte"),
        ("blocks", "crc32c", "checksum"),
    ],
)
def test_an_index_that_does_not_match_is_reported(packed: Path, table: str, column: str, words: str) -> None:
    with_column(packed, table, column, shifted)
    (reported,) = found(packed)
    assert words in reported


def test_an_index_that_contradicts_itself_ends_with_2(packed: Path) -> None:
    with_column(packed, "blocks", "identity", lambda values: np.where(np.arange(len(values)) == 2, 99, values))
    ended = run(packed)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the index is damaged (a block's identity is not there): ")
    assert len(ended.stderr.splitlines()) == 1


def test_wrong_keys_and_unreadable_images_are_reported(tmp_path: Path) -> None:
    files = {"ann/1.png": png(1), "ann/2.png": b"bad", "bob/1.png": png(3)}
    tarred(tmp_path / "train-0.tar", files)
    index, keys, _ = scan(str(tmp_path), Rules())
    keys[2] = "bob/9"
    write_index(open_objects(str(tmp_path)), index, keys)
    unreadable, wrong = found(tmp_path)
    assert "ann/2 cannot be decoded" in unreadable
    assert "the index has bob/9" in wrong
    assert "the tar has bob/1.png" in wrong


def test_bytes_that_are_no_tar_are_reported(packed: Path) -> None:
    index = read_index(str(packed))
    shard = packed / index.shards[0].name
    data = bytes(shard.stat().st_size)
    shard.write_bytes(data)

    def zeros_checksum(crcs: Any) -> Any:
        for block in np.flatnonzero(index.blocks["shard"] == 0):
            crcs[block] = google_crc32c.value(bytes(index.blocks["size"][block]))
        return crcs

    with_column(packed, "blocks", "crc32c", zeros_checksum)
    reported = found(packed)
    assert len(reported) == (index.blocks["count"][index.blocks["shard"] == 0]).sum()
    assert all("the tar has no member" in fault for fault in reported)


def test_every_block_is_read_whatever_the_window(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = read_index(str(packed))
    for window in (1, 5_000, 12_345, 1 << 20):
        monkeypatch.setattr("datasets.inspect.WINDOW", window)
        read: list[int] = []
        assert list(faults(index, True, read.append)) == []
        assert sum(read) == index.blocks["size"].sum()
        assert len(read) == len(index.blocks["size"])


def test_what_is_no_set_ends_with_2(tmp_path: Path) -> None:
    ended = run(tmp_path / "nothing")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: not a whole shard set (no index.json)")
    assert len(ended.stderr.splitlines()) == 1


def test_facts_of_a_split_without_samples(packed: Path) -> None:
    index = read_index(str(packed))
    assert facts(replace(index, splits=(*index.splits, "val")))["splits"]["val"]["samples_per_identity"] == []
