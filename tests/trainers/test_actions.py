"""The action job as people run it: trained, evaluated, fused with flow, predicted, exported, compared; on Ray with a kill."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from clipdata import npz_folder, stairs, video_bytes
from test_reid import kill_worker_after

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.clips import ClipConfig
from datasets.pack_videos import VideoOptions, pack_videos
from trainers.actions import Compare, Evaluate, Export, Predict, Train, defaults, open_trained
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.engine.verbs import OnRun
from trainers.tasks.video.action_model import ActionModelConfig

pytestmark = pytest.mark.xdist_group("actions")  # one process trains the run that the tests share

MOVES = ("right", "left", "down", "up")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Squares that move one way, as pictures and as flow."""
    root = tmp_path_factory.mktemp("actions")
    folder = npz_folder(root / "npz", [(MOVES[n % 4],) for n in range(24)])
    for stream in ("rgb", "flow"):
        pack_videos("frames_npz", folder, str(root / stream), VideoOptions(stream=stream, test="round=2"))  # type: ignore[arg-type]
    return {"npz": str(folder), "rgb": str(root / "rgb"), "flow": str(root / "flow")}


def short(data: str, runs: Path, **changes: Any) -> Train:
    train = Train(
        name=f"run-{uuid.uuid4().hex[:8]}", data=data, runs=str(runs), batch=8, checkpoint_every=4, record_every=4,
        clip=ClipConfig(frames=8, size=(16, 24), test_clips=1, flip=False), loader=LoaderConfig(workers=0),
        model=ActionModelConfig("i3d", width=4), optim=OptimConfig(steps=12, warmup=2, lr=3e-3),
        cluster=ClusterConfig(local=True),
    )  # fmt: skip
    return replace(train, **changes)


def metrics_of(train: Train) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in metrics.items() if name not in ("seconds", "evaluations")}


@pytest.fixture(scope="module")
def trained(sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Train:
    train = short(sets["rgb"], tmp_path_factory.mktemp("runs"))
    train.run()
    return train


def test_a_run_leaves_figures_and_a_report(trained: Train) -> None:
    metrics = metrics_of(trained)
    assert metrics["step"] == 12
    assert metrics["after"]["n"] == 8
    assert set(metrics["after"]) == {"step", "top1", "top5", "mean_class", "n"}
    report = (Path(trained.runs) / trained.name / "report.html").read_text()
    assert "Which classes are mixed up" in report
    history = Run(trained.runs, trained.name).read_json("history.json")
    assert np.sum(history["notes"]["confusion"]) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_leaves_no_trace(sets: dict[str, str], tmp_path: Path) -> None:
    whole = short(sets["rgb"], tmp_path, loader=LoaderConfig(workers=1), cluster=ClusterConfig(workers=2))
    whole.run()
    interrupted = replace(whole, name=f"{whole.name}-again")
    killer = kill_worker_after(interrupted, "step-00000004")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(whole)


def test_two_streams_are_fused(trained: Train, sets: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    flow = replace(trained, name="flow", data=sets["flow"], optim=OptimConfig(steps=4, warmup=0))
    flow.run()
    Evaluate(name=trained.name, runs=trained.runs, workers=0).run()
    Evaluate(name=trained.name, runs=trained.runs, fuse="flow", workers=0).run()
    assert f"{trained.name} + flow: 8 clips" in capsys.readouterr().out
    evaluations = Run(trained.runs, trained.name).read_json("metrics.json")["evaluations"]
    after = metrics_of(trained)["after"]
    assert evaluations[sets["rgb"]] == pytest.approx({name: after[name] for name in evaluations[sets["rgb"]]}, abs=1e-6)
    assert set(evaluations["flow"]) == {"top1", "top5", "mean_class", "n"}
    with pytest.raises(InputError, match="4 classes of flow"):
        Evaluate(name=trained.name, runs=trained.runs, data=sets["flow"], workers=0).run()


def test_predict(trained: Train, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.mp4").write_bytes(video_bytes(stairs(12)))
    Predict(name=trained.name, videos=(f"{sets['npz']}/clip000.npz", str(tmp_path)), runs=trained.runs).run()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["video"]).name for line in lines] == ["clip000.npz", "v.mp4"]
    assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-3) for line in lines)
    assert set(lines[0]["probabilities"]) == set(MOVES)
    assert Run(trained.runs, trained.name).objects.get("prediction.png").startswith(b"\x89PNG")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for wrong in ("broken.mp4", "none.mp4", "empty"):
        with pytest.raises(InputError):
            Predict(name=trained.name, videos=(str(tmp_path / wrong),), runs=trained.runs).run()


@pytest.mark.slow
def test_the_exported_file_gives_the_same_logits(trained: Train, tmp_path: Path) -> None:
    Export(name=trained.name, to=tmp_path / "m.onnx", runs=trained.runs).run()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 16, 24)).astype(np.uint8)
    (logits,) = session.run(["logits"], {"images": clips})
    with torch.no_grad():
        expected = open_trained(OnRun(name=trained.name, runs=trained.runs)).model(torch.from_numpy(clips))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="not a format"):
        Export(name=trained.name, to=tmp_path / "m.h5", runs=trained.runs).run()


@pytest.mark.parametrize("name", ["c3d_lstm", "cnn2d"])
def test_models_train_with_mixed_clips(name: str, sets: dict[str, str], tmp_path: Path) -> None:
    for stream in ("rgb", "flow"):
        model = ActionModelConfig(name, width=4, hidden=8)
        settings = {"clip": ClipConfig(16, 1, (16, 24), test_clips=1), "optim": OptimConfig(steps=2, warmup=0)}
        config = short(sets[stream], tmp_path, name=stream, model=model, mixup=0.2, smoothing=0.1, **settings)
        config.run()
        assert metrics_of(config)["step"] == 2


@pytest.mark.slow
def test_compare_continues_and_reads_finished_runs(
    sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = short(
        sets["rgb"], tmp_path, name="all", optim=OptimConfig(steps=2, warmup=0), clip=ClipConfig(16, 1, (16, 24), test_clips=1)
    )
    compare = Compare(base, sets["flow"], ("c3d", "two-stream", "two-stream-2d"), (0, 1))
    compare.run()
    out = capsys.readouterr().out
    assert "two-stream" in out
    figures = json.loads((tmp_path / "all" / "comparison.json").read_text())["figures"]
    assert {arm: len(runs) for arm, runs in figures.items()} == {"c3d": 2, "two-stream": 2, "two-stream-2d": 2}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("all-*/model.pt")}
    assert len(before) == 10
    compare.run()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("all-*/model.pt")} == before


def test_bad_input_is_refused_before_anything_starts(sets: dict[str, str], tmp_path: Path) -> None:
    base, runs = short(sets["rgb"], tmp_path / "runs"), tmp_path / "runs"
    pack_videos("frames_npz", npz_folder(tmp_path / "w", [("up", "down")] * 4), str(tmp_path / "words"), VideoOptions(held_out=0))
    pack_videos("frames_npz", npz_folder(tmp_path / "o", [("up",)] * 4), str(tmp_path / "one"), VideoOptions(held_out=0))
    for wrong, message in [
        ({"data": ""}, "no data"),
        ({"data": str(tmp_path / "none")}, "not a whole shard set"),
        ({"data": str(tmp_path / "words")}, "4 clips have several actions"),
        ({"data": str(tmp_path / "one")}, "fewer than two classes"),
        ({"model": ActionModelConfig("c3d", width=4)}, "too small for C3D"),
    ]:
        with pytest.raises(InputError, match=message):
            replace(base, **wrong).run()
    two = ClusterConfig(workers=2)
    for wrong in ({"batch": 0}, {"batch": 7, "cluster": two}, {"loader": LoaderConfig(size=(32, 32))}):
        with pytest.raises((InputError, ClusterError)):
            replace(base, **wrong)
    for compare, message in ((Compare(base), "need --flow"), (Compare(base, sets["flow"], seeds=(0,)), "two seeds")):
        with pytest.raises(InputError, match=message):
            compare.run()
    with pytest.raises(InputError, match="no run 'none'"):
        open_trained(OnRun(name="none", runs=str(runs)))
    assert not runs.exists()
    assert defaults("compare", []) is None
