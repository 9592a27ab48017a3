"""Without batch norm, every task has the gradient on two ranks of half a batch each that it has on one rank of the whole."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from boxdata import CLASSES, scene
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.loading.clips import ClipConfig
from trainers.engine.distributed import distribute, means_over_ranks
from trainers.engine.loop import Meter, Step
from trainers.tasks.attributes.losses import TASKS
from trainers.tasks.attributes.model import Attributes, AttributesTask, FaceModelConfig
from trainers.tasks.detection import adaptation, teacher
from trainers.tasks.detection.adaptation import RECIPES, AlignConfig, Arm, DetectionTask
from trainers.tasks.detection.detector import DetectorConfig
from trainers.tasks.detection.strong_augment import strong_views
from trainers.tasks.detection.teacher import TeacherConfig
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.model import ModelConfig, ReidTask
from trainers.tasks.reid.sharded_head import ShardedHead
from trainers.tasks.video.action_model import ActionModelConfig, Actions, ActionsTask
from trainers.tasks.video.sequence_model import LossKind, SequenceModel, SequenceModelConfig, SequenceTask

Group = dist.ProcessGroup | None
Batch = dict[str, Tensor]
B = 8  # samples of the whole batch


def without_batch_norm(task: nn.Module) -> nn.Module:
    """The task with nothing in the place of its batch norms; what feeds them is made small instead."""
    for parent in list(task.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, nn.Identity())
    return task.train()


def reid(losses: tuple[HeadConfig, PairConfig], group: Group) -> tuple[nn.Module, Batch]:
    """Of the labels one half holds pairs, the other hardly any; three samples have their nearest negative on the other rank."""
    identities, embedding = 9, 16
    task = ReidTask(ModelConfig(embedding=embedding), losses[0], identities, group, losses[1])
    with torch.no_grad():
        rows = torch.randn(identities, embedding, generator=torch.Generator().manual_seed(3))
        part = rows[task.head.first : task.head.end] if isinstance(task.head, ShardedHead) else rows
        task.head.rows.copy_(part)
    images = torch.randint(256, (B, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return task, {"images": images, "labels": torch.tensor([0, 0, 1, 1, 0, 4, 5, 6])}


def attributes(single: bool, group: Group) -> tuple[nn.Module, Batch]:
    """Labels of the tasks lie unevenly, and some only on one rank."""
    model = Attributes(FaceModelConfig(width=8), tuple(TASKS), single=single)
    model.insert_decoupler()
    for net in model.nets.values():
        for part in net.decoupler.corrections.values():  # type: ignore[union-attr]
            nn.init.normal_(part.weight, std=0.1)  # type: ignore[arg-type]
    task = AttributesTask(model, group)
    task.enter(dict.fromkeys(TASKS, 1.0))
    generator = torch.Generator().manual_seed(2)
    targets = torch.rand(B, len(model.columns), generator=generator).round()
    targets[torch.rand(targets.shape, generator=generator) < 0.4] = float("nan")
    targets[:3] = float("nan")
    targets[4:, model.columns.index("mask")] = float("nan")
    return task, {"images": torch.randint(256, (B, 3, 32, 32), dtype=torch.uint8, generator=generator), "targets": targets}


def detection(arm: Arm, group: Group) -> tuple[nn.Module, Batch]:
    """Images so small that all anchors and all regions are learned from; those of the second rank have no boxes."""
    config = DetectorConfig(regions=512, anchors=(8, 16))
    task = DetectionTask(config, len(CLASSES), RECIPES[arm], AlignConfig(), TeacherConfig(), group)
    scenes = [scene(seed, height=32, width=48) for seed in range(4)]
    boxes = [[list(map(float, corners)) for _, *corners in things] for _, things in scenes]
    counts = [len(boxes[0]), len(boxes[1]), 0, 1]
    kept = [box for own, count in zip(boxes, counts, strict=True) for box in own[:count]]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in scenes])
    classes = torch.arange(len(kept)) % len(CLASSES)
    found = {"images": images, "boxes": torch.tensor(kept), "classes": classes, "counts": torch.tensor(counts)}
    return task, found | {"target_images": images.flip(0, 3), "active": torch.tensor(1.0)}


def distilled(arm: Arm, group: Group) -> tuple[nn.Module, Batch]:
    """As `detection`, with a teacher that says something else than the student, of boxes that are few on one rank."""
    task, batch = detection(arm, group)
    assert isinstance(task, DetectionTask)
    assert task.mean is not None
    task.teaching = replace(task.teaching, threshold=0.35)
    generator = torch.Generator().manual_seed(6)
    for p in task.mean.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return task, batch


def actions(name: str, group: Group) -> tuple[nn.Module, Batch]:
    """One clip, one label: as many on every rank."""
    config = ActionModelConfig(name, width=8, hidden=8, dropout=0.0)
    task = ActionsTask(Actions(config, 3, ClipConfig(frames=16, size=(32, 32)), "rgb"))
    generator = torch.Generator().manual_seed(4)
    clips = torch.randint(256, (4, 16, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return task, {"clips": clips, "labels": torch.tensor([0, 0, 2, 1])}


def sequences(kind: LossKind, group: Group) -> tuple[nn.Module, Batch]:
    """Short videos on one rank and long ones on the other; one without actions, and one with more than it can hold."""
    task = SequenceTask(SequenceModel(SequenceModelConfig(hidden=12, dropout=0.0), 4, joints=(3, 2)), kind, group)
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([4, 5, 6, 4, 12, 15, 13, 14])
    targets = torch.full((B, 5), -1)
    for row, count in enumerate([1, 2, 0, 5, 5, 3, 1, 4]):
        targets[row, :count] = torch.arange(count) % 2 if row == 3 else torch.randint(4, (count,), generator=generator)
    frame_targets = torch.randint(-1, 4, (B, 15), generator=generator)
    clips = torch.randn(B, 15, 3, 2, generator=generator)
    return task, {"clips": clips, "lengths": lengths, "targets": targets, "frame_targets": frame_targets}


HEADS = [
    HeadConfig(kind, parallel=parallel)
    for kind in ("softmax", "sphereface", "cosface", "arcface", "adaface")
    for parallel in (False, True)
]
Case = tuple[Callable[[Any, Group], tuple[nn.Module, Batch]], Any]
EXACT: dict[str, Case] = {
    **{f"reid {head.kind}{' parallel' if head.parallel else ''}": (reid, (head, PairConfig())) for head in HEADS},
    "reid parallel smoothing": (reid, (HeadConfig(smoothing=0.2, parallel=True), PairConfig())),
    "reid triplet": (reid, (HeadConfig(), PairConfig("triplet"))),
    "reid parallel triplet": (reid, (HeadConfig(parallel=True), PairConfig("triplet"))),
    "reid soft triplet": (reid, (HeadConfig(), PairConfig("soft_triplet"))),
    "reid circle": (reid, (HeadConfig(), PairConfig("circle"))),
    "attributes": (attributes, False), "attributes single": (attributes, True),
    "detection source": (detection, "source"), "detection da-faster": (detection, "da-faster"),
    "detection aldi, one view": (distilled, "aldi"),
    "actions i3d": (actions, "i3d"), "actions c3d": (actions, "c3d"), "actions cnn_lstm": (actions, "cnn_lstm"),
    "sequences ctc": (sequences, "ctc"), "sequences frames": (sequences, "frames"), "sequences even": (sequences, "even"),
}  # fmt: skip
# Where each rank draws for itself.
CHANCE: dict[str, Case] = {"align": (detection, "align"), "align+aug": (detection, "align+aug")}


def share(batch: Batch, rank: int, world: int) -> Batch:
    """A rank's part of a batch; boxes go with their images, and videos are padded to the part's longest."""
    count = len(next(value for name, value in batch.items() if name in ("images", "clips")))
    mine = slice(rank * count // world, (rank + 1) * count // world)
    part = {name: value[mine] if value.ndim else value for name, value in batch.items() if name not in ("boxes", "classes")}
    if "boxes" in batch:
        ends = [0, *batch["counts"].cumsum(0).tolist()]
        part |= {name: batch[name][ends[mine.start] : ends[mine.stop]] for name in ("boxes", "classes")}
    for name in {"clips", "frame_targets"} & part.keys() if "lengths" in part else ():
        part[name] = part[name][:, : int(part["lengths"].max())]
    return part


def gradients(
    build: Callable[[Any, Group], tuple[nn.Module, Batch]], what: Any, group: Group, rank: int = 0, world: int = 1
) -> dict[str, Tensor]:
    """The loss, and each parameter's gradient as the optimiser is given it; ``rank``, ``world``: the part of the batch that is
    trained on without a group."""
    torch.manual_seed(0)
    task, batch = build(what, group)
    task = without_batch_norm(task)
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if group else (rank, world)
    model = distribute(task, group, sync_batch_norm=False, alone=getattr(task, "alone", []))
    torch.manual_seed(rank)
    views = (lambda images: images) if build is distilled else strong_views
    with patch.object(adaptation, "strong_views", views), patch.object(teacher, "strong_views", views):
        loss = model(share(batch, rank, world))["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def taught(group: Group, threshold: float) -> tuple[DetectionTask, Batch]:
    """A detector with a mean teacher, and a batch of which the teacher is surer on one half than on the other."""
    torch.manual_seed(0)
    task, batch = detection("mean-teacher", group)
    assert isinstance(task, DetectionTask)
    task.teaching = replace(task.teaching, threshold=threshold)
    return task, batch


def taught_on(group: Group, threshold: float) -> dict[str, Tensor]:
    task, batch = taught(group, threshold)
    model = distribute(task, group, sync_batch_norm=False)
    results = model(share(batch, dist.get_rank(group), 2))
    results["loss"].backward()
    return {"pseudo": results["loss_pseudo"], "gradient": torch.cat([p.grad.flatten() for p in task.detector.parameters()])}


def on_rank(rank: int, threshold: float) -> dict[str, dict[str, Tensor]]:
    """All cases, one after another."""
    torch.set_num_threads(1)
    found = {name: gradients(*case, dist.group.WORLD) for name, case in (EXACT | CHANCE).items()}
    counted = means_over_ranks({"few": (torch.tensor(3.0 + rank), 1 + rank), "none": (torch.tensor(0.0), 0)}, dist.group.WORLD)
    meter = Meter(dist.group.WORLD)
    meter.add(Step(1, {}, {"loss": torch.tensor(1.0 + rank), "accuracy": torch.tensor(0.5 * rank)}, 0.1, 0.5))
    read = {name: torch.tensor(value) for name, value in meter.read(1).items() if name in ("loss", "accuracy")}
    return found | {"counted": counted, "read": read, "taught": taught_on(dist.group.WORLD, threshold)}


@pytest.fixture(scope="module")
def threshold() -> float:
    """Between the teacher's highest scores on the two halves."""
    task, batch = taught(None, 0.5)
    assert task.mean is not None
    with torch.no_grad():
        scores = [float(own["scores"].max()) for own in task.mean(batch["target_images"])]
    low, high = sorted([max(scores[:2]), max(scores[2:])])
    assert high - low > 1e-4
    return (low + high) / 2


@pytest.fixture(scope="module")
def ranks(threshold: float) -> list[dict[str, dict[str, Tensor]]]:
    return on_ranks(2, on_rank, threshold)


@pytest.mark.parametrize("name", EXACT)
def test_two_halves_have_the_gradient_of_the_whole(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    whole, halves = gradients(*EXACT[name], None), [rank[name] for rank in ranks]
    assert halves[0].keys() == halves[1].keys() == whole.keys()
    assert float(whole["loss"]) > 0.01
    assert float(halves[0].pop("loss") + halves[1].pop("loss")) / 2 == pytest.approx(float(whole.pop("loss")), rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert largest > 1e-3
    for parameter, gradient in whole.items():
        parts = [half[parameter] for half in halves]
        found = torch.cat(parts) if "parallel" in name and parameter == "head.weight" else parts[0]
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5 * largest, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", CHANCE)
def test_what_is_drawn_by_each_rank_is_averaged_over_them(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    """Regions and clusters of a rank are another draw than those of the whole. Given the draws, alignment counts as many clusters
    of every image, and its gradient is the mean of the halves'."""
    halves = [gradients(*CHANCE[name], None, rank, 2) for rank in range(2)]
    adversaries = [parameter for parameter in halves[0] if parameter.startswith("adversaries")]
    assert len(adversaries) > 20
    for parameter in adversaries:
        expected = (halves[0][parameter] + halves[1][parameter]) / 2
        for rank in ranks:
            torch.testing.assert_close(rank[name][parameter], expected, rtol=1e-4, atol=1e-6)


def test_a_rank_without_pseudo_labels_goes_on_with_the_other(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    one, other = (rank["taught"] for rank in ranks)
    assert sorted([float(one["pseudo"]) > 0, float(other["pseudo"]) > 0]) == [False, True]
    assert torch.equal(one["gradient"], other["gradient"])


def test_means_are_over_what_the_ranks_count_together(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    counted = [rank["counted"] for rank in ranks]
    assert sum(float(one["few"]) for one in counted) / 2 == pytest.approx((3 + 4) / (1 + 2))
    assert [float(one["none"]) for one in counted] == [0, 0]


def test_a_record_is_of_all_ranks(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for rank in ranks:
        assert {name: float(value) for name, value in rank["read"].items()} == {"loss": 1.5, "accuracy": 0.25}
