"""The face job as people run it: in this process, evaluated and asked; under Ray with two workers, killed; and swept."""

import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from facedata import faces, picture
from test_reid import kill_worker_after

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.shards.index import read_index
from datasets.shards.labels import COLUMNS, KEYPOINTS
from trainers.attributes import Compare, Evaluate, Export, Predict, Train, defaults, trained_model
from trainers.engine.job import resolved
from trainers.engine.run import Run
from trainers.engine.verbs import OnRun, open_run
from trainers.sweep import Sweep, SweepConfig
from trainers.tasks.attributes.config import COUPLED, Stage, trained_tasks
from trainers.tasks.attributes.data import MixConfig, computing_of_single

pytestmark = pytest.mark.xdist_group("attributes")  # one process trains the run that the tests share

on_ray = pytest.mark.usefixtures("cluster")
ROOT = Path(__file__).parents[2]
OPTIONS = Options(held_out=0.3, max_block=8 << 10, shard_size=32 << 10)
FIRST = ("keypoints", "gender", "mask")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two sets that carry different labels; neither has a pose."""
    root = tmp_path_factory.mktemp("faces")
    for name, columns in (("a", (*KEYPOINTS, "gender", "age")), ("b", ("gender", "mask", "quality"))):
        pack("attributes_csv", faces(root / f"images-{name}", 90, columns, seed=ord(name)), str(root / name), OPTIONS)
    return str(root / "a"), str(root / "b")


def short(sets: tuple[str, ...], runs: Path, **changes: Any) -> Train:
    """Three stages of about 12 steps."""
    stage = Stage(least=4, most=12, warmup=2, tasks=FIRST)
    train = Train(
        data=sets, runs=str(runs), name=f"run-{uuid.uuid4().hex[:8]}", batch=16, checkpoint_every=5, record_every=5,
        loader=LoaderConfig(workers=1, size=(32, 32)), mix=MixConfig((2, 1)),
        stage1=stage, stage2=replace(stage, tasks=(*FIRST, *COUPLED)), stage3=replace(stage, tasks=(*FIRST, *COUPLED, "pose")),
    )  # fmt: skip
    return replace(train, **changes)


def metrics_of(train: Train) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in metrics.items() if name not in ("seconds", "evaluations")}


@pytest.fixture(scope="module")
def trained(sets: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run of three stages; the first ends by its threshold, at once."""
    train = short(sets, tmp_path_factory.mktemp("runs"), cluster=ClusterConfig(local=True))
    train = replace(train, stage1=replace(train.stage1, threshold=1000.0))
    train.run()
    return train


def test_a_run_goes_through_its_stages(trained: Train) -> None:
    metrics = metrics_of(trained)
    assert [(s["first"], s["steps"]) for s in metrics["stages"]] == [(0, 10), (10, 12), (22, 14)]
    assert "under 1000" in metrics["stages"][0]["ended"]
    assert metrics["stages"][2]["ended"] == "it reached its 14 steps"  # the two that the first left among them
    figures = {name.partition(".")[0] for name in metrics["after"]}
    assert figures == {"step", "score", "keypoints", "gender", "mask", "age", "quality", "pose"}  # no label: no figure
    folder = Path(trained.runs) / trained.name
    history = json.loads((folder / "history.json").read_text())
    trained_on = [{name for name in record if name.startswith("loss_")} for record in history["records"]]
    assert trained_on[0] == {"loss_keypoints", "loss_gender", "loss_mask"}
    assert trained_on[-1] == trained_on[0] | {"loss_age", "loss_quality", "loss_pose"}
    assert [record["stage"] for record in history["records"]] == sorted(record["stage"] for record in history["records"])
    assert history["records"][-1]["lr"] < trained.stage3.lr / 5  # each stage has its own schedule
    report = (folder / "report.html").read_text()
    assert "why it ended" in report
    assert list((folder / "tensorboard").iterdir())


@on_ray
@pytest.mark.slow
def test_a_worker_killed_within_a_stage_leaves_no_trace(sets: tuple[str, ...], tmp_path: Path) -> None:
    undisturbed, interrupted = short(sets, tmp_path), short(sets, tmp_path)
    undisturbed.run()
    killer = kill_worker_after(interrupted, "step-00000015")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(undisturbed)


def test_evaluate_again_gives_what_training_gave(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    Evaluate(name=trained.name, runs=trained.runs).run()
    assert "balanced" in capsys.readouterr().out
    metrics = Run(trained.runs, trained.name).read_json("metrics.json")
    again = metrics["evaluations"][" ".join(read_index(url).url for url in trained.data)]
    assert again == pytest.approx({name: value for name, value in metrics["after"].items() if name != "step"}, abs=1e-5)


def test_predict_prints_the_labels_of_images_and_of_a_stream(
    trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = faces(tmp_path / "some", 3)
    Predict(name=trained.name, runs=trained.runs, images=(str(folder / "0001.png"), str(folder))).run()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0001.png", "0000.png", "0001.png", "0002.png"]
    assert {name: lines[0][name] for name in COLUMNS if name in lines[0]} == {n: v for n, v in lines[2].items() if n != "image"}
    assert set(lines[0]) == {"image", *KEYPOINTS, "gender", "mask", "age", "quality", "roll"}
    run = Run(trained.runs, trained.name)
    assert [json.loads(line) for line in run.read_text("prediction.jsonl").splitlines()] == lines
    assert run.objects.get("prediction.png").startswith(b"\x89PNG")
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(5):
        video.write(np.full((48, 64, 3), 100, np.uint8))
    video.release()
    Predict(name=trained.name, runs=trained.runs, stream=str(tmp_path / "v.avi"), frames=3).run()
    frames = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert frames == [f"{tmp_path / 'v.avi'}#{number}" for number in range(3)]
    for wrong in (
        {"images": (str(tmp_path / "none.png"),)},
        {"stream": str(tmp_path / "none.avi")},
        {},
        {"images": (str(tmp_path / "empty"),)},
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            Predict(name=trained.name, runs=trained.runs, **wrong).run()


@pytest.mark.slow
def test_the_exported_model_predicts_the_same(trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Export(name=trained.name, runs=trained.runs, to=tmp_path / "faces.onnx").run()
    out = capsys.readouterr().out
    assert "columns: left_eye_x" in out
    assert "never trained, for want of labels: yaw, pitch" in out
    session = onnxruntime.InferenceSession(tmp_path / "faces.onnx", providers=["CPUExecutionProvider"])
    image = picture({**dict.fromkeys(COLUMNS, 0.5)})
    images = np.stack([image.transpose(2, 0, 1)] * 2)
    (predicted,) = session.run(["labels"], {"images": images})
    with torch.no_grad():
        opened = open_run(Train, OnRun(name=trained.name, runs=trained.runs))
        expected = trained_model(opened).cpu()(torch.from_numpy(images))
    np.testing.assert_allclose(predicted, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="not a format"):
        Export(name=trained.name, runs=trained.runs, to=tmp_path / "faces.h5").run()


def test_bad_input_is_refused_before_anything_starts(sets: tuple[str, ...], tmp_path: Path) -> None:
    base = short(sets, tmp_path)
    for wrong, message in [
        ({"stage2": Stage(tasks=("glasses", "smile"))}, "stage 2 has no labelled sample in the data: it trains glasses, smile"),
        ({"data": ()}, "no data to train on"),
        ({"mix": MixConfig((1, 2, 3))}, "3 weights for 2 sets"),
        ({"mix": MixConfig((1000, 1))}, "leaves nothing for a set of weight 1"),
        ({"data": (str(tmp_path / "nothing"),)}, "not a whole shard set"),
        ({"batch": 4000}, r"\d+ of 4000 samples of a batch come from a set of .* training images"),
    ]:
        with pytest.raises(InputError, match=message):
            replace(base, **wrong).run()
    for wrong in ({"mix": MixConfig(unit=3)}, {"loader": LoaderConfig(size=None)}, {"batch": 0}):
        with pytest.raises((InputError, ClusterError)):
            replace(base, **wrong)
    with pytest.raises(InputError, match="unknown task hair"):
        Stage(tasks=("hair",))
    with pytest.raises(InputError, match="needs an arm and two seeds"):
        Compare(base, seeds=(0,)).run()
    assert not list(tmp_path.iterdir())


def test_arms(sets: tuple[str, ...], tmp_path: Path) -> None:
    joint = short(sets, tmp_path, arm="joint")
    assert [(stage.most, stage.tasks) for stage in joint.stages] == [(36, (*FIRST, *COUPLED, "pose"))]
    assert joint.steps == short(sets, tmp_path).steps == 36
    assert len(short(sets, tmp_path, arm="staged").stages) == 3
    first = replace(joint.stage1, threshold=1.0)
    with pytest.raises(InputError, match="no threshold"):
        short(sets, tmp_path, arm="joint+uncertainty", stage3=replace(first, tasks=("mask",)))
    assert not short(sets, tmp_path, arm="joint+uncertainty", stage1=first).stages[0].threshold


@pytest.mark.parametrize("arm", ["single", "joint+uncertainty", "staged+cross-stitch", "staged+mtan"])
def test_every_arm_trains_and_is_opened_again(arm: Any, sets: tuple[str, ...], tmp_path: Path) -> None:
    config = short(sets, tmp_path, arm=arm, cluster=ClusterConfig(local=True), loader=LoaderConfig(workers=0, size=(32, 32)))
    stages = {name: replace(getattr(config, name), least=1, most=3) for name in ("stage1", "stage2", "stage3")}
    config = replace(config, **stages)
    config.run()
    trained = open_run(Train, OnRun(name=config.name, runs=config.runs))
    assert trained_model(trained).decoupled == arm.partition("+")[2].replace("uncertainty", "")
    assert metrics_of(config)["step"] == 9


def test_models_for_one_task_each_get_the_computing_of_one_model(sets: tuple[str, ...], tmp_path: Path) -> None:
    """Set a has keypoints, gender and age, set b gender, mask and quality; all have a roll: four images for each of a batch."""
    joint = short(sets, tmp_path, arm="joint")
    opened = joint.check()
    parts, tasks = joint.parts(opened, joint.stages[0]), trained_tasks(joint, opened)
    assert computing_of_single(parts, tasks, make_roll=True) == pytest.approx(4)
    found = dict(Compare(joint, arms=("single", "single-equal-computing"))._configs(replace(joint, name="some"), 1))
    assert (found["single"].steps, found["single-equal-computing"].steps) == (36, 9)
    assert found["single-equal-computing"].arm == "single"


def test_settings_from_a_file(trained: Train, tmp_path: Path, s3_url: str) -> None:
    stored = Path(trained.runs) / trained.name / "config.json"
    found = defaults("train", ["--config", str(stored)])
    assert found == replace(resolved(trained, "attributes"), name="", runs="", config=str(stored))
    assert defaults("compare", ["--config", str(stored), "--seeds", "1", "2"]).train == found
    open_objects(s3_url).put("best.json", stored.read_bytes())
    assert defaults("train", ["--config", f"{s3_url}/best.json"]) == replace(found, config=f"{s3_url}/best.json")
    with pytest.raises(InputError, match=rf"no such object: {s3_url}/none.json"):
        defaults("train", ["--config", f"{s3_url}/none.json"])
    assert defaults("train", []) is None
    with pytest.raises(InputError, match="no such file or directory"):
        defaults("train", ["--config", str(tmp_path / "none.json")])


def options(sets: tuple[str, ...]) -> list[str]:
    """What the trials of a sweep share, as on the command line: three stages of 3 to 9 steps."""
    job = ["--data", *sets, "--batch", "16", "--loader.size", "32", "32", "--loader.workers", "0", "--cluster.workers", "1"]
    return job + [f"--stage{n}.{key}={value}" for n in (1, 2, 3) for key, value in (("least", 2), ("most", 6))]


@on_ray
@pytest.mark.slow
def test_a_sweep_ends_with_a_table_of_trials_and_the_best_settings(
    sets: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No trial is stopped early: the session's cluster has no dashboard, and would keep its workers reserved.
    sweep = Sweep("attributes", "search", str(tmp_path), sweep=SweepConfig(trials=2, concurrent=2, grace=30, seed=1))
    sweep.run(options(sets))
    out = capsys.readouterr().out
    trials = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert len(trials) == 2
    assert all(trial["name"] in out for trial in trials)
    assert trials[0]["score"] == max(trial["score"] for trial in trials)
    assert (tmp_path / "search" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    best = defaults("train", ["--config", str(tmp_path / "search" / "best.json")])
    assert best.stage1.lr == trials[0]["settings"]["stage1.lr"]
    assert best.data == sets
    with pytest.raises(InputError, match="the sweep 'search' exists"):
        sweep.run(options(sets))
    with pytest.raises(InputError, match="not a whole shard set"):
        replace(sweep, name="other").run(["--data", str(tmp_path / "nothing")])
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="no sweep 'other' to resume"):
        replace(sweep, name="other", resume=True).run([])


@on_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_goes_on_after_its_driver_was_killed(sets: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "trainers" / "sweep.py"), "attributes", "--name", "search", "--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = [*command, "--trials", "4", "--grace", "6", "--", *options(sets)]
    driver = subprocess.Popen(first, env=environment, start_new_session=True)
    while not list(tmp_path.glob("search-*/metrics.json")):  # half-way: one trial has ended
        assert driver.poll() is None
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    ended = {path: path.read_bytes() for path in tmp_path.glob("search-*/metrics.json")}
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    trials = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert len(trials) == 4
    assert all(trial["step"] > 0 and not trial["failure"] for trial in trials)
    assert all(path.read_bytes() == data for path, data in ended.items())  # what had ended was not trained again
