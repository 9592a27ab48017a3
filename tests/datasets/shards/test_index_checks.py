"""An index with arbitrary content is read as a sound one, or refused in one line."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.object_storage import open_objects
from datasets.shards.boxes import Box, table_of_boxes
from datasets.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS, Index, Shard, columns, read_index, split_of, write_index
from datasets.shards.locality import locality_of

TABLES = ("samples", "blocks", "identities", "labels", "boxes", "clips")


def write(folder: Path) -> Path:
    """A set's index with all that an index may have: two identities in two shards, one image of two boxes."""
    samples = columns([(0, 512, 100, 0), (0, 1536, 200, 1), (1, 512, 300, 0)], SAMPLE_COLUMNS)
    blocks = columns([(0, 1, 0, 0, 2048, 0, 2, 9), (1, 0, 1, 0, 1024, 2, 1, 7)], BLOCK_COLUMNS)
    shards = (Shard("train-0.tar", 4096, "train"), Shard("test-0.tar", 2048, "test"))
    about = {"size": [32, 16], "mirror": True, "classes": ["long", "round"], "max_block": 4096, "layout": "x", "stream": "rgb"}
    index = Index(str(folder), shards, ("train", "test"), ("a", "b"), ("p", "q"), samples, blocks, about)
    boxes = table_of_boxes([[Box(0, 0, 0.5, 1, "long"), Box(0, 0, 1, 1, "round")], [], None], about["classes"])
    clips = pa.table({
        "file": ["p.mp4", "q.mp4"], "frames": pa.array([9, 3], pa.int32()),
        "actions": pa.array([[0], [1, 0]], pa.list_(pa.int16())), "frame_actions": pa.array([[0] * 9, []], pa.list_(pa.int16())),
    })  # fmt: skip
    labels = {"age": np.array([1, np.nan, 3], np.float32)}
    write_index(open_objects(str(folder)), index, ["q/0", "q/1", "p/0"], labels, boxes, clips)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"))


def use(folder: Path) -> None:
    """Read all of an index, and what follows from it."""
    index = read_index(str(folder))
    assert len(index.keys) == len(index)
    assert all(len(values) == len(index) for values in index.labels.values())
    if index.boxes is not None:
        assert len(index.boxes.starts) == len(index) + 1
        assert index.boxes.classes.max(initial=0) < max(len(index.about["classes"]), 1)
    assert index.clips.num_rows in (0, len(index.identities))
    for shard, offset, size in zip(*(index.blocks[name].tolist() for name in ("shard", "offset", "size")), strict=True):
        assert 0 <= offset <= offset + size <= index.shards[shard].size
    if len(index):
        locality_of(index, index.about.get("max_block", 1))
    for name in index.splits:
        split = split_of(index, name) if len(index) else None
        if split is not None and len(split):
            assert index.samples["block"][split.samples(np.arange(len(split)))].max() < len(index.blocks["shard"])
            assert len(split.names) == len(split.counts)


def replaced(folder: Path, name: str, data: bytes) -> None:
    """Write a table in the place of one, and its right checksum."""
    manifest = json.loads((folder / "index.json").read_text())
    manifest["tables"][f"index/{name}.parquet"] = {"size": len(data), "crc32c": google_crc32c.value(data)}
    (folder / "index.json").write_text(json.dumps(manifest))
    (folder / "index" / f"{name}.parquet").write_bytes(data)


def with_column(folder: Path, name: str, column: str, values: Any) -> None:
    """A table with a column replaced, or without it for None."""
    table = pq.read_table(folder / "index" / f"{name}.parquet")
    at, sink = table.column_names.index(column), io.BytesIO()
    pq.write_table(table.remove_column(at) if values is None else table.set_column(at, column, values), sink)
    replaced(folder, name, sink.getvalue())


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        use(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_the_sound_one_is_read(sound: Path) -> None:
    use(sound)
    assert read_index(str(sound)).boxes is not None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((name, wrong) for name in ("samples", "blocks", "identities") for wrong in (None, [], -1, 1, 4, 1 << 70, True, "3")),
        *((name, wrong) for name in ("splits", "cameras") for wrong in (None, "ab", [1], ["a", "a"], [["a"]], {}, [])),
        *(("shards", wrong) for wrong in (None, {}, [1], [[]], [], [{"name": "train-0.tar"}])),
        *(("shards.0.size", wrong) for wrong in (None, [], -1, "x", 1.5, 1024)),
        *(("shards.0.name", wrong) for wrong in (None, 3, "../x", "/etc/passwd", "", "test-0.tar")),
        *(("shards.0.split", wrong) for wrong in (None, 3, "none", "test")),
        *(("tables", wrong) for wrong in (None, [], {}, {"index/samples.parquet": 3})),
        *(("tables.index/samples.parquet.size", wrong) for wrong in (None, [], "x", -1)),
        *(("about", wrong) for wrong in ([], "x", 3)),
        *(("about.size", wrong) for wrong in (None, 3, [1], [0, 5], ["a", "b"], [1.5, 2], [1 << 40, 1], [32, 16, 3])),
        *((f"about.{name}", [1]) for name in ("mirror", "classes", "max_block", "layout", "stream")),
        ("about.classes", []),
        ("about.max_block", 0),
        ("format", None),
        ("version", 99),
        ("version", [1]),
    ],
)
def test_wrong_values_in_the_json(sound: Path, place: str, value: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    manifest = json.loads((folder / "index.json").read_text())
    *path, last = place.split(".", 1) if place.startswith("about") else place.replace("s.0.", "s|0|").split("|")
    if place.startswith("tables."):
        path, last = ["tables", "index/samples.parquet"], "size"
    inner = manifest
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    (folder / "index.json").write_text(json.dumps(manifest))
    refused(folder)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"a":' * 100_000, "\xff\xfe"])
def test_an_index_json_that_is_none(sound: Path, text: str, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    (folder / "index.json").write_bytes(text.encode("latin-1"))
    refused(folder)


ARRAYS: list[tuple[str, str, Any]] = [
    *(("blocks", name, [0, 7]) for name in ("shard", "identity", "split")),
    *(("blocks", name, [0, -1]) for name in ("shard", "identity", "split", "offset", "size", "first", "count", "crc32c")),
    ("blocks", "shard", [1, 0]),
    ("blocks", "split", [1, 1]),
    ("blocks", "offset", [1 << 40, 0]),
    ("blocks", "offset", [(1 << 63) - 1, 0]),
    ("blocks", "size", [5000, 1024]),
    ("blocks", "size", [1 << 40, 1024]),
    ("blocks", "count", [3, 0]),
    ("blocks", "count", [1, 2]),
    ("blocks", "first", [0, 1]),
    ("blocks", "crc32c", [0, 1 << 33]),
    ("blocks", "identity", [0.0, 1.0]),
    ("blocks", "identity", ["a", "b"]),
    ("blocks", "identity", [None, 1]),
    ("blocks", "identity", [[0], [1]]),
    ("samples", "block", [0, 1, 1]),
    ("samples", "block", [0, 0, 2]),
    ("samples", "block", [0, 0, -1]),
    ("samples", "offset", [512, 1536, 1000]),
    ("samples", "offset", [-1, 1536, 512]),
    ("samples", "size", [100, -5, 300]),
    ("samples", "size", [100, 200, 513]),
    ("samples", "camera", [0, 2, 0]),
    ("samples", "camera", [0, -1, 0]),
    ("samples", "camera", [0, 1 << 20, 0]),
    ("samples", "camera", [None, 0, 0]),
    ("samples", "key", [1, 2, 3]),
    ("samples", "key", ["a", None, "b"]),
    ("identities", "name", [1, 2]),
    ("identities", "name", ["a", None]),
    ("labels", "age", [1, 2, 3]),
    ("labels", "age", ["a", "b", "c"]),
    ("labels", "age", [None, 1.0, 2.0]),
    ("labels", "age", [np.inf, 1.0, 2.0]),
    ("boxes", "class", [[0, 2], [], None]),
    ("boxes", "class", [[0, -1], [], None]),
    ("boxes", "class", [[0], [], None]),
    ("boxes", "class", [[0, None], [], None]),
    ("boxes", "class", [0, 1, 1]),
    ("boxes", "corners", [[0.0] * 7, [], None]),
    ("boxes", "corners", [[0.0] * 4, [0.0] * 4, None]),
    ("boxes", "corners", [[0.0, 0, 2, 2] * 2, [], None]),
    ("boxes", "corners", [[float("nan")] * 8, [], None]),
    ("boxes", "corners", [[0.5, 0.5, 0.1, 0.1] * 2, [], None]),
    ("boxes", "corners", [["a"] * 8, [], None]),
    ("boxes", "ignored", [[True], [], None]),
    ("clips", "file", [1, 2]),
    ("clips", "frames", [0, 3]),
    ("clips", "frames", [-5, 3]),
    ("clips", "frames", [1.5, 3.0]),
    ("clips", "actions", [[0], [2]]),
    ("clips", "actions", [[0], []]),
    ("clips", "actions", [[0], None]),
    ("clips", "actions", [0, 1]),
    ("clips", "frame_actions", [[-2], []]),
    ("clips", "frame_actions", [["a"], []]),
]


@pytest.mark.parametrize(("table", "column", "values"), ARRAYS)
def test_wrong_values_in_tables(sound: Path, table: str, column: str, values: list[Any], tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    with_column(folder, table, column, pa.array(values))
    refused(folder)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("samples", "key"),
        ("samples", "size"),
        ("blocks", "first"),
        ("identities", "name"),
        ("boxes", "class"),
        ("clips", "frames"),
    ],
)
def test_columns_that_are_missing(sound: Path, table: str, column: str, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    with_column(folder, table, column, None)
    refused(folder)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-9], lambda data: b"PAR1" * 9, lambda data: data[40:]])
def test_files_that_are_no_tables(sound: Path, table: str, change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    data = change((folder / "index" / f"{table}.parquet").read_bytes())
    replaced(folder, table, data)
    refused(folder)


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_another_length(sound: Path, table: str, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "set")
    whole, sink = pq.read_table(folder / "index" / f"{table}.parquet"), io.BytesIO()
    pq.write_table(whole.slice(0, len(whole) - 1), sink)
    replaced(folder, table, sink.getvalue())
    assert "rows where" in refused(folder)


def test_checks_go_on_past_the_first_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.shards.index_checks.ROWS", 2)
    use(write(tmp_path / "sound"))
    for table, column, values in ARRAYS[:27]:
        folder = write(tmp_path / "set")
        with_column(folder, table, column, pa.array(values))
        refused(folder)


def test_a_shard_larger_than_four_gib_is_in_order(tmp_path: Path) -> None:
    index = read_index(str(write(tmp_path)))
    far = 1 << 33
    blocks = {**index.blocks, "offset": np.array([far, 0])}
    samples = {**index.samples, "offset": np.array([far + 512, far + 1536, 512])}
    large = replace(index, shards=(Shard("train-0.tar", far + 2048, "train"), index.shards[1]), blocks=blocks, samples=samples)
    write_index(open_objects(str(tmp_path)), large, list(index.keys))
    use(tmp_path)


# ---- any bytes


def outcome(folder: Path) -> None:
    try:
        use(folder)
    except InputError as error:
        assert str(folder) in str(error)  # noqa: PT017 - either is right


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@st.composite
def manifests(draw: st.DrawFn, text: str) -> str:
    """An index.json with some of its values replaced, anywhere."""
    manifest = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        manifest = changed(draw, manifest)
    return json.dumps(manifest)


def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one inside it replaced, or another in its place."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 5:
        return draw(VALUES)
    step = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    value[step] = changed(draw, value[step])
    return value


EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def any_json(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "set"
    if not folder.exists():
        shutil.copytree(sound, folder)
    (folder / "index.json").write_text(data.draw(manifests((sound / "index.json").read_text())))
    outcome(folder)


def any_table(sound: Path, tmp_path: Path, table: str, edits: list[tuple[int, int]]) -> None:
    folder = shutil.copytree(sound, tmp_path / "set", dirs_exist_ok=True)
    content = bytearray((folder / "index" / f"{table}.parquet").read_bytes())
    for place, value in edits:
        content[place % len(content)] = value
    replaced(folder, table, bytes(content))
    outcome(folder)


@given(data=st.data())
@settings(max_examples=50, suppress_health_check=FIXTURES)
def test_any_json(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    any_json(sound, tmp_path, data)


@given(table=st.sampled_from(TABLES), edits=EDITS)
@example(table="blocks", edits=[(132, 1)])  # a column that is longer than the others
@settings(max_examples=50, suppress_health_check=FIXTURES)
def test_any_table(sound: Path, tmp_path: Path, table: str, edits: list[tuple[int, int]]) -> None:
    any_table(sound, tmp_path, table, edits)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=3000, suppress_health_check=FIXTURES)
def test_any_json_at_length(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    any_json(sound, tmp_path, data)


@pytest.mark.slow
@given(table=st.sampled_from(TABLES), edits=EDITS)
@example(table="blocks", edits=[(132, 1)])  # a column that is longer than the others
@settings(max_examples=5000, suppress_health_check=FIXTURES)
def test_any_table_at_length(sound: Path, tmp_path: Path, table: str, edits: list[tuple[int, int]]) -> None:
    any_table(sound, tmp_path, table, edits)
