"""Every job trains, from its command's config to its report: four steps of each on small sets, in this process, and in Ray.

A worker that is killed, or asked to end, resumes to the same weights. What each job does in full is tested at length elsewhere,
slowly; this is there so that no job breaks unseen.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import (
    LOCAL,
    OPTIM,
    RUNS,
    STEPS,
    KilledError,
    action_run,
    box_run,
    face_run,
    killed_after,
    reid_run,
    sequence_run,
    terminated_at,
)

from cluster.config import ClusterConfig
from cluster.errors import StoppedError
from datasets.loading.clip_changes import ClipAugmentConfig
from datasets.media.augment import AugmentConfig
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.run import Run
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.video.sequence_model import SequenceModelConfig


def config_of(run_of: Callable[..., Any], root: Path, cluster: ClusterConfig = LOCAL) -> Any:
    return run_of(root, cluster=cluster, name="run", runs=str(root / "runs"), checkpoint_every=2, record_every=1)


def left_by(train: Any) -> dict[str, Any]:
    """Check all that a run leaves, and return its metrics."""
    run, folder = Run(train.runs, "run"), Path(train.runs) / "run"
    metrics, history = run.read_json("metrics.json"), run.read_json("history.json")
    assert metrics["step"] == STEPS
    assert [record["step"] for record in history["records"]] == list(range(1, STEPS + 1))
    assert all(np.isfinite(record["loss"]) for record in history["records"])
    assert (metrics["before"]["step"], metrics["after"]["step"]) == (0, STEPS)
    after = metrics["after"]
    assert metrics["score"] == (-after["edit"] if "edit" in after else after.get("score", after.get("mAP", after.get("top1"))))
    assert any(folder.glob(f"step-{STEPS:08d}*"))  # the last checkpoint
    assert "<html" in (folder / "report.html").read_text()[:200]
    state = run.read_model()
    model = state.get("model", state.get("embedder"))
    assert all(torch.isfinite(tensor).all() for tensor in model.values())
    found = {name: metrics[name] for name in ("weights_crc32c", "draws_crc32c", "after")}
    return {**found, "model": {name: tensor.tolist() for name, tensor in model.items()}}


def recipe_run(root: Path, **how: Any) -> Any:
    """Re-identification with all that a recipe adds."""
    optim = replace(OPTIM, freeze=1, backbone_lr=0.1, clip=1.0, ema=0.5, accumulate=2)
    return replace(
        reid_run(root, **how), optim=optim, sampler=SamplerConfig("pk", batch=16), augment=AugmentConfig(jitter=0.2, patch=0.5),
        head=HeadConfig(smoothing=0.1, filter=0.05, filter_from=3), pair=PairConfig("soft_triplet"),
    )  # fmt: skip


def neighbours_run(root: Path, **how: Any) -> Any:
    """Re-identification with a pair loss, by batches of look-alikes from the second version on, which finds the random ones easy.

    The third alone would not begin with them: a resumed run must know of the second.
    """
    sampler = SamplerConfig("neighbours", batch=16, instances=2, interval=1, lag=0, begin_below=0.8)
    return replace(reid_run(root, **how), sampler=sampler, pair=PairConfig("soft_triplet"), seed=2)


def averaged_run(root: Path, **how: Any) -> Any:
    """Actions whose weights are averaged."""
    return replace(action_run(root, **how), optim=replace(OPTIM, ema=0.9))


def parts_run(root: Path, **how: Any) -> Any:
    """Sequences whose batches go through the model in parts."""
    return replace(sequence_run(root, **how), optim=replace(OPTIM, accumulate=2))


def ahead_run(root: Path, **how: Any) -> Any:
    """Sequences by an encoder that looks ahead, of augmented clips."""
    model = SequenceModelConfig(encoder="conformer", hidden=8, layers=1, lookahead=2, motion=True)
    augment = ClipAugmentConfig(speed=0.2, turn=5, zoom=0.1, jitter=0.2, erase=0.5, hide=0.2)
    return replace(sequence_run(root, **how), model=model, augment=augment)


def frame_wise_run(root: Path, **how: Any) -> Any:
    """Sequences by parts of equal length, whose decoding is chosen on training clips."""
    return replace(sequence_run(root, **how), loss="even", model=SequenceModelConfig(encoder="tcn", hidden=8, layers=2))


def classified_run(root: Path, **how: Any) -> Any:
    """Detection with classifiers of the domain, on a fold of the target."""
    return replace(box_run(root, **how), arm="da-faster", folds=3, fold=1)


def distilled_run(root: Path, **how: Any) -> Any:
    """Detection that goes on from the moving mean after two steps, which is where the run is killed."""
    return replace(box_run(root, **how), arm="aldi", begin=2)


MORE = [recipe_run, neighbours_run, averaged_run, parts_run, ahead_run, frame_wise_run, classified_run, distilled_run]


@pytest.mark.parametrize("run_of", [*RUNS, *MORE])
def test_a_job_trains_from_config_to_report_and_resumes_exactly(
    run_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (config_of(run_of, tmp_path / name) for name in ("whole", "killed"))
    whole.run()
    with monkeypatch.context() as patch:
        killed_after("step-00000002", patch)
        with pytest.raises(KilledError):
            killed.run()
    with monkeypatch.context() as patch:
        terminated_at(3, patch)
        with pytest.raises(StoppedError, match=r"stopped at step 3; continue it with: .* --name run --runs .* --resume"):
            replace(killed, resume=True).run()
    assert list((tmp_path / "killed" / "runs" / "run").glob("step-00000003*"))
    replace(killed, resume=True).run()
    assert left_by(killed) == left_by(whole)


def test_the_average_is_stored_and_the_weights_go_on(tmp_path: Path) -> None:
    plain, averaged = (config_of(run_of, tmp_path / run_of.__name__) for run_of in (action_run, averaged_run))
    plain.run()
    averaged.run()
    one, other = left_by(plain), left_by(averaged)
    assert one["weights_crc32c"] == other["weights_crc32c"]
    assert one["model"] != other["model"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("run_of", [reid_run, pytest.param(box_run, marks=pytest.mark.slow)])
def test_a_job_trains_on_two_workers_in_ray(run_of: Callable[..., Any], tmp_path: Path) -> None:
    """Re-identification with a head whose rows the workers share, and whose evaluation only rank 0 knows."""
    train = config_of(run_of, tmp_path, ClusterConfig(workers=2, max_failures=0))
    if run_of is reid_run:
        train = replace(train, head=replace(train.head, parallel=True))
    train.run()
    left_by(train)


@pytest.mark.usefixtures("cluster")
def test_one_worker_in_ray_goes_on_with_a_local_run_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, begun = (config_of(face_run, tmp_path / name) for name in ("whole", "begun"))
    whole.run()
    with monkeypatch.context() as patch:
        killed_after("step-00000002", patch)
        with pytest.raises(KilledError):
            begun.run()
    replace(begun, resume=True, cluster=ClusterConfig(workers=1, max_failures=0)).run()
    assert left_by(begun) == left_by(whole)
