"""Detectors: inputs and outputs with every backbone, and that the small one learns."""

import numpy as np
import pytest
import torch
from boxdata import CLASSES, scene

from datasets.errors import InputError
from trainers.tasks.detection.data import detect
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.metrics import Truth, detection_figures


@pytest.mark.parametrize(("backbone", "side"), [("small", 48), ("resnet18", 64), ("vgg16", 64)])
def test_losses_and_boxes_of_every_backbone(backbone: str, side: int) -> None:
    torch.manual_seed(0)
    detector = Detector(DetectorConfig(backbone, regions=8), 3)
    images = torch.randint(256, (2, 3, side, side + 16), dtype=torch.uint8)
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 30, 30]]), "labels": torch.tensor([3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    losses, found = detector.losses(images, targets)
    assert set(losses) == {"objectness", "proposal", "class", "box"}
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    assert found.features.shape == (sum(len(b) for b in found.boxes), detector.width)
    best = detector.best_regions(images)
    assert all(1 <= len(b) <= 8 for b in best.boxes)
    assert detector.rpn.training
    detector.eval()
    with torch.no_grad():
        predicted = detector(images)
    for own in predicted:
        assert own["boxes"].shape == (len(own["scores"]), 4)
        assert ((own["labels"] >= 1) & (own["labels"] <= 3)).all()
        assert (own["boxes"][:, 0::2] <= side + 16).all()
        assert (own["boxes"][:, 1::2] <= side).all()


def test_what_cannot_be_built_is_refused() -> None:
    for wrong, message in (
        ({"backbone": "resnet9"}, "unknown backbone 'resnet9'"),
        ({"weights": "DEFAULT"}, "backbone small has no weights of this name: DEFAULT"),
        ({"backbone": "vgg16", "weights": "X"}, "has no weights of this name: X; use one of IMAGENET1K_V1"),
        ({"regions": 1}, "model.regions"),
        ({"backbone": "resnet18", "anchors": (8, 16)}, "2 anchors for 5 levels"),
    ):
        with pytest.raises(InputError, match=message):
            DetectorConfig(**wrong)  # type: ignore[arg-type]


def test_trained_weights_are_frozen_where_they_mix_images() -> None:
    """With weights named but not fetched the net has frozen batch norm, as the weights were trained with it."""
    names = {type(m).__name__ for m in Detector(DetectorConfig("resnet18", "DEFAULT"), 1, fetch=False).modules()}
    assert "FrozenBatchNorm2d" in names
    assert "BatchNorm2d" not in names


def test_the_small_one_learns() -> None:
    torch.manual_seed(0)
    detector = Detector(DetectorConfig(regions=32, anchors=(8, 16)), 2).train()
    scenes = [scene(seed) for seed in range(4)]
    images = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2)
    targets = [
        {
            "boxes": torch.tensor([list(map(float, corners)) for _, *corners in things]),
            "labels": torch.tensor([CLASSES.index(name) + 1 for name, *_ in things]),
        }
        for _, things in scenes
    ]
    optimiser = torch.optim.AdamW(detector.parameters(), 2e-3)
    for _ in range(60):
        losses, _ = detector.losses(images, targets)
        optimiser.zero_grad()
        torch.stack([total / count for total, count in losses.values()]).sum().backward()
        optimiser.step()
    predicted = detect(detector.eval(), images)
    scale = np.array([64, 48, 64, 48], np.float32)
    truth = [
        Truth(t["boxes"].numpy() / scale, t["labels"].numpy() - 1, np.zeros(len(t["labels"]), np.bool_)) for t in targets
    ]  # fmt: skip
    assert detection_figures(truth, predicted, CLASSES)["mAP50"] > 0.6
