"""What a stage draws: only samples that have a label of its tasks, each once an epoch, and the same after a restart."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facedata import faces
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from datasets.shards.labels import KEYPOINTS, labels_by_position
from trainers.attributes import Train
from trainers.tasks.attributes.config import COUPLED, INDEPENDENT, Stage, trained_tasks
from trainers.tasks.attributes.data import (
    FaceSet,
    MixConfig,
    Part,
    labelled_columns,
    mixed_parts,
    mixed_stream,
    open_sets,
    with_targets,
)
from trainers.tasks.attributes.losses import TASKS, Weights

COLUMNS = tuple(column for task in TASKS.values() for column in task.columns)
ONLY = {"sexes": ("gender",), "ages": ("age",), "poses": ("yaw", "pitch", "roll")}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A set of genders, one of ages, one of poses."""
    root = tmp_path_factory.mktemp("three")
    for seed, (name, columns) in enumerate(ONLY.items()):
        options = Options(held_out=0, max_block=4 << 10, shard_size=8 << 10)
        pack("attributes_csv", faces(root / f"{name}-images", 40 - 10 * seed, columns, seed), str(root / name), options)
    return tuple(str(root / name) for name in ONLY)


def relabelled(sets: Sequence[FaceSet], tables: Sequence[np.ndarray]) -> tuple[FaceSet, ...]:
    """The sets with other labels, [samples, columns] each; their shards stay."""
    out = []
    for face_set, table in zip(sets, tables, strict=True):
        index = replace(face_set.index)
        index.__dict__["labels"] = {name: table[:, i] for i, name in enumerate(COLUMNS)}  # where cached_property looks
        out.append(replace(face_set, index=index, train=replace(face_set.train, index=index)))
    return tuple(out)


def batches(parts: list[Part], stage: int, first: int, start: int, stop: int, **how: Any) -> list[dict[str, Any]]:
    loader, augment = LoaderConfig(size=(16, 16)), AugmentConfig(turn=how.get("turn", 0.0), flip=False, shift=0)
    part = how.get("part", RankSlice(0, 1))
    stream = mixed_stream(parts, loader, augment, CacheConfig(), part, (0, stage), first, start, stop)
    make_roll = how.get("turn", 0.0) > 0
    return list(with_targets(load_in_workers(stream, 0), parts, COLUMNS, (16, 16), make_roll=make_roll))


def whole(table: np.ndarray) -> np.ndarray:
    """The labels without points of which one coordinate is missing: the position of such a point is unknown."""
    out = table.copy()
    for x in [COLUMNS.index(column) for column in KEYPOINTS[::2]]:
        out[np.isnan(table[:, x]) | np.isnan(table[:, x + 1]), x : x + 2] = np.nan
    return out


def samples(parts: list[Part], batch: dict[str, Any]) -> list[tuple[int, int]]:
    """Of a batch: each sample's set among the run's, and its number in the set's index."""
    pairs = zip(batch["set"].tolist(), batch["positions"].numpy(), strict=True)
    return [(parts[place].number, int(parts[place].faces.train.samples(np.array([at]))[0])) for place, at in pairs]


def test_each_stage_draws_from_the_sets_that_it_learns_from(three: tuple[str, ...]) -> None:
    """A set of genders, one of ages, one of poses: the first stage sees the first, the second two, the third all."""
    train = Train(data=three, batch=24, mix=MixConfig((3, 2, 1)), make_roll=False, loader=LoaderConfig(size=(16, 16)))
    sets = train.check()
    assert trained_tasks(train, sets) == ("gender", "age", "pose")
    drawn = [[(part.number, part.each) for part in train.parts(sets, stage)] for stage in train.stages]
    assert drawn == [[(0, 24)], [(0, 16), (1, 8)], [(0, 12), (1, 8), (2, 4)]]
    for arm in ("joint", "single"):
        alone = replace(train, arm=arm)
        assert [[(p.number, p.each) for p in alone.parts(sets, stage)] for stage in alone.stages] == drawn[-1:]
    with pytest.raises(InputError, match=r"24 of 24 samples of a batch come from a set of 20 training .*poses, labels of pose"):
        replace(train, stage2=Stage(tasks=("pose",))).check()
    rolls = replace(train, make_roll=True)  # an upright image that is turned has a roll
    assert [len(rolls.parts(sets, stage)) for stage in rolls.stages] == [1, 2, 3]
    assert [len(part.faces.train) for part in rolls.parts(sets, Stage(tasks=("pose",)))] == [40, 30, 20]
    off = Stage(tasks=("gender", "age"), weights=Weights(gender=0))
    assert [part.number for part in train.parts(sets, off)] == [1]  # a loss without weight teaches nothing
    with pytest.raises(InputError, match="stage 1 has no labelled sample in the data: it trains no task"):
        replace(train, stage1=Stage(tasks=("gender",), weights=Weights(gender=0))).check()


@settings(max_examples=25)
@given(data=st.data())
def test_every_drawn_sample_has_a_label_and_comes_once_an_epoch(three: tuple[str, ...], data: st.DataObject) -> None:
    sets = open_sets(three)
    fractions = data.draw(st.lists(st.sampled_from([0.0, 0.02, 0.2, 1.0]), min_size=3, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    tables = [
        np.where(rng.random((len(s.index), len(COLUMNS))) < fraction, np.float32(0.5), np.float32(np.nan))
        for s, fraction in zip(sets, fractions, strict=True)
    ]
    sets = relabelled(sets, tables)
    for number, tasks in enumerate((INDEPENDENT, COUPLED, (*INDEPENDENT, *COUPLED, "pose"), ("mask",))):
        columns = [COLUMNS.index(column) for task in tasks for column in TASKS[task].columns]
        wanted = {
            (s, int(sample))
            for s, table in enumerate(tables)
            for sample in np.flatnonzero(~np.isnan(whole(table)[:, columns]).all(axis=1))
        }
        try:
            parts = mixed_parts(sets, MixConfig(unit=1), 3, tasks, make_roll=False)
        except InputError:
            fewest = min((sum(s == of for s, _ in wanted) for of, _ in wanted), default=0)
            assert fewest < 3
            continue
        assert {part.number for part in parts} == {s for s, _ in wanted}
        steps = max(math.ceil(len(part.faces.train) / part.each) for part in parts)
        seen = batches(parts, number, 7, 7, 7 + steps)
        assert [batch["step"] for batch in seen] == list(range(7, 7 + steps))
        for batch in seen:
            assert not np.isnan(batch["targets"][:, columns].numpy()).all(axis=1).any()
        for place, part in enumerate(parts):
            of_set = [sample for batch in seen for sample in samples(parts, batch) if sample[0] == parts[place].number]
            epoch = len(part.faces.train)
            assert sorted(of_set[:epoch]) == sorted(sample for sample in wanted if sample[0] == part.number)
            assert max(Counter(of_set).values()) <= math.ceil(len(of_set) / epoch)


def test_half_a_point_is_no_label(three: tuple[str, ...]) -> None:
    """Where an image is moved, nobody knows where a point is of which only x is known."""
    sets = open_sets(three[:1])
    table = np.full((len(sets[0].index), len(COLUMNS)), np.nan, np.float32)
    table[:, COLUMNS.index("nose_x")] = 0.5
    table[1, COLUMNS.index("nose_y")] = 0.5
    halves = relabelled(sets, [table])
    assert labelled_columns(halves, make_roll=False) == ("nose_x", "nose_y")
    (part,) = mixed_parts(halves, MixConfig(unit=1), 1, ("keypoints",), make_roll=False)
    assert [samples([part], batch) for batch in batches([part], 0, 0, 0, 3)] == [[(0, 1)]] * 3
    table[1, COLUMNS.index("nose_y")] = np.nan
    assert labelled_columns(relabelled(sets, [table]), make_roll=True) == ("roll",)


def test_a_restart_within_a_stage_and_other_ranks_see_the_same(three: tuple[str, ...]) -> None:
    sets = open_sets(three)
    rng = np.random.default_rng(0)
    tables = [np.where(rng.random((len(s.index), len(COLUMNS))) < 0.1, np.float32(0.5), np.float32(np.nan)) for s in sets]
    parts = mixed_parts(relabelled(sets, tables), MixConfig(unit=2), 12, INDEPENDENT, make_roll=False)

    def rows(found: list[dict[str, Any]]) -> list[list[Any]]:
        pixels = [batch["images"].flatten(1).long().sum(dim=1).tolist() for batch in found]
        return [sorted(zip(samples(parts, b), p, strict=True)) for b, p in zip(found, pixels, strict=True)]

    whole = rows(batches(parts, 1, 5, 5, 17, turn=20))
    assert rows(batches(parts, 1, 5, 11, 17, turn=20)) == whole[6:]
    ranks = [rows(batches(parts, 1, 5, 5, 17, turn=20, part=RankSlice(rank, 2))) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == whole
    assert [[row[0] for row in batch] for batch in rows(batches(parts, 2, 5, 5, 17, turn=20))] != [
        [row[0] for row in batch] for batch in whole
    ]  # another stage has another order


def test_labels_are_those_of_the_image(three: tuple[str, ...], tmp_path: Path) -> None:
    """Of a set in which only every third image has a gender, and every second a smile, each picture has its own labels."""
    folder = faces(tmp_path / "images", 60, (*KEYPOINTS, "gender", "smile", "age"))
    lines = (folder / "labels.csv").read_text().splitlines()
    header = lines[0].split(",")
    for number, line in enumerate(lines[1:]):
        cells = line.split(",")
        for column, every in (("gender", 3), ("smile", 2)):
            if number % every:
                cells[header.index(column)] = ""
        lines[number + 1] = ",".join(cells)
    (folder / "labels.csv").write_text("\n".join(lines))
    pack("attributes_csv", folder, str(tmp_path / "set"), Options(held_out=0, max_block=4 << 10, shard_size=8 << 10))
    sets = open_sets([str(tmp_path / "set")])
    (part,) = mixed_parts(sets, MixConfig(unit=1), 5, ("gender", "smile"), make_roll=False)
    assert len(part.faces.train) == sum(not number % 3 or not number % 2 for number in range(60))
    for batch in batches([part], 0, 0, 0, 8):
        genders, smiles = (batch["targets"][:, COLUMNS.index(name)].numpy() for name in ("gender", "smile"))
        red, blue = (batch["images"][:, channel, 3, 0].numpy() > 150 for channel in (0, 2))
        known = ~np.isnan(genders)
        assert (np.where(red, 1, 0) == genders)[known].all()
        assert (red != blue).all()
        green = (batch["images"][:, 1, 15, 8].numpy() > 230) & (batch["images"][:, 0, 15, 8].numpy() < 60)
        assert (green == (smiles == 1))[~np.isnan(smiles)].all()
        assert (known | ~np.isnan(smiles)).all()
    again = labels_by_position(part.faces.train, COLUMNS)
    assert not np.isnan(again[:, [COLUMNS.index("gender"), COLUMNS.index("smile")]]).all(axis=1).any()
