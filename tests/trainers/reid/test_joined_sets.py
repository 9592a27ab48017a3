"""Training on several sets: from the command's options to the report, exactly resumed, evaluated on each set."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from jobs import LOCAL, OPTIM, STEPS, KilledError, killed_after
from pictures import jpeg

from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.loading.batches import LoaderConfig
from datasets.pack import Options, pack
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.checkpoint import read_state
from trainers.engine.config import from_json, to_json
from trainers.engine.job import resolved
from trainers.engine.run import Run
from trainers.engine.training import STATE
from trainers.reid import Evaluate, Predict, Train, defaults
from trainers.tasks.reid.data import open_data
from trainers.tasks.reid.figures import joined_figures, rows_of_sets, summary_of
from trainers.tasks.reid.model import ModelConfig

Sets = tuple[str, ...]


def packed(folder: Path, identities: int, seed: int, options: Options) -> str:
    rng = np.random.default_rng(seed)
    for identity in range(identities):
        home = folder / "images" / f"p{identity}"
        home.mkdir(parents=True)
        look = rng.integers(40, 216, (12 + seed, 10, 3))
        for number in range(5):
            image = np.clip(look + rng.integers(-40, 40, look.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(home / f"{number}.png"), image)
    pack("folders", folder / "images", str(folder / "set"), options)
    return str(folder / "set")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Two sets with held-out identities and one without; images of three sizes."""
    root = tmp_path_factory.mktemp("sets")
    held_out = [0.0, 0.3, 0.3]
    return tuple(packed(root / f"{n}", 6 + 2 * n, n, Options(held_out=part)) for n, part in enumerate(held_out))


def short(sets: Sets, runs: Path, **how: Any) -> Train:
    return Train(
        data=sets, name="run", runs=str(runs), checkpoint_every=2, record_every=1, optim=OPTIM,
        sampler=SamplerConfig("proportional", batch=16, interval=1, lag=0, uniform_share=0.5, weights=(2, 1, 1)),
        loader=LoaderConfig(workers=0), model=ModelConfig("usermodels:backbone"), cluster=LOCAL, **how,
    )  # fmt: skip


def killed(train: Train, checkpoint: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_after(checkpoint, patch)
        with pytest.raises(KilledError):
            train.run()


@pytest.fixture(scope="module")
def trained(sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run that was killed and resumed."""
    train = short(sets, tmp_path_factory.mktemp("runs"))
    killed(train, "step-00000002")
    replace(train, resume=True).run()
    return train


def test_a_run_is_judged_by_the_first_set_that_can_be_and_shows_all(trained: Train, sets: Sets) -> None:
    run = Run(trained.runs, "run")
    metrics, history = run.read_json("metrics.json"), run.read_json("history.json")
    assert [each["step"] for each in history["evaluations"]] == [0, STEPS]
    after = metrics["after"]
    assert list(after["sets"]) == list(sets[1:])
    first = after["sets"][sets[1]]
    assert {name: after[name] for name in first} == first
    assert metrics["score"] == first["mAP"]
    assert after["sets"][sets[2]]["queries"] != first["queries"]
    report = run.read_text("report.html")
    assert report.count(sets[2]) == 2  # in the table of the sets, and in that of the settings
    assert "Ranked galleries" in report


def test_it_resumed_exactly(trained: Train, sets: Sets, tmp_path: Path) -> None:
    whole = short(sets, tmp_path)
    killed(whole, f"step-{STEPS:08d}")
    expected, found = (read_state(Path(train.runs) / "run" / f"step-{STEPS:08d}" / STATE) for train in (whole, trained))
    assert expected["task"].keys() == found["task"].keys()
    assert all(torch.equal(tensor, found["task"][name]) for name, tensor in expected["task"].items())
    for name in ("step", "draws", "evaluations"):
        assert expected["journal"][name] == found["journal"][name]


def test_a_checkpoint_is_not_continued_with_other_data(sets: Sets, tmp_path: Path) -> None:
    last = tmp_path / "last" / "set"
    shutil.copytree(sets[2], last)
    train = short((*sets[:2], str(last)), tmp_path / "runs")
    killed(train, "step-00000002")
    shutil.rmtree(last)
    assert packed(tmp_path / "last", 10, 5, Options(held_out=0.3)) == str(last)
    with pytest.raises(InputError, match="the data were changed since the run began"):
        replace(train, resume=True).run()


def test_each_set_is_evaluated_and_the_first_is_ranked(trained: Train, sets: Sets, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(trained.runs, "run")
    Evaluate(name="run", runs=trained.runs).run()
    after, again = (run.read_json("metrics.json")[name] for name in ("after", "evaluations"))
    assert again.keys() == after["sets"].keys()
    for url, figures in again.items():
        assert figures == pytest.approx(after["sets"][url], abs=1e-6)
    with pytest.raises(InputError, match=r"no split 'gallery': .*/0/set"):  # of the first set of all
        Predict(name="run", runs=trained.runs, query=(str(Path(sets[0]).parent / "images/p0/0.png"),)).run()
    with pytest.raises(InputError, match="neither query and gallery"):
        Evaluate(name="run", runs=trained.runs, data=sets).run()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    words = list(arguments)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: parse(Train, "reid.py", words, default=defaults("train", words)).run())
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_bad_input_is_a_line(trained: Train, sets: Sets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--runs", str(tmp_path), "--cluster.local", "--sampler.batch", "16", "--optim.steps", "1", "--data"]
    again = ["--name", "run", "--runs", trained.runs, "--resume"]
    before = Run(trained.runs, "run").read_text("config.json")
    assert f"another data: {sets}" in refused(capsys, *again, "--data", sets[1], sets[0], sets[2])
    assert "another sampler.weights: (2, 1, 1)" in refused(capsys, *again, "--sampler.weights", "1", "1", "1")
    assert Run(trained.runs, "run").read_text("config.json") == before
    assert f"the set is given twice: {sets[1]}" in refused(capsys, *start, sets[1], sets[0], sets[1])
    assert "3 weights for 2 sets: sampler.weights" in refused(capsys, *start, *sets[:2], "--sampler.weights", "1", "2", "3")
    assert "an empty address: data" in refused(capsys, *start, "")
    assert f"{tmp_path / 'none'}; is the address right?" in refused(capsys, *start, sets[0], str(tmp_path / "none"))
    (tmp_path / "a.bin").write_bytes(pickle.dumps(([jpeg(number, 16, 16) for number in range(4)], [True, False])))
    pack("bin", tmp_path / "a.bin", str(tmp_path / "pairs"))
    assert f"no split 'train': {tmp_path / 'pairs'}" in refused(capsys, *start, sets[0], str(tmp_path / "pairs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "pairs"]


def test_an_older_run_has_its_set(sets: Sets, tmp_path: Path) -> None:
    """Its settings have one address as a text, which was empty for the shipped set."""
    config = json.loads(to_json(Train()))
    del config["sampler"]["weights"]
    for stored, data in ((sets[0], (sets[0],)), ("", ())):
        older = from_json(Train, json.dumps({**config, "data": stored}), "")
        assert older == Train(data=data)
        assert resolved(older, "reid").data == data


def test_a_set_alone_is_as_it_was(sets: Sets) -> None:
    alone = open_data(sets[:1], None)
    assert alone.index.url == sets[0]
    joined = open_data(sets, None)
    assert (joined.size, len(joined.train.counts)) == (alone.size, 6 + 6 + 7)


def test_figures_of_sets() -> None:
    one, two = {"mAP": 0.5, "rank1": 0.75}, {"mAP": 0.25, "rank1": 0.5}
    figures = joined_figures({"a": one, "b": two})
    assert figures == {**one, "sets": {"a": one, "b": two}}
    assert joined_figures({"a": one}) == one
    assert summary_of(figures) == "mAP 50.0%, Rank-1 75.0% on a; mAP 25.0%, Rank-1 50.0% on b"
    evaluations = [{"step": 0, **joined_figures({"a": two, "b": one})}, {"step": 4, **figures}]
    assert rows_of_sets(evaluations) == [{"set": "a", **one}, {"set": "b", **two}]
    assert rows_of_sets([{"step": 0, **one}]) == rows_of_sets([]) == []
