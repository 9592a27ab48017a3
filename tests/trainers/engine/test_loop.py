"""The training loop: a function of the batches' steps, so that a resumed run goes on as if it had not stopped."""

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from trainers.engine.distributed import distribute
from trainers.engine.loop import Batch, Meter, Step, steps
from trainers.engine.optim import OptimConfig, build_optimiser, finish_gradients, moving_average

CPU = torch.device("cpu")


class Toy(nn.Module):
    """A line to fit, behind dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.line, self.dropout = nn.Linear(8, 1), nn.Dropout(dropout)
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = self.line(self.dropout(batch["x"])).squeeze(1) - batch["y"]
        return {"loss": error.square().mean(), "largest": error.detach().abs().max()}


def batch(step: int) -> Batch:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x @ torch.arange(8.0), "step": step, "bad": []}


def train(
    config: OptimConfig, task: nn.Module, first: int, last: int, optimiser: torch.optim.Optimizer | None = None
) -> list[Step]:
    optimiser = optimiser or build_optimiser(config, task)
    return list(steps(task, optimiser, config, map(batch, range(first, last)), CPU, seed=3))


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (8, 4, [0.25, 0.5, 0.75, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0]),
        (4, 0, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
        (2, 4, [0.25, 0.5]),
        (4, 4, [0.25, 0.5, 0.75, 1]),
        (1, 0, [1]),
    ],
)
def test_learning_rate(steps: int, warmup: int, expected: list[float]) -> None:
    config = OptimConfig(steps=steps, warmup=warmup, lr=2.0)
    assert [config.lr_at(step) for step in range(len(expected))] == pytest.approx([2 * value for value in expected])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_loss_falls_and_steps_tell_what_they_did(kind: str) -> None:
    config = OptimConfig(steps=200, warmup=5, lr=0.05 if kind == "sgd" else 0.3, weight_decay=0)
    config = replace(config, kind=kind)
    done = train(config, Toy(), 0, 200)
    assert [step.done for step in done] == list(range(1, 201))
    assert done[-1].results["loss"] < done[0].results["loss"] / 100
    for step in done:
        assert set(step.results) == {"loss", "largest"}
        assert not step.results["loss"].requires_grad
        assert 0 <= step.waited <= step.took
        assert step.batch["step"] == step.done - 1


def test_the_learning_rate_of_the_step_is_used() -> None:
    config = OptimConfig(kind="sgd", steps=10, warmup=4, lr=0.1)
    task = Toy()
    optimiser = build_optimiser(config, task)
    for step in steps(task, optimiser, config, map(batch, range(10)), CPU, 0):
        assert optimiser.param_groups[0]["lr"] == config.lr_at(step.done - 1)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(kind: str) -> None:
    config = replace(OptimConfig(steps=12, warmup=3), kind=kind)
    whole, first, second = Toy(0.5), Toy(0.5), Toy(0.5)
    train(config, whole, 0, 12)
    optimiser = build_optimiser(config, first)
    train(config, first, 0, 7, optimiser)
    second.load_state_dict(first.state_dict())
    resumed = build_optimiser(config, second)
    resumed.load_state_dict(optimiser.state_dict())
    torch.rand(5)  # the global generator stands elsewhere
    train(config, second, 7, 12, resumed)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropout_differs_between_steps_and_seeds() -> None:
    config = OptimConfig(kind="sgd", lr=1e-12)
    task, optimiser = Toy(0.5), build_optimiser(config, Toy())

    def loss(step: int, seed: int) -> float:
        (done,) = steps(task, optimiser, config, [{**batch(0), "step": step}], CPU, seed)
        return float(done.results["loss"])

    assert loss(4, 0) == loss(4, 0)
    assert len({loss(4, 0), loss(5, 0), loss(4, 1)}) == 3


def test_training_mode_is_on_and_frozen_weights_stay() -> None:
    task = Toy()
    task.line.bias.requires_grad_(False)
    task.eval()
    train(OptimConfig(warmup=0, weight_decay=0.1), task, 0, 3)
    assert task.training
    assert task.line.bias.item() == 0
    assert not torch.equal(task.line.weight, torch.ones(1, 8))


def step(done: int, loss: float, waited: float = 0.1, took: float = 0.5) -> Step:
    return Step(done, {"images": torch.zeros(1)}, {"loss": torch.tensor(loss), "accuracy": torch.tensor(done / 10)}, waited, took)


def test_meter_reads_means_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.engine.loop.time.perf_counter", lambda: 0.0)  # reading takes time too
    meter = Meter()
    meter.add(step(1, 2.0))
    meter.add(step(2, 4.0, waited=0.2))
    means = meter.read(samples=64)
    assert means == pytest.approx(
        {
            "loss": 3, "accuracy": 0.15, "samples_per_s": 128, "wait": 0.3, "step_s": 0.5, "wait_s": 0.15, "compute_s": 0.35,
        }
    )  # fmt: skip
    meter.add(step(3, 1.0))
    assert meter.read(64)["loss"] == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(loss: float) -> None:
    meter = Meter()
    meter.add(step(7, 1.0))
    meter.add(step(8, loss))
    with pytest.raises(InputError, match=r"training has diverged: steps 7-8; lower --optim\.lr"):
        meter.read(64)


def test_meter_does_not_keep_pixels() -> None:
    meter, images = Meter(), torch.zeros(4)
    watched = weakref.ref(images)
    meter.add(Step(1, {"images": images}, {"loss": torch.tensor(1.0)}, 0.1, 0.5))
    del images
    assert watched() is None


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"warmup": -1}, {"weight_decay": -1e-3}, {"lr": 0}, {"lr": math.inf}, {"lr": math.nan}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="optim"):
        OptimConfig(**options)  # type: ignore[arg-type]


def test_optimisers_side_by_side_each_follow_their_own_config() -> None:
    """The weight by one, the bias by another: as one optimiser of two groups, whose rates are set by hand, does it."""
    fast, slow = (OptimConfig(steps=20, warmup=2, lr=lr, kind="sgd", weight_decay=0) for lr in (0.05, 0.01))
    task = Toy()
    first, second = (
        torch.optim.SGD([parameter], 1.0, momentum=0.9, nesterov=True) for parameter in (task.line.weight, task.line.bias)
    )
    done = list(steps(task, first, fast, map(batch, range(20)), CPU, seed=3, beside=[(second, slow)]))
    assert len(done) == 20
    assert first.param_groups[0]["lr"] == pytest.approx(fast.lr_at(19))
    assert second.param_groups[0]["lr"] == pytest.approx(slow.lr_at(19))
    one = Toy()
    groups = torch.optim.SGD([{"params": [one.line.weight]}, {"params": [one.line.bias]}], 1.0, momentum=0.9, nesterov=True)
    for step in range(20):
        for group, config in zip(groups.param_groups, (fast, slow), strict=True):
            group["lr"] = config.lr_at(step)
        groups.zero_grad()
        one(batch(step))["loss"].backward()
        groups.step()
    torch.testing.assert_close(task.state_dict(), one.state_dict())


class WithBackbone(nn.Module):
    """A backbone with a layer above it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.top = nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.top(self.backbone(batch["x"])).squeeze(1) - batch["y"]).square().mean()}


def copies(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(now, was) for now, was in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_frozen_backbone_begins_to_learn_after_its_steps(kind: Any) -> None:
    config, task = OptimConfig(kind=kind, steps=6, warmup=0, lr=0.01, weight_decay=0.1, freeze=3), WithBackbone()
    before, learnt = copies(task.backbone), []
    optimiser = build_optimiser(config, task)
    for _ in steps(task, optimiser, config, map(batch, range(6)), CPU, 0):
        learnt.append(any(moved(task.backbone, before)))
        assert all(moved(task.top, before=[torch.zeros(())] * 2))
    assert learnt == [False, False, False, True, True, True]


def test_freezing_counts_from_the_stages_first_step() -> None:
    config, task = OptimConfig(steps=9, warmup=0, lr=0.01, freeze=2), WithBackbone()
    before, learnt = copies(task.backbone), []
    for _ in steps(task, build_optimiser(config, task), config, map(batch, range(5, 9)), CPU, 0, first=5):
        learnt.append(any(moved(task.backbone, before)))
    assert learnt == [False, False, True, True]


def test_the_backbone_has_its_own_learning_rate() -> None:
    config, task = OptimConfig(kind="sgd", steps=4, warmup=2, lr=0.02, backbone_lr=0.1, weight_decay=0), WithBackbone()
    plain, twin = replace(config, backbone_lr=1.0), WithBackbone()
    before = copies(task.backbone), copies(task.top)
    list(steps(task, build_optimiser(config, task), config, [batch(0)], CPU, 0))
    list(steps(twin, build_optimiser(plain, twin), plain, [batch(0)], CPU, 0))
    for module, other, was, factor in ((task.backbone, twin.backbone, before[0], 0.1), (task.top, twin.top, before[1], 1.0)):
        for now, plainly, first in zip(copies(module), copies(other), was, strict=True):
            torch.testing.assert_close(now - first, factor * (plainly - first), rtol=1e-3, atol=1e-6)


def test_a_rate_of_its_own_needs_a_backbone() -> None:
    for how in ({"freeze": 2}, {"backbone_lr": 0.5}):
        with pytest.raises(InputError, match="has no backbone"):
            build_optimiser(OptimConfig(**how), Toy())  # type: ignore[arg-type]


def test_long_gradients_are_shortened_and_short_ones_are_not() -> None:
    config, task = OptimConfig(kind="sgd", lr=0.1, clip=0.5), WithBackbone()
    for scale, expected in ((1.0, 0.5), (1e-4, None)):
        for parameter in task.parameters():
            parameter.grad = scale * torch.ones_like(parameter)
        was = math.sqrt(sum(parameter.numel() for parameter in task.parameters())) * scale
        finish_gradients(task, config, 0)
        found = math.sqrt(
            sum(float(parameter.grad.square().sum()) for parameter in task.parameters() if parameter.grad is not None)
        )
        assert found == pytest.approx(expected or was, rel=1e-4)


def clipped_on(rank: int) -> list[float]:
    """Row gradients that this rank alone holds, and one that both share."""
    task = nn.Module()
    task.rows, task.shared = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    task.rows.grad, task.shared.grad = torch.full((2,), 2.0 + rank), torch.tensor([1.0])  # squares: 8 or 18, and 1
    finish_gradients(task, OptimConfig(clip=1.0), 0, ["rows"], dist.group.WORLD)
    return [*task.rows.grad.tolist(), *task.shared.grad.tolist()]


def test_the_norm_counts_the_rows_of_all_ranks() -> None:
    norm = math.sqrt(8 + 18 + 1)
    for rank, found in enumerate(on_ranks(2, clipped_on)):
        assert found == pytest.approx([(2 + rank) / norm, (2 + rank) / norm, 1 / norm], rel=1e-4)


def on_parts(parts: int, group: dist.ProcessGroup | None, dropout: float = 0.0) -> tuple[Tensor, int]:
    """The weights after four clipped steps on this rank's samples, and how often the ranks exchanged gradients."""
    rank, world, exchanged = (dist.get_rank(group), dist.get_world_size(group), [0]) if group else (0, 1, [0])
    task = Toy(dropout)
    model = distribute(task, group, sync_batch_norm=False)
    if isinstance(model, DistributedDataParallel):

        def note(state: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            state[0] += 1
            return allreduce_hook(group, bucket)

        model.register_comm_hook(exchanged, note)
    config = OptimConfig(kind="sgd", steps=4, warmup=0, lr=0.05, clip=5.0, accumulate=parts)
    own = slice(rank * 16 // world, (rank + 1) * 16 // world)
    batches = ({**whole, "x": whole["x"][own], "y": whole["y"][own]} for whole in map(batch, range(4)))
    list(steps(model, build_optimiser(config, task), config, batches, CPU, 3, group=group))
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()]), exchanged[0]


def on_four_parts(rank: int) -> tuple[Tensor, int]:
    return on_parts(4, dist.group.WORLD)


def test_parts_of_a_batch_give_the_step_of_the_whole() -> None:
    """On one rank and on two, which exchange gradients once a step."""
    whole, _ = on_parts(1, None)
    for parts in (2, 16):
        torch.testing.assert_close(on_parts(parts, None)[0], whole)
    for found, exchanged in on_ranks(2, on_four_parts):
        torch.testing.assert_close(found, whole)
        assert exchanged == 4


def test_parts_drop_different_values_and_their_results_are_averaged() -> None:
    config, task = OptimConfig(kind="sgd", lr=1e-12, accumulate=4), Toy(0.5)
    same = {"x": torch.ones(16, 8), "y": torch.zeros(16), "step": 0}
    seen: list[Tensor] = []
    task.dropout.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    (done,) = steps(task, build_optimiser(config, task), config, [same], CPU, 0)
    assert [len(each) for each in seen] == [4] * 4
    assert not torch.equal(seen[0], seen[1])
    sums = torch.stack([each.sum(dim=1) for each in seen])  # the line's weights are ones
    torch.testing.assert_close(done.results["loss"], sums.square().mean())
    torch.testing.assert_close(done.results["largest"], sums.amax(dim=1).mean())


@pytest.mark.parametrize(("batch", "workers", "unit"), [(64, [3], 1), (64, [2], 12), (64, [4, 2, 16], 4), (2, [1], 1)])
def test_batches_that_do_not_divide_into_parts(batch: int, workers: list[int], unit: int) -> None:
    with pytest.raises(InputError, match=r"cannot be divided into 4 equal parts: optim\.accumulate; make them a multiple of"):
        OptimConfig(accumulate=4).check_parts(batch, workers, unit)
    OptimConfig().check_parts(batch, workers, unit)
    OptimConfig(accumulate=4).check_parts(64, [1, 2, 4], 4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"accumulate": 0}, "optim.accumulate is 0"),
        ({"freeze": -1}, "must not be negative"), ({"clip": -1.0}, "must not be negative"), ({"clip": math.nan}, "negative"),
        ({"backbone_lr": 0.0}, "optim.backbone_lr is 0.0"), ({"ema": 1.0}, "optim.ema is 1.0"), ({"ema": -0.1}, "ema is -0.1"),
    ],
)  # fmt: skip
def test_settings_out_of_range(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimConfig(**how)


def test_the_moving_average_follows_the_weights() -> None:
    task = WithBackbone()
    averaged = moving_average(task, 0.9)
    expected: list[Tensor] = []
    for step in range(4):
        with torch.no_grad():
            for parameter in task.parameters():
                parameter += step + 1
        averaged.update_parameters(task)
        now = copies(task)
        expected = [0.9 * e + 0.1 * n for e, n in zip(expected, now, strict=True)] if expected else now
    for found, wanted in zip(averaged.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted)
