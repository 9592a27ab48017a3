"""The plan: every sample in one block, an identity's blocks side by side, size limits kept, determined by the seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.layouts.listing import Sample
from datasets.packing.plan import Written, index_of, left, plan_shards
from datasets.shards.tar import padded

Listed = tuple[list[Sample], dict[str, int]]


@st.composite
def listings(draw: st.DrawFn) -> Listed:
    """Samples in any order, with sizes about the limits below."""
    count = draw(st.integers(1, 40))
    identity, size = st.sampled_from(["a", "b", "c", "d"]), st.one_of(st.integers(0, 5000), st.sampled_from([511, 512, 513]))
    split = st.sampled_from(["train", "query", "gallery"])
    samples = [Sample(draw(split), draw(identity), draw(st.sampled_from(["x", "y"])), f"{i:03d}.jpg") for i in range(count)]
    return draw(st.permutations(samples)), {sample.name: draw(size) for sample in samples}


def span(size: int) -> int:
    """A member's bytes in a tar, by the definition of the format."""
    return 512 + size + (-size % 512)


@given(listings(), st.integers(1, 12000), st.integers(1, 30000), st.integers(0, 5))
def test_plan(listed: Listed, max_block: int, shard_size: int, seed: int) -> None:
    samples, sizes = listed
    shards = plan_shards(samples, sizes, shard_size, max_block, seed)
    planned = [(shard.split, member) for shard in shards for block in shard.blocks for member in block]
    assert sorted((split, m.sample.identity, m.sample.camera, m.source) for split, m in planned) == sorted(
        (s.split, s.identity, s.camera, s.name) for s in samples
    )
    assert len({member.key for _, member in planned}) == len(samples)
    for shard in shards:
        spans = [sum(span(member.size) for member in block) for block in shard.blocks]
        assert sum(spans) + 1024 <= shard_size or len(spans) == 1
        for block, length in zip(shard.blocks, spans, strict=True):
            assert len({member.sample.identity for member in block}) == 1
            assert length <= max_block or len(block) == 1
    for split in ("train", "query", "gallery"):  # side by side: an identity, once left, does not come again
        order = [m.sample.identity for s, m in planned if s == split]
        assert len([1 for i, identity in enumerate(order) if i == 0 or order[i - 1] != identity]) == len(set(order))
    shuffled = sorted(samples, key=lambda s: s.name[::-1])
    assert plan_shards(shuffled, sizes, shard_size, max_block, seed) == shards  # the listing's order is nothing to it


@given(listings(), st.integers(1, 12000), st.integers(1, 30000), st.data())
def test_the_index_of_a_plan_has_the_offset_of_every_sample(
    listed: Listed, max_block: int, shard_size: int, data: st.DataObject
) -> None:
    samples, sizes = listed
    shards = plan_shards(samples, sizes, shard_size, max_block, 0)
    bad = data.draw(st.sets(st.sampled_from([sample.name for sample in samples]), max_size=len(samples) - 1))
    written, expected = [], {}
    for number, shard in enumerate(shards):
        offset, crcs = 0, []
        for block in shard.blocks:
            before = offset
            for member in block:
                if member.source not in bad:
                    sample = member.sample
                    expected[member.key] = (number, offset + 512, member.size, sample.identity, sample.camera, shard.split)
                    offset += span(member.size)
            crcs += [number * 1000 + len(crcs)] if offset > before else []
        written.append(Written(offset + 1024, crcs, {m.source: "bad" for b in shard.blocks for m in b if m.source in bad}))
    index, keys = index_of("somewhere", shards, written, {})
    assert len(index) == len(keys) == len(expected) == len(samples) - len(bad)
    block = index.samples["block"]
    for i, key in enumerate(keys):
        row = {name: column[block[i]] for name, column in index.blocks.items()}
        got = (row["shard"], index.samples["offset"][i], index.samples["size"][i], index.identities[row["identity"]])
        assert (*got, index.cameras[index.samples["camera"][i]], index.splits[row["split"]]) == expected[key]
        assert row["first"] <= i < row["first"] + row["count"]
        assert row["offset"] < index.samples["offset"][i] < row["offset"] + row["size"] + 1
    assert [s.name for s in index.shards] == [s.name for s in shards]
    assert list(index.identities) == sorted({identity for *_, identity, _, _ in expected.values()})


def test_seeds_give_different_orders_within_and_between_identities() -> None:
    samples = [Sample("train", f"p{i}", "c", f"p{i}/{k:02d}.jpg") for i in range(8) for k in range(12)]
    sizes = dict.fromkeys((s.name for s in samples), 100)
    orders = [
        [m.source for shard in plan_shards(samples, sizes, 10**6, 10**5, seed) for b in shard.blocks for m in b]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1] != sorted(orders[0])
    first = [[name for name in order if name.startswith("p0/")] for order in orders]
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1])


def test_keys_count_an_identity_through_its_splits() -> None:
    samples = [Sample(split, "p", "c", f"{split}.JPEG") for split in ("query", "gallery")]
    shards = plan_shards(samples, {"query.JPEG": 1, "gallery.JPEG": 1}, 10**6, 10**5, 0)
    assert [(s.name, s.blocks[0][0].name) for s in shards] == [
        ("query-000000.tar", "p/000001.jpg"), ("gallery-000000.tar", "p/000000.jpg"),
    ]  # fmt: skip


def test_blocks_of_which_nothing_is_left_are_gone() -> None:
    samples = [Sample("train", who, "c", f"{who}.png") for who in "ab"]
    (shard,) = plan_shards(samples, {"a.png": 1, "b.png": 1}, 10**6, 10**5, 0)
    assert [[m.sample.identity for m in block] for block in left(shard, {"a.png"})] == [["b"]]
    index, keys = index_of("somewhere", [shard], [Written(2048, [7], {"a.png": "bad"})], {})
    assert index.identities == ("b",)
    assert keys == ["b/000000"]


def test_a_name_too_long_for_a_tar_is_refused() -> None:
    with pytest.raises(InputError, match="too long for a tar: nnn"):
        plan_shards([Sample("train", "n" * 89, "c", "x.jpg")], {"x.jpg": 1}, 10**6, 10**5, 0)
    assert plan_shards([Sample("train", "n" * 88, "c", "x.jpg")], {"x.jpg": 1}, 10**6, 10**5, 0)


def test_too_many_cameras_are_refused() -> None:
    samples = [Sample("train", "p", f"c{i}", f"{i}.jpg") for i in range(32768)]
    shards = plan_shards(samples, {s.name: 1 for s in samples}, 1 << 40, 1 << 40, 0)
    with pytest.raises(InputError, match="32768 cameras"):
        index_of("somewhere", shards, [Written(0, [0], {})], {})


@pytest.mark.parametrize(("size", "in_tar"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_padding(size: int, in_tar: int) -> None:
    assert padded(size) == in_tar


def test_no_samples_no_shards() -> None:
    assert plan_shards([], {}, 10**6, 10**5, 0) == []
