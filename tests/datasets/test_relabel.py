"""A relabelled index gives every image with its new identity, from shards that did not change."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import market, png, put, tarred

from datasets.errors import InputError
from datasets.export import export
from datasets.inspect import faults
from datasets.loading.cache import CacheConfig
from datasets.loading.store import open_store, read_samples, shard_etags
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.relabel import write_relabelled
from datasets.shards.boxes import Box, table_of_boxes
from datasets.shards.index import BOXES, MANIFEST, Index, check_shards, read_index, write_index
from datasets.shards.index_checks import check_tables
from datasets.shards.joined import join
from datasets.shards.relabelled import relabelled
from datasets.shards.scan import Rules, scan

Names = list[str | None]
OPTIONS = Options(shard_size=20_000, max_block=5_000)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Market-1501 in small: several shards, and several blocks of an identity."""
    root = tmp_path_factory.mktemp("original")
    return pack("market1501", put(root / "market", market()), str(root / "set"), OPTIONS)


def names_of(index: Index) -> Names:
    """The identity of every sample."""
    return [index.identities[number] for number in index.identity_of(np.arange(len(index)))]


def unpacked(index: Index, names: Sequence[str | None]) -> set[tuple[Any, ...]]:
    """Key, bytes, identity, camera and split of every sample, read from the tars by the standard library alone."""
    found = set()
    for number, shard in enumerate(index.shards):
        with tarfile.open(index.shard_url(number)) as tar:
            held = {member.offset_data: (member.name, tar.extractfile(member)) for member in tar}
        for sample in range(len(index)):
            if names[sample] is None or index.blocks["shard"][index.samples["block"][sample]] != number:
                continue
            name, _ = held[int(index.samples["offset"][sample])]
            data = tar_bytes(index, number, sample)
            camera = index.cameras[index.samples["camera"][sample]]
            found.add((name.partition(".")[0], data, names[sample], camera, shard.split))
    return found


def tar_bytes(index: Index, shard: int, sample: int) -> bytes:
    with Path(index.shard_url(shard)).open("rb") as file:
        file.seek(int(index.samples["offset"][sample]))
        return file.read(int(index.samples["size"][sample]))


def given_by(index: Index) -> set[tuple[Any, ...]]:
    """The same by the project's readers."""
    every = np.arange(len(index))
    shards = index.blocks["shard"][index.samples["block"]]
    cameras = [index.cameras[camera] for camera in index.samples["camera"]]
    splits = [index.shards[shard].split for shard in shards]
    return set(zip(index.keys, read_samples(index, every), names_of(index), cameras, splits, strict=True))


def reader_of(index: Index) -> Callable[[int], bytes]:
    """Reads a block from a folder."""

    def read(block: int) -> bytes:
        row = {name: int(values[block]) for name, values in index.blocks.items()}
        return Path(index.shard_url(row["shard"])).read_bytes()[row["offset"] : row["offset"] + row["size"]]

    return read


@settings(max_examples=25)
@given(data=st.data())
def test_every_sample_has_its_new_name(original: Index, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = names_of(original)
    some = st.sampled_from([None, "a", "zz", *original.identities])
    for sample, name in data.draw(st.dictionaries(st.integers(0, len(names) - 1), some, max_size=len(names))).items():
        names[sample] = name
    found = write_relabelled(original, names, str(tmp_path_factory.mktemp("new") / "index"))
    assert given_by(found) == unpacked(original, names)
    assert list(found.identities) == sorted({name for name in names if name is not None})
    assert list(faults(found, read=True)) == []
    places = list(zip(found.blocks["shard"].tolist(), found.blocks["offset"].tolist(), strict=True))
    assert places == sorted(places)
    order = {key: place for place, key in enumerate(original.keys)}
    assert [order[key] for key in found.keys] == sorted(order[key] for key in found.keys)
    assert (found.checksum == original.checksum) == (names == names_of(original))


def test_only_divided_blocks_are_read(original: Index) -> None:
    names = names_of(original)
    block = int(np.flatnonzero(original.blocks["count"] > 2)[1])
    first = int(original.blocks["first"][block])
    moved = original.identities[original.blocks["identity"][0]]
    names = [f"{name}-renamed" if name == moved else name for name in names]
    names[first + 1] = None
    read: list[int] = []
    changed, kept = relabelled(original, names, lambda block: read.append(block) or reader_of(original)(block))  # type: ignore[func-returns-value]
    assert read == [block]
    assert kept.tolist() == [sample for sample in range(len(original)) if sample != first + 1]
    assert len(changed.blocks["first"]) == len(original.blocks["first"]) + 1
    sizes = len(changed.identities), len(changed.cameras)
    check_tables(changed.samples, changed.blocks, changed.shards, changed.splits, *sizes, changed.url)


def test_a_relabelled_set_of_a_relabelled_set_points_to_the_shards(original: Index, tmp_path: Path) -> None:
    names = names_of(original)
    one = write_relabelled(original, ["x", *names[1:]], str(tmp_path / "one"))
    two = write_relabelled(one, ["x", "x", *names[2:]], str(tmp_path / "two"))
    assert two.shards_url == one.shards_url == original.url
    back = write_relabelled(two, names, str(tmp_path / "back"))
    assert given_by(back) == given_by(original)


def test_folders_that_lie_together_can_be_moved_together(original: Index, tmp_path: Path) -> None:
    shutil.copytree(original.url, tmp_path / "here" / "set")
    index, names = read_index(str(tmp_path / "here" / "set")), ["x", *names_of(original)[1:]]
    for place in ("beside", "set/inside", "below/it"):
        write_relabelled(index, names, str(tmp_path / "here" / place))
    far = write_relabelled(index, names, str(tmp_path / "far" / "away"))
    assert far.shards_url == str(tmp_path / "here" / "set")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "beside")
    for place in ("there/beside", "there/set/inside", "there/below/it", "link"):
        assert given_by(read_index(str(tmp_path / place))) == unpacked(original, names)
    with pytest.raises(InputError, match="a shard that the index names is missing"):
        check_shards(far)


def test_on_s3(original: Index, s3_url: str, tmp_path: Path) -> None:
    """Index and shards in a bucket, or the index alone in a folder; a divided block is fetched by one GET of its own bytes."""
    upload(original, f"{s3_url}/set")
    index, names = read_index(f"{s3_url}/set"), names_of(original)
    block = int(np.flatnonzero(original.blocks["count"] > 2)[0])
    first = int(original.blocks["first"][block])
    names[first], names[first + 1] = "x", None
    for place in (f"{s3_url}/new", str(tmp_path / "new")):
        found = write_relabelled(index, names, place)
        check_shards(found)
        assert found.shards_url == f"{s3_url}/set"
        assert given_by(found) == unpacked(original, names)
        etags = shard_etags(found)
        assert set(etags) >= {found.shard_url(number) for number in range(len(found.shards))}
        store = open_store(found, etags, CacheConfig(str(tmp_path / "cache"), gib=1))
        try:
            (got,) = store.request(np.array([first]))()
            assert got == read_samples(original, [first])[0]
            size = found.blocks["size"][block]
            assert store.counts["bytes"] + store.counts["hits"] * size == size < original.blocks["size"][block]
        finally:
            store.close()
        assert list(faults(found, read=True)) == []
    with pytest.raises(InputError, match="the shards lie in a folder"):
        write_relabelled(original, names, f"{s3_url}/other")


def upload(index: Index, url: str) -> None:
    for path in Path(index.url).rglob("*"):
        if path.is_file():
            open_objects(url).put_file(path.relative_to(index.url).as_posix(), path)


def test_a_corrupted_divided_block_is_detected(original: Index, s3_url: str) -> None:
    upload(original, f"{s3_url}/set")
    names = names_of(original)
    block = int(np.flatnonzero(original.blocks["count"] > 2)[0])
    first = int(original.blocks["first"][block])
    names[first + 1] = "x"
    found = write_relabelled(read_index(f"{s3_url}/set"), names, f"{s3_url}/new")
    shard = found.shards[found.blocks["shard"][block + 1]].name
    stored = bytearray(open_objects(found.shards_url).get(shard))
    stored[int(found.samples["offset"][first + 1]) + 20] ^= 1
    open_objects(found.shards_url).put(shard, bytes(stored))
    before, damaged, after = read_samples(found, [first, first + 1, first + 2])
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    assert "checksum is wrong" in str(damaged)
    (fault,) = faults(found, read=True)
    assert "of identity x is wrong" in fault
    with pytest.raises(InputError, match="the block's checksum is wrong"):
        write_relabelled(read_index(f"{s3_url}/set"), names, f"{s3_url}/third")
    assert not open_objects(f"{s3_url}/third").sizes()


def test_shards_of_other_tools(tmp_path: Path) -> None:
    """Samples of several members, with what belongs to no sample before, between and after them."""
    files = {"._a": b"x", "ann/1.cls": b"ann", "ann/1.png": png(1), "__note": b"n", "ann/1.txt": b"t", "readme": b"r"}
    files |= {f"{'ann' * 60}/2.png": png(2), f"{'ann' * 60}/2.cls": b"ann", "ann/3.cls": b"ann", "ann/3.png": png(3), "end": b"e"}
    (tmp_path / "set").mkdir()
    tarred(tmp_path / "set" / "train-0.tar", files)
    index, keys, _ = scan(str(tmp_path / "set"), Rules(identity="cls"))
    write_index(open_objects(index.url), index, keys)
    assert len(index.blocks["first"]) == 1
    found = write_relabelled(read_index(index.url), ["bob", "ann", "bob"], str(tmp_path / "new"))
    assert given_by(found) == unpacked(index, ["bob", "ann", "bob"])
    data = (tmp_path / "set" / "train-0.tar").read_bytes()
    for offset, size, crc in zip(*(found.blocks[name].tolist() for name in ("offset", "size", "crc32c")), strict=True):
        assert google_crc32c.value(data[offset : offset + size]) == crc
        with tarfile.open(fileobj=io.BytesIO(data[offset : offset + size])) as tar:
            assert sum(name.endswith((".png", ".cls")) for name in tar.getnames()) == 2


def test_labels_and_boxes_move_with_their_samples(original: Index, tmp_path: Path) -> None:
    shutil.copytree(original.url, tmp_path / "set")
    labels = {"age": np.arange(len(original), dtype=np.float32)}
    rows = [None if n % 3 == 0 else [Box(0, 0, n / 100, 1, "cell")] * (n % 3) for n in range(len(original))]
    boxes = table_of_boxes(rows, ["cell"])
    about = {**original.about, "classes": ["cell"]}
    write_index(open_objects(str(tmp_path / "set")), replace(original, about=about), original.keys, labels, boxes)
    index = read_index(str(tmp_path / "set"))
    names = [None if n in (0, 5, 7) else name for n, name in enumerate(names_of(index))]
    found = write_relabelled(index, names, str(tmp_path / "new"))
    kept = [n for n, name in enumerate(names) if name is not None]
    assert found.labels["age"].tolist() == kept
    assert found.table(BOXES, len(kept)) == boxes.take(pa.array(kept))
    assert found.boxes is not None


def test_other_commands_take_the_new_index(original: Index, tmp_path: Path) -> None:
    shutil.copytree(original.url, tmp_path / "set")
    index = read_index(str(tmp_path / "set"))
    found = write_relabelled(index, ["x", *names_of(index)[1:]], str(tmp_path / "new"))
    joined = join([found, original])
    assert read_samples(joined, np.arange(len(joined))) == read_samples(original, np.arange(len(original))) * 2
    assert joined.where(0).partition(" in ")[2].startswith(str(tmp_path / "set"))
    export(found.url, ("dali", "wids", "energon"))
    assert {path.suffix for path in (tmp_path / "set").iterdir()} >= {".idx", ".json"}
    assert not list((tmp_path / "new").glob("*.idx"))
    with pytest.raises(InputError, match="another shard set, or one with other options, is at the destination"):
        pack("market1501", put(tmp_path / "market", market()), found.url, OPTIONS)


def test_what_is_refused(original: Index, tmp_path: Path) -> None:
    names = names_of(original)
    for place in (original.url, str(tmp_path / "interrupted")):
        (tmp_path / "interrupted" / "_packing").mkdir(parents=True, exist_ok=True)
        (tmp_path / "interrupted" / "_packing" / "note").touch()
        with pytest.raises(InputError, match="a shard set is at the destination"):
            write_relabelled(original, names, place)
    with pytest.raises(InputError, match="no image is left"):
        write_relabelled(original, [None] * len(original), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("said", [7, "", "pipe:cat x", "http://host/set"])
def test_a_damaged_link_to_the_shards(original: Index, tmp_path: Path, said: object) -> None:
    write_relabelled(original, names_of(original), str(tmp_path / "new"))
    manifest = json.loads((tmp_path / "new" / MANIFEST).read_text())
    (tmp_path / "new" / MANIFEST).write_text(json.dumps({**manifest, "shards_at": said}))
    with pytest.raises(InputError):
        check_shards(read_index(str(tmp_path / "new")))
