"""The embedder with the input of a tracker's appearance model, as BoxMOT passes it: RGB crops float32 [B, 3, H, W], divided by
255 and normalised by ImageNet's mean and deviation. Source: boxmot/reid/backends/base_backend.py of BoxMOT 25.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.export import random_images
from trainers.tasks.backbones import Normalise
from trainers.tasks.reid.model import Embedder

BOXMOT_SIZES = {(256, 128): "", (256, 256): "veri"}  # what BoxMOT crops to, and what the file's name must contain for it


class ForTrackers(nn.Module):
    """Normalised crops [B, 3, H, W] -> features [B, D]."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder, self.taken = embedder, Normalise()

    def forward(self, images: Tensor) -> Tensor:
        # Back to 0..255, as the embedder normalises by itself.
        features: Tensor = self.embedder(images * self.taken.std + self.taken.mean)
        return features


def random_crops(batch: int, size: tuple[int, ...]) -> Tensor:
    """Random images as a tracker would pass them, [batch, 3, *size]."""
    with torch.no_grad():
        crops: Tensor = Normalise()(random_images(batch, size).float())
    return crops


def for_boxmot(embedder: Embedder, path: Path, size: tuple[int, int]) -> ForTrackers:
    """The model to write for BoxMOT; raises InputError unless it passes crops of this size to a file of this name."""
    if path.suffix != ".onnx":
        raise InputError("BoxMOT cannot read this format", str(path), "end the name with .onnx")
    if size not in BOXMOT_SIZES:
        what = f"the model takes images of {size[0]}x{size[1]}, and BoxMOT passes 256x128, or 256x256 of vehicles"
        raise InputError(what, str(path), "train with --loader.size 256 128, or export with --format bytes")
    if BOXMOT_SIZES[size] not in path.name:
        raise InputError(
            "BoxMOT passes 256x256 only to models with 'veri' in their name", str(path), "rename it: resnet50_veri.onnx"
        )
    return ForTrackers(embedder)
