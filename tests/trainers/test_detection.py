"""The detection job as people run it: trained, evaluated, predicted, exported, compared; on Ray with a kill, and a sweep."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from boxdata import CLASSES, encoded, put_voc, scene
from pycocotools.coco import COCO
from test_reid import kill_worker_after

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from trainers.detection import Compare, Evaluate, Export, Predict, Train, defaults
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.sweep import Sweep, SweepConfig
from trainers.tasks.detection.adaptation import AlignConfig, Arm
from trainers.tasks.detection.detector import DetectorConfig

pytestmark = pytest.mark.xdist_group("detection")  # one process trains the run that the tests share


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A source, and a smaller target of another shape and colour."""
    root = tmp_path_factory.mktemp("detection")
    pack("voc", put_voc(root / "s", 20), str(root / "source"), Options(max_block=8 << 10))
    pack("voc", put_voc(root / "t", 12, seed=1, width=48, tint=(40, 120, 220)), str(root / "target"), Options())
    return str(root / "source"), str(root / "target")


def short(sets: tuple[str, str], runs: Path, **changes: Any) -> Train:
    """Eight steps of four images of each domain, in this process."""
    train = Train(
        source=sets[0], target=sets[1], runs=str(runs), name=f"run-{uuid.uuid4().hex[:8]}", arm="align+aug", batch=4, side=48,
        checkpoint_every=2, record_every=2, evaluate_every=4, begin=2, model=DetectorConfig(regions=16),
        align=AlignConfig(clusters=2), optim=OptimConfig(steps=8, warmup=2), loader=LoaderConfig(workers=0),
        cluster=ClusterConfig(local=True),
    )  # fmt: skip
    return replace(train, **changes)


def metrics_of(train: Train) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in metrics.items() if name not in ("seconds", "evaluations")}


@pytest.fixture(scope="module")
def trained(sets: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run that aligns, with strong views and a moving mean."""
    train = short(sets, tmp_path_factory.mktemp("runs"))
    train.run()
    return train


def test_a_run_leaves_figures_and_a_report_with_clusters(trained: Train) -> None:
    metrics = metrics_of(trained)
    assert metrics["step"] == 8
    assert {"mAP50", "mAP", "vocAP50", "AP50.long", "AP50.round"} <= set(metrics["after"])
    folder = Path(trained.runs) / trained.name
    history = json.loads((folder / "history.json").read_text())
    assert [evaluation["step"] for evaluation in history["evaluations"]] == [0, 4, 8]
    seen = history["notes"]["seen"][-1]["images"][0]
    assert len(seen["weights"]) == len(seen["centres"]) == 2
    assert {point[2] for point in seen["points"]} <= {0, 1}
    first, last = history["records"][0], history["records"][-1]
    assert first["loss_align_source"] == 0  # before `begin`
    assert last["loss_align_source"] > 0
    report = (folder / "report.html").read_text()
    assert report.count("Target, step") >= 3
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_target_without_boxes_is_shown_and_not_evaluated(sets: tuple[str, str], tmp_path: Path) -> None:
    folder = put_voc(tmp_path / "bare", 8, seed=1, width=48, annotated=False)
    pack("voc", folder, str(tmp_path / "target"), Options(held_out=0))
    train = short((sets[0], str(tmp_path / "target")), tmp_path / "runs", arm="align")
    train.run()
    metrics = metrics_of(train)
    assert metrics["step"] == 8
    assert not {"before", "after"} & set(metrics)
    report = (Path(train.runs) / train.name / "report.html").read_text()
    assert report.count("Target, step") >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_leaves_no_trace(sets: tuple[str, str], tmp_path: Path) -> None:
    whole = short(sets, tmp_path, loader=LoaderConfig(workers=1), cluster=ClusterConfig(workers=2))
    whole.run()
    interrupted = replace(whole, name=f"{whole.name}-again")
    killer = kill_worker_after(interrupted, "step-00000004")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(whole)


def test_evaluate_again_gives_what_training_gave(
    trained: Train, sets: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Evaluate(name=trained.name, runs=trained.runs).run()
    Evaluate(name=trained.name, runs=trained.runs, data=sets[0]).run()
    assert "VOC AP50" in capsys.readouterr().out
    metrics = Run(trained.runs, trained.name).read_json("metrics.json")
    assert set(metrics["evaluations"]) == set(sets)
    expected = {name: value for name, value in metrics["after"].items() if name != "step"}
    assert metrics["evaluations"][sets[1]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("arm", get_args(Arm))
def test_every_arm_trains_on_a_fold_and_evaluates_on_it(arm: Arm, sets: tuple[str, str], tmp_path: Path) -> None:
    fold = {"folds": 3, "fold": 1, "begin": 1, "optim": OptimConfig(steps=2, warmup=0), "evaluate_every": 0}
    train = short(sets, tmp_path, arm=arm, **fold)
    train.run()
    metrics = metrics_of(train)
    assert metrics["step"] == 2
    assert np.isfinite(metrics["loss"])
    Evaluate(name=train.name, runs=train.runs).run()
    again = Run(train.runs, train.name).read_json("metrics.json")["evaluations"][sets[1]]
    assert again == pytest.approx({name: value for name, value in metrics["after"].items() if name != "step"}, abs=1e-5)
    if arm == "oracle":
        with pytest.raises(InputError, match="the run was trained with another fold: 1"):
            replace(train, fold=2, resume=True).run()


def test_predict_gives_cocos_json_and_pictures(trained: Train, tmp_path: Path) -> None:
    """Of images of any size and depth, too small for a crop among them."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.png").write_bytes(encoded(scene(1)[0]))
    (tmp_path / "b.png").write_bytes(encoded(scene(2, 90, 60)[0]))
    (tmp_path / "tiny.png").write_bytes(encoded(np.full((5, 4), 9, np.uint16)[..., None]))
    images = tuple(str(tmp_path / name) for name in ("some", "b.png", "tiny.png"))
    Predict(name=trained.name, images=images, runs=trained.runs).run()
    folder = Path(trained.runs) / trained.name
    coco = COCO(folder / "prediction.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == [
        str(tmp_path / name) for name in ("some/a.png", "b.png", "tiny.png")
    ]
    assert [c["name"] for c in coco.dataset["categories"]] == list(CLASSES)
    assert (coco.dataset["images"][1]["width"], coco.dataset["images"][1]["height"]) == (60, 90)
    assert coco.dataset["annotations"]
    for found in coco.dataset["annotations"]:
        assert found["bbox"][0] >= -0.1
        assert 0 <= found["bbox"][0] + found["bbox"][2] <= coco.imgs[found["image_id"]]["width"] + 0.1
    assert len(list((folder / "prediction").glob("*.png"))) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in the folder"):
        Predict(name=trained.name, images=(str(tmp_path / "empty"),), runs=trained.runs).run()


def test_export(trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Export(name=trained.name, to=tmp_path / "cells.onnx", runs=trained.runs).run()
    assert "labels: 1 long, 2 round" in capsys.readouterr().out
    assert (tmp_path / "cells.onnx").stat().st_size > 1 << 20
    with pytest.raises(InputError, match="not a format"):
        Export(name=trained.name, to=tmp_path / "cells.pt2", runs=trained.runs).run()


def test_bad_input_is_refused_before_anything_starts(sets: tuple[str, str], tmp_path: Path) -> None:
    base = short(sets, tmp_path)
    for wrong, message in [
        ({"source": ""}, "no source to train on"),
        ({"target": str(tmp_path / "nothing")}, "not a whole shard set"),
        ({"classes": ("square",)}, "no class square"),
    ]:
        with pytest.raises(InputError, match=message):
            replace(base, **wrong).run()
    for wrong in (
        {"batch": 3, "cluster": ClusterConfig(workers=2)}, {"begin": -1}, {"side": 8}, {"augment": AugmentConfig(turn=5)},
        {"folds": -1}, {"folds": 1}, {"folds": 3, "fold": 3}, {"fold": 1}, {"folds": 3, "fold": -1},
        {"loader": LoaderConfig(size=(32, 32))}, {"align": AlignConfig(clusters=99)}, {"adversary_lr": 0.0},
    ):  # fmt: skip
        with pytest.raises((InputError, ClusterError)):
            replace(base, **wrong)
    with pytest.raises(InputError, match="needs an arm and two seeds"):
        Compare(base, seeds=(0,)).run()
    for folds, only in ((0, (0,)), (3, (3,)), (3, (-1,))):
        with pytest.raises(InputError, match=f"no fold {only[0]} of {folds}: --only-folds"):
            Compare(replace(base, folds=folds), only_folds=only)
    assert not list(tmp_path.iterdir())
    assert base.recipe.align
    rates = [
        replace(base, arm=arm, adversary_lr=lr).adversaries_optim().lr for arm in ("align", "da-faster") for lr in (None, 3e-4)
    ]
    assert rates == [2e-4, 3e-4, base.optim.lr, 3e-4]  # classifiers of the domain must keep up with the detector
    assert defaults("train", []) is None


@pytest.mark.slow
def test_arms_are_compared_and_finished_runs_are_read(
    sets: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = short(sets, tmp_path, name="arms", optim=OptimConfig(steps=2, warmup=0))
    compare = Compare(base, arms=("source", "mean-teacher"), seeds=(0, 1))
    compare.run()
    first = capsys.readouterr().out
    assert all(arm in first for arm in compare.arms)
    assert "mAP50 - source" in first
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("arms-*/metrics.json")}
    assert len(written) == 2 * len(compare.arms)
    compare.run()
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("arms-*/metrics.json")}
    figures = json.loads((tmp_path / "arms" / "comparison.json").read_text())["figures"]
    assert set(figures) == set(compare.arms)


@pytest.mark.slow
def test_arms_are_compared_by_cross_validation(sets: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = short(sets, tmp_path, name="arms", optim=OptimConfig(steps=1, warmup=0), folds=4, evaluate_every=0)
    Compare(base, arms=("source", "oracle"), seeds=(0,), only_folds=(1, 3)).run()
    assert "2 runs each, of 2 folds" in capsys.readouterr().out
    names = {f"arms-{arm}-fold{fold}-0" for arm in ("source", "oracle") for fold in (1, 3)}
    assert {path.parent.name for path in tmp_path.glob("*/metrics.json")} == names
    document = json.loads((tmp_path / "arms" / "comparison.json").read_text())
    assert document["seeds"] == [[1, 0], [3, 0]]
    held_out = [[own["n.long"] + own["n.round"] for own in runs] for runs in document["figures"].values()]
    assert held_out[0] == held_out[1]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sweep_over_lambda_and_clusters(sets: tuple[str, str], tmp_path: Path) -> None:
    # No trial is stopped early: the session's cluster has no dashboard, and would keep its workers reserved.
    sweep = Sweep("detection", "search", str(tmp_path), sweep=SweepConfig(trials=2, concurrent=1, grace=30, seed=1))
    job = ["--source", sets[0], "--target", sets[1], "--arm", "align", "--side", "48", "--batch", "2", "--model.regions", "16"]
    sweep.run([*job, "--optim.steps", "2", "--cluster.workers", "1", "--loader.workers", "0"])
    trials = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert len(trials) == 2
    assert not any(trial["failure"] for trial in trials)
    wanted = {"align.strength", "align.clusters", "align.weighting", "optim.lr", "adversary_lr"}
    assert set(trials[0]["settings"]) == wanted
    best = defaults("train", ["--config", str(tmp_path / "search" / "best.json")])
    assert best.align.clusters == trials[0]["settings"]["align.clusters"]
