"""Batch norm over ranks against torch's own over the whole batch: layer by layer, in training, and on another number of ranks."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.batch_norm import SyncBatchNorm, TorchsSyncBatchNormAct, convert, synchronise_batch_norm
from trainers.engine.checkpoint import read_state, write_state
from trainers.engine.distributed import distribute
from trainers.engine.loop import Batch, Meter, steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.tasks.attributes.model import Attributes, AttributesTask, FaceModelConfig
from trainers.tasks.backbones import build_backbone
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.model import Embedder, ModelConfig, ReidTask

Group = dist.ProcessGroup | None
# The layer, the shape of the whole batch, how many of its samples the first rank has, and an offset of its values.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int, float]] = {
    "1d": (nn.BatchNorm1d(3), (8, 3), 4, 0), "1d over time": (nn.BatchNorm1d(3, eps=1e-2), (8, 3, 5), 4, 0),
    "2d": (nn.BatchNorm2d(4), (8, 4, 5, 6), 4, 0), "3d": (nn.BatchNorm3d(2, momentum=0.01), (4, 2, 3, 5, 6), 2, 0),
    "uneven": (nn.BatchNorm2d(4), (8, 4, 5, 6), 1, 0), "one sample each": (nn.BatchNorm1d(4), (2, 4), 1, 0),
    "mean of all": (nn.BatchNorm1d(3, momentum=None), (8, 3), 4, 0),
    "plain": (nn.BatchNorm2d(3, affine=False), (6, 3, 2, 2), 3, 0),
    "no statistics": (nn.BatchNorm2d(3, track_running_stats=False), (6, 3, 2, 2), 3, 0),
    "timm's": (BatchNormAct2d(4, act_layer=nn.Hardswish), (8, 4, 5, 6), 4, 0),
    "timm's without activation": (BatchNormAct2d(4, apply_act=False), (8, 4, 5, 6), 4, 0),
    "far from zero": (nn.BatchNorm2d(3), (8, 3, 16, 16), 4, 1e4),
}  # fmt: skip
FORMS = ("float64", "float32", "channels last")


def passed(name: str, form: str, group: Group, *, alone: bool = False) -> dict[str, Tensor]:
    """Two steps of a layer in training and one in eval mode: outputs, gradients (of weights the sum over ranks), buffers.

    Without a group torch's own layer; ``alone``: ours, on one rank.
    """
    made, shape, first, offset = LAYERS[name]
    dtype = torch.float64 if form == "float64" else torch.float32
    layer, generator = copy.deepcopy(made).to(dtype), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2, generator=generator)
    scale = torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    inputs, slopes = (torch.randn(3, *shape, generator=generator, dtype=dtype) * scale for _ in range(2))
    mine = slice(None)
    if group is not None:
        mine = slice(0, first) if dist.get_rank(group) == 0 else slice(first, None)
    if group is not None or alone:
        synchronise_batch_norm(layer, group)
    found: dict[str, Tensor] = {}
    for step in range(3 if made.track_running_stats else 2):  # without statistics eval mode goes by each rank's batch
        layer.train(step < 2)
        x = inputs[step, mine] + offset
        x = x.to(memory_format=torch.channels_last) if form == "channels last" else x
        layer.zero_grad()
        y = layer(x.requires_grad_())
        (y * slopes[step, mine]).sum().backward()
        assert x.grad is not None
        found |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None
            found[f"{key}{step}"] = parameter.grad
            if group is not None:
                dist.all_reduce(parameter.grad, group=group)
        found |= {f"{key}{step}": value.clone() for key, value in layer.state_dict().items()}
    return found


CASES = [(name, form) for name, (_, shape, *_) in LAYERS.items() for form in FORMS if form != "channels last" or len(shape) == 4]


def check_conversion(group: Group) -> None:
    """Names, modes and what is evaluated stay as they are when a task is spread over ranks, once or stage after stage."""
    task, faces = task_of(group), AttributesTask(Attributes(FaceModelConfig(width=8), ("age", "pose"), single=False), group)
    faces.model.insert_decoupler()
    faces.enter({"age": 1.0}, freeze=["backbone"])
    before = [list(task.state_dict()), list(faces.state_dict())]
    held = [module for module in faces.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    distribute(task, group, sync_batch_norm=True)
    distribute(faces, group, sync_batch_norm=True)
    assert [list(task.state_dict()), list(faces.state_dict())] == before
    assert all(isinstance(module, SyncBatchNorm) for module in held)
    trained = [module.training for module in held]
    distribute(faces, group, sync_batch_norm=True)  # as the next stage does
    assert [module.training for module in held] == trained
    assert not all(trained)  # a frozen backbone stays so
    assert any(trained)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = Embedder(ModelConfig(embedding=16))
    plain.load_state_dict(task.embedder.state_dict())
    assert torch.equal(plain.eval()(images), task.embedder.eval()(images))


class Doubled(nn.BatchNorm2d):
    """A user's batch norm that computes something more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def check_refusal(group: Group) -> None:
    """A batch norm of the user's own is not replaced by one that computes less: left as it is on one rank, refused on several."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Doubled(4))
    if group is None:
        synchronise_batch_norm(model, group)
        assert type(model[1]) is Doubled
    else:
        with pytest.raises(InputError, match=r"the batch norm '1' of the model is a Doubled.*no-sync-batch-norm"):
            synchronise_batch_norm(model, group)


def on_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    """What a rank finds: of every layer; "own": by training without batch norm over all ranks."""
    check_conversion(dist.group.WORLD)
    check_refusal(dist.group.WORLD)
    found = {f"{name}, {form}": passed(name, form, dist.group.WORLD) for name, form in CASES}
    return found | {"own": train(dist.group.WORLD, 6, sync=False)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    return on_ranks(2, on_rank)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_layer_is_torchs_own_over_the_whole_batch(name: str, form: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    """Outputs and gradients, running statistics and the count of batches; in eval mode too."""
    whole, (one, other) = passed(name, form, None), (rank[f"{name}, {form}"] for rank in ranks)
    assert one.keys() == other.keys() == whole.keys()
    near = {"rtol": 1e-9, "atol": 1e-9} if form == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    near = (
        near if not LAYERS[name][3] else {"rtol": 1e-3, "atol": 1e-5 if form == "float64" else 2e-2}
    )  # digits that x itself lacks
    single = passed(name, form, None, alone=True)
    for key, expected in whole.items():
        if key[:-1] in ("y", "dx"):
            found = torch.cat([one[key], other[key]])
        else:
            found = one[key]
            assert torch.equal(found, other[key]), key
        for ours in (found, single[key]):
            torch.testing.assert_close(ours, expected, **near, msg=lambda message, key=key: f"{key}: {message}")


def test_a_users_own_batch_norm_is_left_as_it_is_on_one_rank() -> None:
    check_refusal(None)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "efficientnet_lite0", "regnetx_002", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("twice", [False, True])  # as in stages of a run
def test_a_model_of_timm_computes_the_same_after_the_conversion(name: str, twice: bool) -> None:
    torch.manual_seed(0)
    size = (224, 224) if "vit" in name else (64, 32)
    plain, _ = build_backbone(f"timm/{name}", size=size)
    converted, images = copy.deepcopy(plain), torch.randn(4, 3, *size)
    for _ in range(1 + twice):
        synchronise_batch_norm(converted, None)
    for mode in (True, False):
        torch.testing.assert_close(converted.train(mode)(images), plain.train(mode)(images), rtol=1e-3, atol=1e-3)
    on_gpus = copy.deepcopy(plain)  # where torch's own is used; without several ranks it runs here, too
    convert(on_gpus, None, nn.SyncBatchNorm, TorchsSyncBatchNormAct)
    assert torch.equal(on_gpus(images), plain(images))
    for (key, ours), (_, theirs) in zip(converted.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=lambda message, key=key: f"{key}: {message}")


def test_even_backgrounds_do_not_add_up_to_an_error() -> None:
    """As on scanned characters; float32 values summed one after another are off by a thousandth here."""
    generator = torch.Generator().manual_seed(0)
    ink = (torch.rand(64, 4, 32, 32, generator=generator) < 0.1) * torch.rand(64, 4, 32, 32, generator=generator)
    x, layer = (ink + 3.3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4)
    expected = copy.deepcopy(layer).double()(x.double())
    synchronise_batch_norm(layer, None)
    assert (layer(x) - expected).abs().max() < 1e-4


def test_one_value_of_a_channel_is_refused() -> None:
    layer = nn.BatchNorm1d(3)
    synchronise_batch_norm(layer, None)
    with pytest.raises(ValueError, match="more than one value"):
        layer(torch.ones(1, 3))
    assert layer.eval()(torch.ones(1, 3)).isfinite().all()


def task_of(group: Group) -> ReidTask:
    torch.manual_seed(0)
    return ReidTask(ModelConfig(embedding=16), HeadConfig(), 6, group, PairConfig("triplet", weight=0.5))


def batches(first: int, last: int, rank: int, world: int) -> Iterator[Batch]:
    """A rank's parts of the batches of steps: of the first samples and the last ones the pictures are of unlike brightness."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(256, (12, 3, 32, 32), generator=generator) * torch.linspace(0.3, 1, 12)[:, None, None, None]
        labels = torch.randint(6, (12,), generator=generator)
        mine = slice(rank * 12 // world, (rank + 1) * 12 // world)
        yield {"images": images.to(torch.uint8)[mine], "labels": labels[mine], "step": step}


def train(group: Group, last: int, folder: str = "", *, sync: bool = True) -> dict[str, Tensor]:
    """Train to a step, from a checkpoint's where there is one: the losses, what was learned; rank 0 leaves a checkpoint."""
    torch.set_num_threads(1)
    task, config, done = task_of(group), OptimConfig(steps=20, warmup=3, lr=1e-3, kind="sgd"), 0
    optimiser, rank, world = build_optimiser(config, task), dist.get_rank(group) if group else 0, group.size() if group else 1
    if folder and (Path(folder) / "state.pt").exists():
        state = read_state(Path(folder) / "state.pt")
        task.load_state_dict(state["task"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["done"]
    model, meter, losses = distribute(task, group, sync_batch_norm=sync, alone=task.alone), Meter(group), []
    for step in steps(model, optimiser, config, batches(done, last, rank, world), torch.device("cpu"), 0, rank):
        meter.add(step)
        losses.append(meter.read(12)["loss"])
    if folder and rank == 0:
        write_state(Path(folder) / "state.pt", {"task": task.state_dict(), "optimiser": optimiser.state_dict(), "done": last})
    return {"losses": torch.tensor(losses)} | task.state_dict()


def train_on(rank: int, last: int, folder: str) -> dict[str, Tensor]:
    return train(dist.group.WORLD, last, folder)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 3)])
def test_a_run_goes_on_with_another_number_of_workers(worlds: tuple[int, int], tmp_path: Path) -> None:
    """Its losses, weights and statistics are those of one worker to the end, within rounding."""
    whole, found = train(None, 12), []
    for world, last in zip(worlds, (6, 12), strict=True):
        ranks = [train(None, last, str(tmp_path))] if world == 1 else on_ranks(world, train_on, last, str(tmp_path))
        for one in ranks[1:]:
            assert all(torch.equal(one[name], value) for name, value in ranks[0].items())  # statistics among them
        found.append(ranks[0])
    losses = torch.cat([part["losses"] for part in found])
    torch.testing.assert_close(losses, whole.pop("losses"), rtol=0, atol=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(found[-1][name], value, rtol=1e-3, atol=1e-4)


def test_without_it_the_number_of_workers_is_in_the_result(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    """What the option is for, and that these tests would tell."""
    whole, (one, other) = train(None, 6), (rank["own"] for rank in ranks)
    assert (one["losses"] - whole["losses"]).abs().max() > 0.01
    assert not torch.equal(one["embedder.neck.running_mean"], other["embedder.neck.running_mean"])
