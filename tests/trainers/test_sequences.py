"""The sequence job as people run it: trained, evaluated, predicted whole and online, exported, compared; on Ray with a kill."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from clipdata import moving, npz_folder, stairs, video_bytes
from test_reid import kill_worker_after
from testdata import archive

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.clips import ClipConfig
from datasets.pack_videos import VideoOptions, pack_videos
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.engine.verbs import OnRun
from trainers.sequences import Compare, Evaluate, Export, Predict, Train, defaults, open_trained
from trainers.tasks.video.sequence_model import FromClips, SequenceModelConfig

pytestmark = pytest.mark.xdist_group("sequences")  # one process trains the run that the tests share

MOVES = ("right", "left", "down", "up")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Videos of two or three moves, with frame labels."""
    root = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    sequences = [tuple(str(move) for move in rng.choice(MOVES, 2 + n % 2)) for n in range(18)]
    pack_videos(
        "frames_npz", npz_folder(root / "npz", sequences, frame_actions=True), str(root / "set"), VideoOptions(test="round=2")
    )
    return str(root / "set")


def short(data: str, runs: Path, **changes: Any) -> Train:
    train = Train(
        name=f"run-{uuid.uuid4().hex[:8]}", data=data, runs=str(runs), batch=4, checkpoint_every=4, record_every=4,
        clip=ClipConfig(stride=2, size=(16, 24), flip=False), loader=LoaderConfig(workers=0),
        flat_start=0.5, model=SequenceModelConfig(hidden=16), optim=OptimConfig(steps=12, warmup=2, lr=3e-3),
        cluster=ClusterConfig(local=True),
    )  # fmt: skip
    return replace(train, **changes)


def metrics_of(train: Train) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in metrics.items() if name not in ("seconds", "evaluations")}


@pytest.fixture(scope="module")
def trained(words: str, tmp_path_factory: pytest.TempPathFactory) -> Train:
    train = short(words, tmp_path_factory.mktemp("runs"))
    train.run()
    return train


def test_a_run_leaves_figures_and_timelines(trained: Train) -> None:
    after = metrics_of(trained)["after"]
    assert set(after) - {"delay"} == {"step", "edit", "exact", "beam_edit", "beam_exact", "frame_f1", "n"}  # no action, no delay
    assert after["n"] == 6
    report = (Path(trained.runs) / trained.name / "report.html").read_text()
    assert report.count("Decoded greedily.") == 4


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_leaves_no_trace(words: str, tmp_path: Path) -> None:
    whole = short(words, tmp_path, loader=LoaderConfig(workers=1), cluster=ClusterConfig(workers=2))
    whole.run()
    interrupted = replace(whole, name=f"{whole.name}-again")
    killer = kill_worker_after(interrupted, "step-00000004")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(whole)


def test_evaluate_again_gives_what_training_gave(trained: Train, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Evaluate(name=trained.name, runs=trained.runs, workers=0).run()
    assert "edit distance, greedy" in capsys.readouterr().out
    again = Run(trained.runs, trained.name).read_json("metrics.json")["evaluations"][words]
    assert again == pytest.approx(
        {name: value for name, value in metrics_of(trained)["after"].items() if name != "step"}, abs=1e-6
    )


def test_predict_whole_and_online(trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.repeat(moving(("up", "left"))[..., None], 3, axis=3)
    (tmp_path / "v.mp4").write_bytes(video_bytes(frames))
    Predict(name=trained.name, runs=trained.runs, videos=(str(tmp_path / "v.mp4"),)).run()
    whole = json.loads(capsys.readouterr().out)
    assert set(whole) == {"video", "actions", "times", "beam"}
    for chunk in (1, 3, 50):
        Predict(name=trained.name, runs=trained.runs, stream=str(tmp_path / "v.mp4"), chunk=chunk).run()
        out, err = capsys.readouterr()
        summary, picture = err.splitlines()
        online = [json.loads(line) for line in out.splitlines()]
        assert [(line["action"], line["time"]) for line in online] == list(zip(whole["actions"], whole["times"], strict=True))
        assert all(line["delay"] >= 0 for line in online)
        assert summary.startswith("10 frames, ")
        assert picture.startswith("lines and picture: ")
    assert Run(trained.runs, trained.name).objects.get("prediction.png").startswith(b"\x89PNG")
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(stairs(5)):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), frame)
    Predict(name=trained.name, runs=trained.runs, stream=str(tmp_path / "frames")).run()
    for wrong in (
        {},
        {"stream": "none.mp4"},
        {"stream": "0", "chunk": 0},
        {"videos": (str(tmp_path / "none.mp4"),)},
        {"stream": "0", "threshold": 1.0},
    ):
        with pytest.raises(InputError):
            Predict(name=trained.name, runs=trained.runs, **wrong).run()


@pytest.mark.slow
def test_the_exported_file_gives_the_same_probabilities(trained: Train, tmp_path: Path) -> None:
    Export(name=trained.name, to=tmp_path / "m.onnx", runs=trained.runs, frames=6).run()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 16, 24)).astype(np.uint8)
    (log_probs,) = session.run(["log_probs"], {"images": videos})
    with torch.no_grad():
        expected = FromClips(open_trained(OnRun(name=trained.name, runs=trained.runs)).model)(torch.from_numpy(videos))
    np.testing.assert_allclose(log_probs, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="not a format"):
        Export(name=trained.name, to=tmp_path / "m.h5", runs=trained.runs).run()
    with pytest.raises(InputError, match="give at least 1"):
        Export(name=trained.name, to=tmp_path / "m.onnx", runs=trained.runs, frames=0).run()


@pytest.mark.slow
def test_compare_continues_and_reads_finished_runs(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = Compare(short(words, tmp_path, name="all", optim=OptimConfig(steps=2, warmup=0)), ("ctc-both-ways", "frames"))
    compare.run()
    assert "ctc-both-ways" in capsys.readouterr().out
    figures = json.loads((tmp_path / "all" / "comparison.json").read_text())["figures"]
    assert {arm: len(runs) for arm, runs in figures.items()} == {"ctc-both-ways": 2, "frames": 2}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("all-*/model.pt")}
    assert len(before) == 4
    compare.run()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("all-*/model.pt")} == before
    with pytest.raises(InputError, match="a bidirectional model"):
        Predict(name="all-ctc-both-ways-0", runs=str(tmp_path), stream="0").run()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["tcn", "conformer"])
def test_every_encoder_is_exported(encoder: str, words: str, tmp_path: Path) -> None:
    """`Export` itself compares the file's output with the model's."""
    model = SequenceModelConfig(encoder=encoder, hidden=16, layers=2, lookahead=3, motion=True)  # type: ignore[arg-type]
    train = short(words, tmp_path, model=model, optim=OptimConfig(steps=2, warmup=0))
    train.run()
    Export(name=train.name, to=tmp_path / "m.onnx", runs=train.runs, frames=70).run()
    assert (tmp_path / "m.onnx").exists()


def test_look_aheads_are_compared_as_arms(words: str, tmp_path: Path) -> None:
    base = short(words, tmp_path, name="curve", model=SequenceModelConfig(lookahead=7))
    wanted = list(Compare(base, ("ctc", "even"), lookaheads=(0, 4))._configs(base, 1))
    assert [name for name, _ in wanted] == ["ctc-ahead-0", "ctc-ahead-4", "even-ahead-0", "even-ahead-4"]
    assert [config.model.lookahead for _, config in wanted] == [0, 4, 0, 4]
    assert {config.name for _, config in wanted} == {f"curve-{name}-1" for name, _ in wanted}
    both = dict(Compare(base, ("ctc-both-ways", "ctc"))._configs(base, 1))
    assert {name: config.model.lookahead for name, config in both.items()} == {"ctc-both-ways": 0, "ctc": 7}
    with pytest.raises(InputError, match="needs no look-ahead"):
        Compare(base, ("ctc-both-ways",), lookaheads=(4,)).run()
    with pytest.raises(InputError, match="a comparison sets this itself"):
        defaults("compare", ["--resume-from", "3"])


def test_a_frame_wise_model_is_decoded_with_smoothing_everywhere(words: str, tmp_path: Path) -> None:
    train = short(words, tmp_path, loss="even", optim=OptimConfig(steps=4, warmup=0))
    train.run()
    after = metrics_of(train)["after"]
    assert {"viterbi_edit", "viterbi_exact"} <= set(after)
    assert "beam_edit" not in after
    Evaluate(name=train.name, runs=train.runs, workers=0).run()
    again = Run(train.runs, train.name).read_json("metrics.json")["evaluations"][words]
    assert again["viterbi_edit"] == pytest.approx(after["viterbi_edit"], abs=1e-6)


def test_ctc_alone_has_a_flat_start() -> None:
    train = Train(optim=OptimConfig(steps=10), flat_start=0.25)
    assert [train.loss_at(step) for step in range(10)] == ["even"] * 3 + ["ctc"] * 7
    assert replace(train, flat_start=0.0).loss_at(0) == "ctc"
    assert replace(train, loss="frames").loss_at(0) == "frames"
    assert replace(train, loss="even").loss_at(9) == "even"


def test_bad_input_is_refused_before_anything_starts(words: str, tmp_path: Path) -> None:
    base = short(words, tmp_path / "runs")
    pack_videos("frames_npz", npz_folder(tmp_path / "n", [("up", "down")] * 4), str(tmp_path / "set"), VideoOptions(held_out=0))
    for wrong, message in [
        ({"data": ""}, "no data"),
        ({"data": str(tmp_path / "none")}, "not a whole shard set"),
        ({"data": str(tmp_path / "set"), "loss": "frames"}, "no frame labels"),
        ({"clip": ClipConfig(stride=30, size=(16, 24))}, "fewer frames than their actions need"),
    ]:
        with pytest.raises(InputError, match=message):
            replace(base, **wrong).run()
    for wrong in (
        {"batch": 0},
        {"batch": 3, "cluster": ClusterConfig(workers=2)},
        {"beam": 0},
        {"flat_start": 1.0},
        {"flat_start": -0.1},
        {"loader": LoaderConfig(size=(32, 32))},
    ):
        with pytest.raises((InputError, ClusterError)):
            replace(base, **wrong)
    with pytest.raises(InputError, match="two seeds"):
        Compare(base, seeds=(0,)).run()
    assert not (tmp_path / "runs").exists()
    assert defaults("compare", []) is None
    for ignored in (["--seed", "3"], ["--loss=even"]):
        with pytest.raises(InputError, match="a comparison sets this itself"):
            defaults("compare", ignored)


def test_motion_of_skeletons_is_refused(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    pose = np.random.default_rng(0).normal(size=(40, 3, 2)).astype(np.float32)
    for split in ("train", "test"):
        arrays = {"length": np.array([20, 20]), "label": np.array(["a;b", "b"]), "actions": np.repeat(["a", "b", "b", "b"], 10)}
        np.savez(tmp_path / "npz" / f"{split}.npz", pose=pose, **arrays)
    pack_videos("skeletons_npz", tmp_path / "npz", str(tmp_path / "set"), VideoOptions(stream="skeletons"))
    train = short(str(tmp_path / "set"), tmp_path / "runs", batch=2, optim=OptimConfig(steps=2, warmup=0))
    with pytest.raises(InputError, match="the set holds skeletons"):
        replace(train, model=SequenceModelConfig(motion=True)).run()
    train.run()
    assert "frame_f1" in metrics_of(train)["after"]


@pytest.mark.slow
def test_skeletons_of_jhmdb(tmp_path: Path) -> None:
    pack_videos("skeletons_npz", archive("jhmdb_skeletons.tar"), str(tmp_path / "set"), VideoOptions(stream="skeletons"))
    train = short(
        str(tmp_path / "set"),
        tmp_path / "runs",
        clip=ClipConfig(size=(16, 16)),
        flat_start=0.2,
        batch=16,
        optim=OptimConfig(steps=60, warmup=5, lr=1e-2),
    )
    train.run()
    metrics = metrics_of(train)
    assert metrics["after"]["n"] == 176
    assert metrics["after"]["edit"] < metrics["before"]["edit"]
    Evaluate(name=train.name, runs=train.runs, workers=0).run()
    for verb in (
        Predict(name=train.name, runs=train.runs, stream="0"),
        Export(name=train.name, to=tmp_path / "m.onnx", runs=train.runs),
    ):
        with pytest.raises(InputError, match="input is skeletons"):
            verb.run()
