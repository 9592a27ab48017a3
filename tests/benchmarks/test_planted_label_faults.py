"""Planted label faults: as many as asked for, each as its line of the truth says, and scored by it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.label_faults import Fault, Plant, Scored, main, plant, scored
from datasets.errors import InputError
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack
from datasets.shards.index import read_index, split_of

NAMES = [f"p{identity:02d}" for identity in range(40) for _ in range(10)]
KEYS = [f"{name}/{number % 10}" for number, name in enumerate(NAMES)]


def test_every_fault_is_as_its_line_says() -> None:
    names, faults = plant(KEYS, NAMES, 0.1, 0.05, 0.03, 0)
    kinds = [fault.kind for fault in faults]
    assert [kinds.count(kind) for kind in ("same", "mixture", "wrong")] == [4, 2, 12]
    now, before = dict(zip(KEYS, names, strict=True)), dict(zip(KEYS, NAMES, strict=True))
    moved = {fault.keys[0] for fault in faults if fault.kind == "wrong"}
    changed = {key for key in KEYS if now[key] != before[key]}
    for fault in faults:
        if fault.kind == "same":
            assert {before[key] for key in changed - moved if now[key] == fault.other} == {fault.identity}
        elif fault.kind == "mixture":
            assert all(before[key] == fault.other and now[key] == fault.identity for key in set(fault.keys) - moved)
            assert len(fault.keys) == 10
        else:
            assert now[fault.keys[0]] == fault.identity != fault.other
    assert plant(KEYS, NAMES, 0.1, 0.05, 0.03, 0) == (names, faults)
    assert plant(KEYS, NAMES, 0.1, 0.05, 0.03, 1) != (names, faults)


def test_no_faults_change_nothing_and_too_many_are_refused() -> None:
    assert plant(KEYS, NAMES, 0, 0, 0, 0) == (NAMES, [])
    with pytest.raises(InputError, match=r"too few identities \(40\) for 20 splits and 12 merges"):
        plant(KEYS, NAMES, 0.5, 0.3, 0, 0)


def test_scores() -> None:
    truth = [
        Fault("same", "a", "a-second"),
        Fault("mixture", "m", "n", ("k1",)),
        Fault("wrong", "x", "a", ("k2",)),
        Fault("wrong", "x", "b", ("k3",)),
    ]
    lines = [
        ("yes", "same", "0.9", "a-second", "a", "", True), ("no", "same", "0.2", "a", "b", "", False),
        ("yes", "mixture", "0.9", "m", "", "k1", True), ("no", "mixture", "0.3", "n", "", "k1", False),
        ("yes", "wrong", "0.9", "x", "a-second", "k2", True), ("yes", "wrong", "0.9", "x", "c", "k3", False),
        ("yes", "wrong", "0.9", "x", "", "k3", True), ("no", "wrong", "0.4", "y", "", "k4", False),
    ]  # fmt: skip
    rows = [dict(zip(("accept", "kind", "probability", "identity", "other", "keys"), line, strict=False)) for line in lines]
    planted = [{**fault._asdict(), "keys": " ".join(fault.keys)} for fault in truth]
    assert scored(planted, rows) == [Scored(line[1], line[0] == "yes", float(line[2]), line[6]) for line in lines]


def test_an_index_with_faults_is_written_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pack("omniglot", ARCHIVE, str(tmp_path / "set"), OPTIONS)
    main(Plant(str(tmp_path / "set"), str(tmp_path / "new"), split=0.1, merge=0.05, wrong=0.03))
    new = read_index(str(tmp_path / "new"))
    before, after = split_of(index, "train"), split_of(new, "train")
    assert len(after) == len(before)
    splits, merges = round(0.1 * len(before.counts)), round(0.05 * len(before.counts))
    assert len(after.counts) == len(before.counts) + splits - merges
    with (tmp_path / "new" / "truth.csv").open(newline="") as file:
        truth = list(csv.DictReader(file))
    assert sum(row["kind"] == "wrong" for row in truth) == round(0.03 * len(before))
    name = dict(zip(new.keys, (new.identities[i] for i in new.identity_of(np.arange(len(new)))), strict=True))
    assert all(name[row["keys"]] == row["identity"] for row in truth if row["kind"] == "wrong")
    (tmp_path / "run").mkdir()
    rows = "".join(
        f"yes,{row['kind']},0.95,{row['identity']},{row['other'] if row['kind'] != 'mixture' else ''},{row['keys']}\n"
        for row in truth
    )
    (tmp_path / "run" / "decisions.csv").write_text("accept,kind,probability,identity,other,keys\n" + rows)
    main(Plant(str(tmp_path / "set"), str(tmp_path / "new"), score=str(tmp_path / "run")))
    table = capsys.readouterr().out.partition("What is accepted")[2].partition("By probability")[0]
    assert table.count("1.000") == 6  # precision and recall of three kinds
