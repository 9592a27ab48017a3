"""Every job trains, from its command's config to its report: four steps of each on small sets, in this process, and one in Ray.

A worker that is killed resumes to the same weights. What each job does in full is tested at length elsewhere, slowly; this is
there so that no job breaks unseen. Re-identification runs in Ray in `test_reid`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxdata import put_voc
from clipdata import npz_folder
from facedata import faces
from local import LocalRay

from cluster.config import ClusterConfig
from datasets.loading.batches import LoaderConfig
from datasets.loading.clips import ClipConfig
from datasets.pack import Options, pack
from datasets.pack_videos import VideoOptions, pack_videos
from trainers import actions, attributes, detection, sequences
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.tasks.attributes.model import FaceModelConfig
from trainers.tasks.detection.adaptation import AlignConfig
from trainers.tasks.detection.detector import DetectorConfig
from trainers.tasks.video.action_model import ActionModelConfig
from trainers.tasks.video.sequence_model import SequenceModelConfig

MOVES = ("right", "left", "down", "up")
STEPS = 4


def face_run(root: Path, **how: Any) -> attributes.Train:
    """Two stages of a step and one of two."""
    images = faces(root / "images", 40, ("gender", "mask", "age"))
    pack("attributes_csv", images, str(root / "set"), Options(held_out=0.3))
    one, two = ({"least": n, "most": n, "warmup": 0} for n in (1, 2))
    return attributes.Train(
        data=(str(root / "set"),), batch=8, loader=LoaderConfig(workers=0, size=(32, 32)),
        stage1=attributes.Stage(**one, tasks=("gender",)), stage2=attributes.Stage(**one, tasks=("gender", "age")),
        stage3=attributes.Stage(**two, tasks=("gender", "age", "mask", "pose")),
        model=FaceModelConfig("usermodels:backbone"), **how,
    )  # fmt: skip


def box_run(root: Path, **how: Any) -> detection.Train:
    pack("voc", put_voc(root / "s", 8), str(root / "source"), Options(held_out=0))
    pack("voc", put_voc(root / "t", 10, seed=1), str(root / "target"), Options(held_out=0.3))
    return detection.Train(
        source=str(root / "source"), target=str(root / "target"), arm="align+aug", batch=4, side=48,
        model=DetectorConfig(regions=16), align=AlignConfig(clusters=2), optim=OptimConfig(steps=STEPS, warmup=0),
        loader=LoaderConfig(workers=0), **how,
    )  # fmt: skip


def action_run(root: Path, **how: Any) -> actions.Train:
    folder = npz_folder(root / "npz", [(MOVES[n % 4],) for n in range(12)])
    pack_videos("frames_npz", folder, str(root / "set"), VideoOptions(test="round=2"))
    return actions.Train(
        data=str(root / "set"), batch=4, clip=ClipConfig(frames=8, size=(16, 24), test_clips=1, flip=False),
        loader=LoaderConfig(workers=0), model=ActionModelConfig("usermodels:clips"),
        optim=OptimConfig(steps=STEPS, warmup=0), **how,
    )  # fmt: skip


def sequence_run(root: Path, **how: Any) -> sequences.Train:
    folder = npz_folder(root / "npz", [(MOVES[n % 4], MOVES[n % 3]) for n in range(12)])
    pack_videos("frames_npz", folder, str(root / "set"), VideoOptions(test="round=2"))
    return sequences.Train(
        data=str(root / "set"), batch=4, clip=ClipConfig(stride=2, size=(16, 24), flip=False), flat_start=0.5,
        loader=LoaderConfig(workers=0), model=SequenceModelConfig(hidden=8), optim=OptimConfig(steps=STEPS, warmup=0), **how,
    )  # fmt: skip


def trained(run_of: Callable[..., Any], root: Path, cluster: ClusterConfig) -> dict[str, Any]:
    """Train, check all that a run leaves, and return its metrics."""
    train = run_of(root, cluster=cluster, name="run", runs=str(root / "runs"), checkpoint_every=2, record_every=1)
    train.run()
    run, folder = Run(train.runs, "run"), root / "runs" / "run"
    metrics, history = run.read_json("metrics.json"), run.read_json("history.json")
    assert metrics["step"] == STEPS
    assert [record["step"] for record in history["records"]] == list(range(1, STEPS + 1))
    assert all(np.isfinite(record["loss"]) for record in history["records"])
    assert (metrics["before"]["step"], metrics["after"]["step"]) == (0, STEPS)
    assert any(folder.glob(f"step-{STEPS:08d}*"))  # the last checkpoint
    assert "<html" in (folder / "report.html").read_text()[:200]
    assert all(torch.isfinite(t).all() for t in run.read_model()["model"].values())
    assert sys.modules[type(train).__module__].open_trained(train.runs, "run").run.url == run.url
    return {name: metrics[name] for name in ("weights_crc32c", "draws_crc32c", "after")}


@pytest.mark.parametrize("run_of", [face_run, box_run, action_run, sequence_run])
def test_a_job_trains_from_config_to_report_and_resumes_exactly(
    run_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {face_run: attributes, box_run: detection, action_run: actions, sequence_run: sequences}[run_of]
    LocalRay(module, monkeypatch)
    whole = trained(run_of, tmp_path / "whole", ClusterConfig(workers=1))
    killed = LocalRay(module, monkeypatch, dies_after="step-00000002")
    assert trained(run_of, tmp_path / "killed", ClusterConfig(workers=1)) == whole
    assert not killed.dies_after  # it did die


@pytest.mark.usefixtures("cluster")
def test_a_job_trains_on_two_workers_in_ray(tmp_path: Path) -> None:
    trained(box_run, tmp_path, ClusterConfig(workers=2, max_failures=0))
