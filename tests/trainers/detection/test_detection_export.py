"""An exported detector: onnxruntime finds what the detector finds, on images unlike those that it was exported with."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from boxdata import scene

from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.export import export_detector, largest_difference


def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(DetectorConfig(regions=16), 2).eval()


def test_the_file_finds_the_same(tmp_path: Path) -> None:
    model = detector()
    assert export_detector(model, (48, 64), tmp_path / "folder" / "cells.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "folder" / "cells.onnx", providers=["CPUExecutionProvider"])
    for seed in range(3):
        image = np.ascontiguousarray(scene(seed)[0].transpose(2, 0, 1))[None]
        boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": image})
        with torch.no_grad():
            (expected,) = model(torch.from_numpy(image))
        assert len(boxes) == len(labels) == len(expected["boxes"]) > 0
        np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)
        for box in expected["boxes"].numpy():  # boxes of all but equal scores may change places
            assert np.abs(boxes - box).max(axis=1).min() < 0.01


class Unfaithful(Detector):
    """Finds one thing, and another once exported."""

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        (found,) = super().forward(images)
        return [found | {"scores": found["scores"] * 0.99}] if torch.onnx.is_in_onnx_export() else [found]


def test_another_detector_is_noticed_and_nothing_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="nothing was written"):
        export_detector(Unfaithful(DetectorConfig(regions=16), 2).eval(), (48, 48), tmp_path / "cells.onnx")
    assert not list(tmp_path.iterdir())


def test_differences_do_not_depend_on_the_order() -> None:
    some = np.array([[0.1, 0.1, 0.2, 0.2, 0.9, 1], [0.5, 0.5, 0.7, 0.7, 0.9, 2]])
    assert largest_difference(some, some[::-1]) == 0
    assert largest_difference(some, some + np.array([0, 0, 0.01, 0, 0, 0])) == pytest.approx(0.01)
    assert largest_difference(some, some[[0, 0]]) > 0.1
    assert largest_difference(some, some[:1]) == np.inf
    assert largest_difference(some[:0], some[:0]) == 0
