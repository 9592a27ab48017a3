"""What an arm trains, and which modules each loss reaches."""

from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from trainers.tasks.detection.adaptation import RECIPES, AlignConfig, Arm, DetectionTask
from trainers.tasks.detection.detector import DetectorConfig
from trainers.tasks.detection.strong_augment import strong_views
from trainers.tasks.detection.teacher import TeacherConfig

SMALL = DetectorConfig(regions=16)


def task_of(arm: Arm, **align: Any) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(SMALL, 2, RECIPES[arm], AlignConfig(**align), TeacherConfig()).train()


def batch_of(seed: int = 0, active: float = 1.0) -> dict[str, torch.Tensor]:
    """Two labelled images of 64 x 48, one of them empty, and two of the target of 48 x 48."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randint(256, (2, 3, 48, 64), generator=generator, dtype=torch.uint8),
        "target_images": torch.randint(256, (2, 3, 48, 48), generator=generator, dtype=torch.uint8),
        "boxes": torch.tensor([[4.0, 4, 24, 24], [30, 10, 50, 40]]),
        "classes": torch.tensor([0, 1]),
        "counts": torch.tensor([2, 0]),
        "active": torch.tensor(active),
    }


def gradients(task: DetectionTask, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of every trained weight, after one pass that draws the same random numbers."""
    task.zero_grad()
    torch.manual_seed(1)
    task(batch)["loss"].backward()
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.requires_grad and p.grad is not None}
    assert found.keys() == {name for name, p in task.named_parameters() if p.requires_grad}  # DDP waits for every one of them
    return found


def part(found: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    return torch.cat([gradient.flatten() for name, gradient in found.items() if name.startswith(prefix)])


@pytest.mark.parametrize("arm", ["align", "da-faster"])
def test_the_adversarial_loss_reaches_the_backbone_unless_lambda_is_zero(arm: Arm) -> None:
    """In SCDA's public code it does not: the clusters pass through NumPy, which stops the gradient."""
    plain = gradients(task_of("source"), batch_of())
    without = gradients(task_of(arm, strength=0.0), batch_of())
    aligned = gradients(task_of(arm, strength=1.0), batch_of())
    for prefix in ("detector.backbone.0.", "detector.backbone", "detector.roi_heads.box_head"):
        assert torch.equal(part(without, prefix), part(plain, prefix))
        assert (part(aligned, prefix) - part(plain, prefix)).abs().max() > 1e-6
    not_yet = gradients(task_of(arm, strength=1.0), batch_of(active=0.0))
    assert torch.equal(part(not_yet, "detector"), part(plain, "detector"))
    twice = gradients(task_of(arm, strength=2.0), batch_of())
    added, doubled = (part(g, "detector.backbone") - part(plain, "detector.backbone") for g in (aligned, twice))
    torch.testing.assert_close(doubled, 2 * added, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("arm", ["align", "da-faster"])
def test_both_domains_reach_the_backbone(arm: Arm) -> None:
    """Other target images change the backbone's adversarial gradient: it has a part of the target."""
    batch = batch_of()
    one = gradients(task_of(arm, strength=1.0), batch)
    other = gradients(task_of(arm, strength=1.0), batch | {"target_images": batch["target_images"].flip(0, 2)})
    assert (part(one, "detector.backbone") - part(other, "detector.backbone")).abs().max() > 1e-6


PARTS = {
    "align": ("make_source", "make_target", "tell_source", "tell_target", "estimate"), "da-faster": ("of_position", "of_region")
}  # fmt: skip


@pytest.mark.parametrize("arm", PARTS)
def test_adversaries_learn_whatever_lambda_is(arm: Arm) -> None:
    without = gradients(task_of(arm, strength=0.0), batch_of())
    strong = gradients(task_of(arm, strength=5.0), batch_of())
    torch.testing.assert_close(part(without, "adversaries"), part(strong, "adversaries"))
    for name in PARTS[arm]:
        assert part(without, f"adversaries.{name}").abs().max() > 0


def test_the_adversaries_learn() -> None:
    batch = batch_of()
    task = task_of("align", strength=1.0)
    optimiser = torch.optim.SGD(task.adversaries.parameters(), lr=0.05)  # type: ignore[union-attr]

    def losses() -> dict[str, float]:
        torch.manual_seed(1)
        return {name: float(value.detach()) for name, value in task(batch).items()}

    before = losses()
    for _ in range(5):
        gradients(task, batch)
        optimiser.step()
    after = losses()
    assert after["loss_tell_source"] < before["loss_tell_source"]
    assert after["loss_tell_target"] < before["loss_tell_target"]
    assert after["loss_estimator"] < before["loss_estimator"]


def test_weighting() -> None:
    batch = batch_of()
    task = task_of("align")
    found = task.detector.best_regions(batch["target_images"])
    clusters = task.clusters(found, 3)
    assert clusters.features.shape == (2, 4, 4, task.detector.width)
    w = task.weights(clusters.features)
    assert w.shape == (2, 4)
    assert ((w > 0) & (w < 1)).all()
    assert not w.requires_grad
    assert (task_of("align", weighting=False).weights(clusters.features) == 1).all()


def test_the_moving_mean_is_updated() -> None:
    task = task_of("source+aug")
    assert task.kept is task.mean
    assert task_of("source").kept is not None
    before = [p.clone() for p in task.mean.parameters()]  # type: ignore[union-attr]
    with torch.no_grad():
        for p in task.detector.parameters():
            p.add_(1)
    task.update_mean(1)  # decay 1/10 in the first step, 0.99 in the end
    for mean, old in zip(task.mean.parameters(), before, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(mean, old + 0.9)
    task.update_mean(10_000)
    for mean, old in zip(task.mean.parameters(), before, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(mean, old + 0.9 + 0.1 * 0.01)
    assert not any(p.requires_grad for p in task.mean.parameters())  # type: ignore[union-attr]


def test_an_arm_that_distils_goes_on_from_the_mean_after_the_burn_in() -> None:
    for arm, continues in (("aldi", True), ("mean-teacher", False)):
        task = task_of(arm)  # type: ignore[arg-type]
        with torch.no_grad():
            for p in task.detector.parameters():
                p.add_(1)
        pairs = list(zip(task.detector.parameters(), task.mean.parameters(), strict=True))  # type: ignore[union-attr]
        task.update_mean(2, begin=3)
        assert not any(torch.equal(current, mean) for current, mean in pairs)
        task.update_mean(3, begin=3)
        assert all(torch.equal(current, mean) for current, mean in pairs) == continues
        assert all(p.requires_grad for p in task.detector.parameters())


def test_distillation_counts_from_the_burn_in_on() -> None:
    plain = gradients(task_of("source+aug"), batch_of())
    not_yet = gradients(task_of("aldi"), batch_of(active=0.0))
    assert all(torch.equal(not_yet[name], plain[name]) for name in plain)
    torch.manual_seed(1)
    losses = task_of("aldi")(batch_of())
    distilled = [float(value) for name, value in losses.items() if name.startswith("loss_distilled_")]
    assert len(distilled) == 4
    assert sum(distilled) > 0.1


def test_pseudo_labels_need_a_confident_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("mean-teacher")
    confident = {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.9])}
    unsure = confident | {"scores": torch.tensor([0.3])}
    predicted = {"now": [unsure, unsure]}
    monkeypatch.setattr(task.mean, "forward", lambda images: predicted["now"])

    def pseudo(active: float = 1.0) -> float:
        torch.manual_seed(1)
        return float(task(batch_of(active=active))["loss_pseudo"])

    assert pseudo() == 0
    predicted["now"] = [unsure, confident]
    assert pseudo() > 0.1
    assert pseudo(active=0.0) == 0


def test_strong_views_keep_the_form_and_follow_the_seed() -> None:
    images = batch_of()["images"]
    torch.manual_seed(3)
    one = strong_views(images)
    torch.manual_seed(3)
    assert torch.equal(one, strong_views(images))
    assert one.dtype == torch.uint8
    assert one.shape == images.shape
    assert not torch.equal(one, images)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"strength": -1}, {"clusters": 0}):
        with pytest.raises(InputError, match="align"):
            AlignConfig(**wrong)  # type: ignore[arg-type]


def train_on_rank(rank: int, arm: Arm) -> list[torch.Tensor]:
    """Two steps of a rank that has other images and another number of boxes than its neighbour."""
    torch.set_num_threads(1)
    task = task_of(arm)
    parts: list[Any] = [task.detector] if task.adversaries is None else [task.detector, task.adversaries]
    optimisers = [torch.optim.AdamW(p.parameters(), 1e-3) for p in parts]
    model = DistributedDataParallel(task)
    for step in range(2):
        batch = batch_of(seed=rank)
        if rank:
            batch |= {"boxes": batch["boxes"][:0], "classes": batch["classes"][:0], "counts": torch.tensor([0, 0])}
        torch.manual_seed(10 * step + rank)
        loss = model(batch)["loss"]
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        task.update_mean(step + 1)
    return [p.detach() for p in task.parameters()]


@pytest.mark.parametrize("arm", ["align+aug", "da-faster", "mean-teacher", "aldi"])
def test_ranks_stay_equal(arm: Arm) -> None:
    one, other = on_ranks(2, train_on_rank, arm)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    fresh = list(task_of(arm).parameters())
    assert any(not torch.equal(a, b) for a, b in zip(one, fresh, strict=True))
