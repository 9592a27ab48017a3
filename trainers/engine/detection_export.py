"""A trained detector as an ONNX file that runs without this project.

It takes one RGB image uint8 [1, 3, H, W] (H, W fixed) and gives "boxes" [n, 4] in its pixels, "scores" [n] and "labels" [n].
"""

import copy
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from trainers.engine.export import TOLERANCE
from trainers.models.detection import Detector


class _OneImage(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (told,) = self.detector(images)
        return told["boxes"], told["scores"], told["labels"]


@torch.no_grad()
def export_detector(detector: Detector, size: tuple[int, int], path: Path) -> float:
    """Write the file, whole or not at all, and only when onnxruntime finds what the detector finds.

    Returns the largest difference of scores, and of boxes as shares of the image.

    Raises:
        RuntimeError: they differ by 1e-4 or more.
    """
    model = _OneImage(copy.deepcopy(detector).cpu().float()).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        with warnings.catch_warnings():
            # Non-maximum suppression keeps a number of boxes that only the image tells: torch.export refuses torchvision's code
            # for it (torch 2.15), so the older exporter does it, which warns of its age and of the constants that it makes.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (_image(size, 0),), str(draft), input_names=["images"], output_names=["boxes", "scores", "labels"],
                dynamic_axes={name: {0: "found"} for name in ("boxes", "scores", "labels")}, dynamo=False, opset_version=17,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        differences = []
        for seed in range(3):
            image = _image(size, seed)
            expected = [output.numpy() for output in model(image)]
            got = session.run(["boxes", "scores", "labels"], {"images": image.numpy()})
            if any(a.shape != b.shape for a, b in zip(got, expected, strict=True)) or (got[2] != expected[2]).any():
                raise RuntimeError(f"{path}: the exported detector finds other boxes; nothing was written")
            differences += [np.abs(got[0] - expected[0]).max(initial=0) / max(size), np.abs(got[1] - expected[1]).max(initial=0)]
        if not max(differences) < TOLERANCE:
            raise RuntimeError(f"{path}: the exported detector differs by {max(differences):.2g}; nothing was written")
        draft.replace(path)
    return float(max(differences))


def _image(size: tuple[int, int], seed: int) -> Tensor:
    """Blots of colour: on noise a detector finds nothing to compare."""
    coarse = torch.randint(256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return nn.functional.interpolate(coarse.float(), size, mode="bilinear").to(torch.uint8)
