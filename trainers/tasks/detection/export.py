"""Exports a trained detector to ONNX; the file runs without this project.

Its input is one RGB image uint8 [1, 3, H, W] (H, W fixed), its outputs "boxes" [n, 4] in pixels, "scores" [n], "labels" [n].
"""

import copy
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainers.engine.export import TOLERANCE
from trainers.tasks.detection.detector import Detector

Floats = npt.NDArray[np.floating]


class _OneImage(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (found,) = self.detector(images)
        return found["boxes"], found["scores"], found["labels"]


@torch.no_grad()
def export_detector(detector: Detector, size: tuple[int, int], path: Path) -> float:
    """Write the file, complete or not at all, if onnxruntime's outputs equal the detector's on test images.

    Returns the largest difference of scores, and of boxes as fractions of the image's sides.

    Raises:
        RuntimeError: they differ by 1e-4 or more.
    """
    model = _OneImage(copy.deepcopy(detector).cpu().float()).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        with warnings.catch_warnings():
            # The number of boxes depends on the image: torch.export refuses torchvision's non-maximum suppression for that (torch
            # 2.14). The older exporter works, and warns that it is deprecated and that it traces constants.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (_image(size, 0),), str(draft), input_names=["images"], output_names=["boxes", "scores", "labels"],
                dynamic_axes={name: {0: "found"} for name in ("boxes", "scores", "labels")}, dynamo=False, opset_version=17,
            )  # fmt: skip
        import onnxruntime  # here: a second in the way of every job's start

        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        difference = 0.0
        for seed in range(3):
            image = _image(size, seed)
            expected = _rows([output.numpy() for output in model(image)], size)
            actual = _rows(session.run(["boxes", "scores", "labels"], {"images": image.numpy()}), size)
            difference = max(difference, largest_difference(actual, expected))
        if not difference < TOLERANCE:
            raise RuntimeError(f"{path}: the exported detector differs by {difference:.2g}; nothing was written")
        draft.replace(path)
    return difference


def _rows(found: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> Floats:
    """One row a box: corners as fractions of the sides, score, label."""
    boxes, scores, labels = found
    return np.concatenate([boxes / np.array([*size[::-1], *size[::-1]]), scores[:, None], labels[:, None]], axis=1)


def largest_difference(some: Floats, others: Floats) -> float:
    """The largest distance of a row to the nearest row of the other table: nearly equal scores may be sorted differently."""
    if len(some) != len(others):
        return math.inf
    distances = np.abs(some[:, None] - others[None]).max(axis=2) if len(some) else np.zeros((1, 1))
    return float(max(distances.min(axis=1).max(), distances.min(axis=0).max()))


def _image(size: tuple[int, int], seed: int) -> Tensor:
    """An image of coloured blobs: in noise a detector finds nothing to compare."""
    coarse = torch.randint(256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return nn.functional.interpolate(coarse.float(), size, mode="bilinear").to(torch.uint8)
