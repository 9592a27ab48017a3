"""The face model: the decoupling part disturbs nothing, frozen parts stay, ranks train as one."""

import copy
import math

import pytest
import torch
from ranks import on_ranks

from trainers.tasks.attributes.decouplers import DECOUPLERS, AttentionMasks, CrossStitch
from trainers.tasks.attributes.losses import TASKS
from trainers.tasks.attributes.model import COUPLED, Attributes, AttributesTask, FaceModelConfig
from trainers.tasks.backbones import build_level_backbone

ALL = tuple(TASKS)
EVEN = dict.fromkeys(ALL, 1.0)
CONFIG = FaceModelConfig(width=8)


def model(tasks: tuple[str, ...] = ALL, *, single: bool = False, backbone: str = "hardshard_small_v2") -> Attributes:
    torch.manual_seed(0)
    return Attributes(FaceModelConfig(backbone=backbone, width=8), tasks, single=single)


def batch(count: int, tasks: tuple[str, ...] = ALL, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    columns = sum(len(TASKS[task].columns) for task in tasks)
    targets = torch.rand(count, columns, generator=rng).round()
    targets[torch.rand(count, columns, generator=rng) < 0.4] = float("nan")
    return {"images": torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng), "targets": targets}


@pytest.mark.parametrize("kind", DECOUPLERS)
@pytest.mark.parametrize("backbone", ["hardshard_small_v2", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_decoupling_part_changes_no_output_when_it_comes(backbone: str, kind: str) -> None:
    faces, images = model(backbone=backbone).eval(), batch(3)["images"]
    before = faces(images)
    faces.insert_decoupler(kind)
    faces.eval()
    assert torch.equal(faces(images), before)
    faces.insert_decoupler(kind)  # once is enough
    assert torch.equal(faces(images), before)


@pytest.mark.parametrize("channels", [(32, 96, 1280), (64, 128, 256)])
def test_decoupling_parts_of_a_width_have_about_as_many_weights(channels: tuple[int, ...]) -> None:
    sizes = [sum(p.numel() for p in part(channels, (*COUPLED, "pose"), 64).parameters()) for part in DECOUPLERS.values()]
    assert max(sizes) < 1.4 * min(sizes)


@pytest.mark.parametrize("kind", DECOUPLERS)
def test_the_decoupling_part_learns_and_then_speaks(kind: str) -> None:
    faces = model()
    faces.insert_decoupler(kind)
    task = AttributesTask(faces)
    task.enter(EVEN)
    optimiser = torch.optim.SGD(task.parameters(), 0.01)
    before = faces.raw(batch(4)["images"])
    for step in range(2):  # the first step moves the zeros alone
        optimiser.zero_grad()
        task(batch(4, seed=step))["loss"].backward()
        if step:
            part = faces.nets["all"].decoupler
            assert all(p.grad is not None and p.grad.any() for n, p in part.named_parameters() if n != "keys.bias")
        optimiser.step()
    after = faces.raw(batch(4)["images"])
    assert not torch.equal(before["age"], after["age"])


def test_levels_of_a_backbone() -> None:
    backbone, features, channels = build_level_backbone("resnet18")
    found = backbone(torch.zeros(2, 3, 64, 64))
    assert (features, channels) == (512, [128, 256, 512])
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "0": (2, 128, 8, 8), "1": (2, 256, 4, 4), "2": (2, 512, 2, 2), "pooled": (2, 512)
    }  # fmt: skip


def test_the_outputs_are_labels_in_order() -> None:
    faces = model(("gender", "age", "pose")).eval()
    out = faces(batch(5)["images"])
    assert faces.columns == ("gender", "age", "yaw", "pitch", "roll")
    assert out.shape == (5, 5)
    assert ((out[:, 0] > 0) & (out[:, 0] < 1)).all()
    assert out[:, 1].mean().item() == pytest.approx(35, abs=20)


def test_single_trains_each_net_as_if_alone() -> None:
    """Two nets under one loss move as each would by itself."""
    tasks = ("gender", "age")
    both = AttributesTask(model(tasks, single=True))
    alone = AttributesTask(copy.deepcopy(both.model))
    together, data = torch.optim.SGD(both.parameters(), 0.1), batch(6, tasks)
    both.enter(EVEN)
    both(data)["loss"].backward()
    together.step()
    alone.enter({"age": 1.0})
    optimiser = torch.optim.SGD(alone.parameters(), 0.1)
    alone(data)["loss"].backward()
    optimiser.step()
    for a, b in zip(both.model.nets["age"].parameters(), alone.model.nets["age"].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_single_trains_each_net_on_the_images_with_its_label() -> None:
    """Batch norm's statistics are those of these images alone, as of a model that never saw others."""
    task, data = AttributesTask(model(("gender", "mask"), single=True)), batch(6, ("gender", "mask"))
    data["targets"][:4, 1] = float("nan")
    data["targets"][4:, 1] = 1.0
    alone = copy.deepcopy(task.model.nets["mask"]).train()
    task.enter({"gender": 1.0, "mask": 1.0})
    task(data)
    alone(data["images"][4:])
    for name, buffer in task.model.nets["mask"].named_buffers():
        torch.testing.assert_close(buffer, alone.get_buffer(name))
    data["targets"][4:, 1] = float("nan")
    assert task(data)["loss_mask"] == 0  # batch norm gets two images even so


def test_learned_weights_are_those_of_the_formula_and_reach_its_minimum() -> None:
    """At the minimum over s, exp(s) is 2 L for a class and L for a regression: the derivative of the formula is zero there."""
    task = AttributesTask(model(("gender", "age", "pose")), uncertainty=True)
    task.enter({"gender": 1.0, "age": 1.0})
    assert {name for name, p in task.log_variances.items() if p.requires_grad} == {"gender", "age"}
    optimiser = torch.optim.Adam([p for p in task.log_variances.values() if p.requires_grad], 0.05)
    losses = {"gender": torch.tensor(0.3), "age": torch.tensor(0.05)}
    for _ in range(600):
        optimiser.zero_grad()
        sum(task.weighed(name, loss) for name, loss in losses.items()).backward()  # type: ignore[union-attr]
        optimiser.step()
    assert task.log_variances["gender"].exp().item() == pytest.approx(2 * 0.3, rel=1e-2)
    assert task.log_variances["age"].exp().item() == pytest.approx(0.05, rel=1e-2)
    results = task(batch(4, ("gender", "age", "pose")))
    s = {name: p.item() for name, p in task.log_variances.items()}
    by_hand = math.exp(-s["gender"]) * results["loss_gender"] + math.exp(-s["age"]) * results["loss_age"] / 2
    assert results["loss"].item() == pytest.approx(by_hand.item() + (s["gender"] + s["age"]) / 2, rel=1e-5)


def test_a_cross_stitch_begins_with_nine_tenths_of_a_tasks_own_features() -> None:
    part = CrossStitch((8,), ("age", "pose"), 8)
    assert part.stitches[0].tolist() == [[pytest.approx(0.9), pytest.approx(0.1)], [pytest.approx(0.1), pytest.approx(0.9)]]


def test_a_masks_features_of_a_level_depend_on_what_passed_the_level_before() -> None:
    """By hand: two levels, the masks as convolutions over each task's channels."""
    torch.manual_seed(0)
    part = AttentionMasks((3, 5), ("age", "pose"), 8).eval()
    levels, own = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)], 5
    seen: list[torch.Tensor] = []
    part.centre.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].unflatten(1, (2, -1))))
    part(levels)
    for task in range(2):
        passed, expected = torch.empty(0), []
        for level, tensor in enumerate(levels):
            shared = part.project[level](tensor)
            entering = shared if not level else torch.cat([shared, torch.nn.functional.avg_pool2d(passed, 2)], dim=1)
            convolution, norm = part.masks[level][0], part.masks[level][1]
            rows = slice(task * own, (task + 1) * own)
            raw = torch.nn.functional.conv2d(entering, convolution.weight[rows], convolution.bias[rows])
            passed = shared * torch.sigmoid(raw / (1 + norm.eps) ** 0.5)  # an untrained batch norm, in evaluation
            expected.append(passed.mean(dim=(2, 3)))
        torch.testing.assert_close(seen[0][:, task], torch.cat(expected, dim=1))


def trained(task: AttributesTask, steps: int = 3) -> set[str]:
    """Names of what training changed, batch norm's statistics among them."""
    before = copy.deepcopy(task.state_dict())
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.1)
    task.train()
    for step in range(steps):
        optimiser.zero_grad()
        task(batch(4, seed=step))["loss"].backward()
        optimiser.step()
    return {name for name, tensor in task.state_dict().items() if not torch.equal(tensor, before[name])}


def test_only_the_stages_tasks_and_nothing_frozen_is_trained() -> None:
    faces = model()
    faces.insert_decoupler()
    task = AttributesTask(faces)
    task.enter({"gender": 1.0, "age": 1.0}, ("gender",))
    changed = trained(task)
    assert {name.split(".")[4] for name in changed if ".heads." in name} == {"age"}
    assert {name.split(".")[5] for name in changed if ".corrections." in name} == {"age"}
    assert any(".backbone." in name for name in changed)
    task.enter({"gender": 1.0}, ("backbone",))
    assert {name.split(".")[3] for name in trained(task)} == {"heads"}
    task.enter(EVEN)
    assert {name.split(".")[4] for name in trained(task) if ".heads." in name} == set(ALL)


def test_a_batch_without_a_tasks_labels_adds_nothing_to_it() -> None:
    task, data = AttributesTask(model()), batch(4)
    task.enter({"mask": 1.0, "age": 2.0})
    data["targets"][:, task.model.columns.index("mask")] = float("nan")
    results = task(data)
    assert results["loss_mask"] == 0
    assert results["loss"].item() == pytest.approx(2 * results["loss_age"].item())
    results["loss"].backward()
    assert not task.model.nets["all"].heads["mask"].weight.grad.any()


def gradient_on(rank: int, world: int) -> dict[str, torch.Tensor]:
    """The mean over ranks of each rank's gradient, as DDP takes it, of a batch whose labels lie unevenly."""
    task = AttributesTask(model().eval(), torch.distributed.group.WORLD if world > 1 else None)
    task.enter(EVEN)
    task.model.eval()  # batch norm's statistics are each rank's own
    whole = batch(8)
    whole["targets"][:5] = float("nan")
    mine = {name: tensor[rank * 8 // world : (rank + 1) * 8 // world] for name, tensor in whole.items()}
    task(mine)["loss"].backward()
    gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        if world > 1:
            torch.distributed.all_reduce(gradient)
            gradient /= world
    return gradients


def test_ranks_train_as_one_however_the_labels_fall() -> None:
    alone = gradient_on(0, 1)
    for found in on_ranks(2, gradient_on, 2):
        assert found.keys() == alone.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
