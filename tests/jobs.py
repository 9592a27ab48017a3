"""Small runs of all jobs, a few steps each, and a worker that is killed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boxdata import put_voc
from clipdata import npz_folder
from facedata import faces

from cluster.config import ClusterConfig
from cluster.local_worker import LocalWorker
from datasets.loading.batches import LoaderConfig
from datasets.loading.clips import ClipConfig
from datasets.pack import Options, pack
from datasets.pack_videos import VideoOptions, pack_videos
from datasets.sampling.sampler import SamplerConfig
from trainers import actions, attributes, detection, reid, sequences
from trainers.engine.optim import OptimConfig
from trainers.tasks.attributes.config import Stage
from trainers.tasks.attributes.model import FaceModelConfig
from trainers.tasks.detection.adaptation import AlignConfig
from trainers.tasks.detection.detector import DetectorConfig
from trainers.tasks.reid.model import ModelConfig
from trainers.tasks.video.action_model import ActionModelConfig
from trainers.tasks.video.sequence_model import SequenceModelConfig

LOCAL = ClusterConfig(local=True)
STEPS = 4
MOVES = ("right", "left", "down", "up")
OPTIM = OptimConfig(steps=STEPS, warmup=0)


def reid_run(root: Path, **how: Any) -> reid.Train:
    """The shipped set, drawn by difficulty from the second step on."""
    return reid.Train(
        sampler=SamplerConfig(batch=16, interval=1, lag=0, uniform_share=0.5), optim=OPTIM, loader=LoaderConfig(workers=0),
        model=ModelConfig("usermodels:backbone"), **how,
    )  # fmt: skip


def face_run(root: Path, **how: Any) -> attributes.Train:
    """Two stages of a step and one of two."""
    images = faces(root / "images", 40, ("gender", "mask", "age"))
    pack("attributes_csv", images, str(root / "set"), Options(held_out=0.3))
    one, two = ({"least": n, "most": n, "warmup": 0} for n in (1, 2))
    return attributes.Train(
        data=(str(root / "set"),), batch=8, loader=LoaderConfig(workers=0, size=(32, 32)),
        stage1=Stage(**one, tasks=("gender",)), stage2=Stage(**one, tasks=("gender", "age")),
        stage3=Stage(**two, tasks=("gender", "age", "mask", "pose")), model=FaceModelConfig("usermodels:backbone"), **how,
    )  # fmt: skip


def box_run(root: Path, **how: Any) -> detection.Train:
    """Regions of two domains aligned."""
    pack("voc", put_voc(root / "s", 8), str(root / "source"), Options(held_out=0))
    pack("voc", put_voc(root / "t", 10, seed=1), str(root / "target"), Options(held_out=0.3))
    return detection.Train(
        source=str(root / "source"), target=str(root / "target"), arm="align+aug", batch=4, side=48,
        model=DetectorConfig(regions=16), align=AlignConfig(clusters=2), optim=OPTIM, loader=LoaderConfig(workers=0), **how,
    )  # fmt: skip


def action_run(root: Path, **how: Any) -> actions.Train:
    """One action a clip."""
    folder = npz_folder(root / "npz", [(MOVES[n % 4],) for n in range(12)])
    pack_videos("frames_npz", folder, str(root / "set"), VideoOptions(test="round=2"))
    return actions.Train(
        data=str(root / "set"), batch=4, clip=ClipConfig(frames=8, size=(16, 24), test_clips=1, flip=False),
        loader=LoaderConfig(workers=0), model=ActionModelConfig("usermodels:clips"), optim=OPTIM, **how,
    )  # fmt: skip


def sequence_run(root: Path, **how: Any) -> sequences.Train:
    """Two actions a clip, the first half of the steps with a flat start."""
    folder = npz_folder(root / "npz", [(MOVES[n % 4], MOVES[n % 3]) for n in range(12)])
    pack_videos("frames_npz", folder, str(root / "set"), VideoOptions(test="round=2"))
    return sequences.Train(
        data=str(root / "set"), batch=4, clip=ClipConfig(stride=2, size=(16, 24), flip=False), flat_start=0.5,
        loader=LoaderConfig(workers=0), model=SequenceModelConfig(hidden=8), optim=OPTIM, **how,
    )  # fmt: skip


RUNS: tuple[Callable[..., Any], ...] = (reid_run, face_run, box_run, action_run, sequence_run)


class KilledError(Exception):
    """What ends a worker that is killed."""


def killed_after(checkpoint: str, patch: pytest.MonkeyPatch) -> None:
    """Have a local worker end after it has stored a checkpoint of this name."""
    save = LocalWorker.save

    def save_and_die(self: LocalWorker, name: str, *what: Any) -> None:
        save(self, name, *what)
        if name == checkpoint:
            raise KilledError

    patch.setattr(LocalWorker, "save", save_and_die)


def terminated_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have this process get SIGTERM when a local worker has recorded a step."""
    record = LocalWorker.record

    def record_and_terminate(self: LocalWorker, figures: dict[str, Any], *what: Any) -> None:
        record(self, figures, *what)
        if figures["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(LocalWorker, "record", record_and_terminate)
