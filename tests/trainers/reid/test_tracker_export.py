"""A run's ONNX file in a tracker: crops as BoxMOT makes them, by code of this test's own."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from datasets.errors import InputError
from trainers.engine.export import export_onnx
from trainers.tasks.reid.model import Embedder, ModelConfig
from trainers.tasks.reid.tracker_export import for_boxmot, random_crops

Array = NDArray[np.float32]
BOXES = ((10, 5, 60, 120), (40, 30, 90, 200), (-5, -5, 30, 40))  # left, top, right, bottom; the last sticks out


def crops_of(frame: NDArray[np.uint8], boxes: tuple[tuple[int, int, int, int], ...]) -> Array:
    """Crops of a BGR frame for an appearance model."""
    crops = []
    for left, top, right, bottom in boxes:
        crop = cv2.resize(frame[max(top, 0) : bottom, max(left, 0) : right], (128, 256), interpolation=cv2.INTER_LINEAR)
        rgb = crop[:, :, ::-1].astype(np.float32) / 255
        crops.append((rgb - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]))
    return np.stack(crops).transpose(0, 3, 1, 2)


def test_a_tracker_gets_the_features_of_its_crops(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedder = Embedder(ModelConfig(embedding=16)).eval()
    path = tmp_path / "resnet50_people.onnx"
    assert export_onnx(for_boxmot(embedder, path, (256, 128)), (256, 128), path, inputs=random_crops) < 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.type, taken.shape[1:]) == ("tensor(float)", [3, 256, 128])
    frame = np.random.default_rng(0).integers(0, 256, (240, 120, 3), dtype=np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 5)
    (features,) = session.run([given.name], {taken.name: crops_of(frame, BOXES)})
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    images = []
    for left, top, right, bottom in BOXES:
        images.append(cv2.resize(frame[max(top, 0) : bottom, max(left, 0) : right], (128, 256))[:, :, ::-1].copy())
    with torch.no_grad():
        own = embedder(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, torch.nn.functional.normalize(own).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("a.pt2", (256, 128), "cannot read this format"),
        ("a.onnx", (64, 32), "takes images of 64x32"),
        ("a.onnx", (256, 256), "'veri' in their name"),
    ],
)
def test_what_boxmot_would_not_pass_is_refused(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        for_boxmot(Embedder(ModelConfig(embedding=4)), Path(name), size)


def test_vehicles_have_a_size_of_their_own() -> None:
    assert for_boxmot(Embedder(ModelConfig(embedding=4)), Path("resnet50_veri.onnx"), (256, 256))
