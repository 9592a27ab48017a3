"""The index in memory is small, and equals what was written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.object_storage import open_objects
from datasets.sampling.epochs import runs
from datasets.sampling.sampler import largest
from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Names, Shard, columns, read_index, split_of, write_index


def two_blocks(url: str, far: int) -> Index:
    """Two blocks of an identity each, the second ``far`` bytes into its shard."""
    samples = columns([(0, 512, 100, 0), (0, 1536, 200, 1), (1, far + 512, 300, 0)], SAMPLE_COLUMNS)
    blocks = columns([(0, 1, 0, 0, 2048, 0, 2, 2**32 - 1), (0, 0, 0, far, 1024, 2, 1, 7)], BLOCK_COLUMNS)
    return Index(url, (Shard("train-0.tar", far + 2048, "train"),), ("train",), ("a", "b"), ("p", "q"), samples, blocks, {})


@pytest.mark.parametrize(("far", "offset"), [(2048, np.uint32), (2**32 - 512, np.int64)])
def test_what_is_read_is_what_was_written(tmp_path: Path, far: int, offset: type) -> None:
    written = two_blocks(str(tmp_path), far)
    write_index(open_objects(str(tmp_path)), written, ["q/0", "q/1", "p/0"])
    found = read_index(str(tmp_path))
    for table, other in ((found.samples, written.samples), (found.blocks, written.blocks)):
        assert table.keys() == other.keys()
        for name, values in table.items():
            np.testing.assert_array_equal(values.astype(np.int64), other[name].astype(np.int64))
    assert found.samples["offset"].dtype == offset
    assert found.blocks["crc32c"].dtype == np.uint32
    assert found.identities == written.identities
    assert found.checksum == written.checksum
    split = split_of(found, "train")
    assert split.names == ["p", "q"]
    assert split.samples(np.arange(3)).tolist() == [2, 0, 1]
    assert split.labels_of(np.arange(3)).tolist() == [0, 1, 1]
    assert split.counts.tolist() == split.smallest.tolist() == [1, 2]


def test_names_are_a_sequence_of_texts() -> None:
    names = Names(pa.chunked_array([["a", "b"], ["c"]]))
    assert list(names) == ["a", "b", "c"]
    assert (names[1], names[-1], names[1:], len(names)) == ("b", "c", ["b", "c"], 3)
    assert "c" in names
    assert names.index("c") == 2
    assert names == ("a", "b", "c")
    assert names != ("a", "b")
    assert names != ("a", "b", "d")


@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=20), st.integers(1, 25))
def test_largest_is_a_stable_sorts_head(values: list[float], count: int) -> None:
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(largest(array, count), np.argsort(-array, kind="stable")[:count])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=8))
def test_runs_follow_each_other(pairs: list[tuple[int, int]]) -> None:
    first, counts = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [number for start, count in pairs for number in range(start, start + count)]
    assert runs(first, counts).tolist() == expected
