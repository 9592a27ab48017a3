"""C3D, I3D, CNN + LSTM: shapes and sizes of the papers, inflation, and that models of the registry can be built and stepped."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from datasets.errors import InputError
from datasets.loading.clips import ClipConfig
from trainers.tasks.video.action_model import (
    TWO_CHANNELS,
    ActionModelConfig,
    Actions,
    ActionsTask,
    action_model_names,
    check_clips,
)
from trainers.tasks.video.c3d import C3D
from trainers.tasks.video.cnn2d import CNN2D, widen_first
from trainers.tasks.video.i3d import I3D, Pool, Unit, inflate, same_padding
from trainers.tasks.video.skeleton_cnn import SkeletonCNN


def shapes(stages: nn.Module, clips: Tensor) -> list[tuple[int, ...]]:
    """What comes out of each stage."""
    found = []
    for stage in stages.children():
        clips = stage(clips)
        found.append(tuple(clips.shape[1:]))
    return found


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_c3d_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        model = C3D(101)
        assert shapes(model.stages, torch.zeros(1, 3, 16, 112, 112)) == [
            (64, 16, 56, 56), (128, 8, 28, 28), (256, 4, 14, 14), (512, 2, 7, 7), (512, 1, 4, 4),
        ]  # fmt: skip
        assert model(torch.zeros(2, 3, 16, 112, 112)).shape == (2, 101)
    assert model.head[0].in_features == 8192  # type: ignore[union-attr]
    channels = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    layers = [(8192, 4096), (4096, 4096), (4096, 101)]
    assert parameters(model) == sum(27 * a * b + b for a, b in channels) + sum(a * b + b for a, b in layers) == 78_409_573


def test_i3d_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        model = I3D(400)
        assert shapes(model.stages, torch.zeros(1, 3, 64, 224, 224)) == [
            (64, 32, 112, 112), (64, 32, 56, 56), (64, 32, 56, 56), (192, 32, 56, 56), (192, 32, 28, 28),
            (256, 32, 28, 28), (480, 32, 28, 28), (480, 16, 14, 14),
            (512, 16, 14, 14), (512, 16, 14, 14), (512, 16, 14, 14), (528, 16, 14, 14), (832, 16, 14, 14), (832, 8, 7, 7),
            (832, 8, 7, 7), (1024, 8, 7, 7),
        ]  # fmt: skip
        assert model(torch.zeros(2, 3, 64, 224, 224)).shape == (2, 400)
    blocks = [
        (192, 64, 96, 128, 16, 32, 32), (256, 128, 128, 192, 32, 96, 64), (480, 192, 96, 208, 16, 48, 64),
        (512, 160, 112, 224, 24, 64, 64), (512, 128, 128, 256, 24, 64, 64), (512, 112, 144, 288, 32, 64, 64),
        (528, 256, 160, 320, 32, 128, 128), (832, 256, 160, 320, 32, 128, 128), (832, 384, 192, 384, 48, 128, 128),
    ]  # fmt: skip
    kernels = [(3, 64, 343), (64, 64, 1), (64, 192, 27)]
    for i, a, b, c, d, e, f in blocks:
        kernels += [(i, a, 1), (i, b, 1), (b, c, 27), (i, d, 1), (d, e, 27), (i, f, 1)]
    assert parameters(model) == sum(a * b * k + 2 * b for a, b, k in kernels) + 1024 * 400 + 400 == 12_697_264


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(224, 7, 2, (2, 3)), (7, 3, 1, (1, 1)), (7, 2, 2, (0, 1)), (8, 2, 2, (0, 0)), (1, 1, 2, (0, 0))],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    pads = same_padding((size,) * 3, (kernel,) * 3, (stride,) * 3)
    assert pads == [*expected] * 3
    assert (size + sum(expected) - kernel) // stride + 1 == -(-size // stride)


def test_units_and_pools_round_up() -> None:
    x = torch.rand(1, 2, 5, 9, 7)
    assert Unit(2, 4, 3, 2)(x).shape == (1, 4, 3, 5, 4)
    assert Pool((1, 3, 3), (1, 2, 2))(x).shape == (1, 2, 5, 5, 4)


@pytest.fixture(scope="module")
def flat() -> nn.Module:
    """A GoogLeNet of random weights whose batch norms hold statistics that they have seen: else all pictures look alike."""
    torch.manual_seed(0)
    net = models.googlenet(weights=None, num_classes=10, aux_logits=False, init_weights=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(torch.rand(8, 3, 96, 96) * 2 - 1)
    return net.eval()


def still(flat: nn.Module, side: int, frames: int, stages: int | None = None) -> tuple[Tensor, Tensor]:
    """What a GoogLeNet finds in a picture, and what the I3D inflated from it finds in the middle of a video of that picture.

    ``stages``: after so many of the I3D's, which the third pool ends; None: at the end.
    """
    image, seen = torch.rand(1, 3, side, side) * 2 - 1, list[Tensor]()
    deep = I3D(10, flat=True).eval()
    inflate(flat, deep)
    last = flat.inception5b if stages is None else flat.maxpool2
    hook = last.register_forward_hook(lambda _module, _inputs, output: seen.append(output))  # type: ignore[union-attr]
    with torch.no_grad():
        flat(image)
        maps = image[:, :, None].expand(-1, -1, frames, -1, -1)
        for stage in list(deep.stages.values())[:stages]:
            maps = stage(maps)
    hook.remove()
    assert seen[0].std() > 0.1
    return seen[0], maps[:, :, maps.shape[2] // 2]


# Far from both ends, 99 frames being seen, time's padding plays no part. Of 63 pixels "SAME" pads as GoogLeNet does, of 64 it
# moves the picture, of 65 it makes larger maps.
@pytest.mark.parametrize("side", [63, 64, 65, pytest.param(224, marks=pytest.mark.slow)])
def test_an_inflated_network_sees_a_still_video_as_the_flat_one_sees_its_frame(flat: nn.Module, side: int) -> None:
    expected, found = still(flat, side, 161 if side < 224 else 113)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_an_inflated_stem_sees_a_still_video_as_the_flat_one_sees_its_frame(flat: nn.Module) -> None:
    """At the size that the weights are trained at; the maps are of 28 x 28 then, as of a smaller picture."""
    torch.testing.assert_close(*still(flat, 224, 17, stages=5), rtol=1e-4, atol=1e-4)


def test_a_model_that_is_loaded_later_pads_as_the_one_that_was_inflated() -> None:
    """Predictions are made by a model that fetches no weights."""
    clip = ClipConfig(frames=8, size=(32, 32))
    for weights in ("", "DEFAULT"):
        model = Actions(ActionModelConfig("i3d", weights=weights), 3, clip, "rgb", fetch=False)
        assert isinstance(model.net, I3D)
        parts = [part for part in model.net.stages.values() if isinstance(part, Unit | Pool) and max(part.stride) > 1]
        assert len(parts) == 5
        assert {part.flat for part in parts} == {bool(weights)}


def test_inflation_of_flow_and_of_other_widths() -> None:
    flat, deep = models.googlenet(weights=None, aux_logits=False, init_weights=False), I3D(10, channels=2)
    inflate(flat, deep)
    grey, motion = flat.conv1.conv.weight.sum(dim=1), deep.stages["1a"].conv.weight.sum(dim=(1, 2))  # type: ignore[union-attr]
    torch.testing.assert_close(motion, grey)
    with pytest.raises(InputError, match=r"--model\.width 64"):
        inflate(flat, I3D(10, width=32))


SMALL = ClipConfig(frames=16, size=(32, 32))
LONG = ClipConfig(frames=27, size=(32, 32))


@pytest.mark.parametrize(
    ("config", "clip", "stream"),
    [
        (ActionModelConfig("c3d", width=4), SMALL, "rgb"), (ActionModelConfig("c3d", width=4), SMALL, "flow"),
        (ActionModelConfig("c3d", width=4, batch_norm=False), SMALL, "rgb"),
        (ActionModelConfig("c3d_lstm", width=4, hidden=8), LONG, "rgb"), (ActionModelConfig("c3d_lstm", width=4), LONG, "flow"),
        (ActionModelConfig("cnn2d"), SMALL, "rgb"), (ActionModelConfig("cnn2d"), SMALL, "flow"),
        (ActionModelConfig("cnn2d", backbone="resnet18"), SMALL, "flow"),
        (ActionModelConfig("i3d", width=8), SMALL, "rgb"), (ActionModelConfig("i3d", width=8), SMALL, "flow"),
        (ActionModelConfig("cnn_lstm", hidden=8), SMALL, "rgb"), (ActionModelConfig("cnn_lstm", hidden=8), SMALL, "flow"),
        (ActionModelConfig("cnn_lstm", backbone="resnet18", hidden=8), SMALL, "rgb"),
        (ActionModelConfig("r3d_18"), SMALL, "rgb"), (ActionModelConfig("mc3_18"), SMALL, "flow"),
        (ActionModelConfig("r2plus1d_18"), SMALL, "rgb"), (ActionModelConfig("swin3d_t"), SMALL, "rgb"),
    ],
)  # fmt: skip
def test_models_step(config: ActionModelConfig, clip: ClipConfig, stream: str) -> None:
    torch.manual_seed(0)
    check_clips(config, 3, clip, stream)
    task = ActionsTask(Actions(config, 3, clip, stream))
    batch = {"clips": torch.randint(256, (2, clip.frames, *clip.size, 3), dtype=torch.uint8), "labels": torch.tensor([0, 2])}
    results = task(batch)
    results["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.parameters())
    assert 0.3 < float(results["loss"].detach()) < 4
    changed = batch["clips"].clone()
    changed[..., 2] = 255 - changed[..., 2]
    with torch.no_grad():
        task.eval()
        same = torch.equal(task.model(batch["clips"].permute(0, 4, 1, 2, 3)), task.model(changed.permute(0, 4, 1, 2, 3)))
    assert same == (stream == "flow" and config.name in TWO_CHANNELS)  # flow's third channel is no motion


def test_c3d_lstm_sees_parts_of_16_frames() -> None:
    """27 frames are two parts, 0-15 and 8-23: the last three frames change nothing, any other does."""
    torch.manual_seed(0)
    model = Actions(ActionModelConfig("c3d_lstm", width=4, hidden=8), 3, LONG, "rgb").eval()
    clips = torch.randint(256, (1, 3, 27, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        before = model(clips)
        for frame, same in ((0, False), (12, False), (23, False), (24, True), (26, True)):
            changed = clips.clone()
            changed[:, :, frame] = 255 - changed[:, :, frame]
            assert torch.equal(model(changed), before) == same


def test_the_spatial_net_is_the_mean_over_frames_and_the_temporal_net_stacks_them() -> None:
    torch.manual_seed(0)
    spatial = CNN2D(3, channels=3, frames=4, backbone="resnet18", weights="", dropout=0.0).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    each = torch.stack([spatial(clips[:, :, frame : frame + 1]) for frame in range(4)])
    torch.testing.assert_close(spatial(clips), each.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spatial(clips.flip(2)), spatial(clips), rtol=1e-4, atol=1e-5)  # it does not know the order
    temporal = CNN2D(3, channels=2, frames=4, backbone="resnet18", weights="", dropout=0.0).eval()
    assert temporal.backbone.conv1.weight.shape == (64, 8, 7, 7)  # type: ignore[union-attr]
    flow = torch.randn(2, 2, 4, 32, 32)
    assert not torch.allclose(temporal(flow.flip(2)), temporal(flow), atol=1e-3)


def test_skeletons_are_recognised_wherever_they_stand() -> None:
    torch.manual_seed(0)
    model = Actions(ActionModelConfig("skeleton_cnn", width=8), 4, ClipConfig(frames=8), "skeletons", (5, 2))
    for _ in range(50):  # batch norm's statistics, without which all clips look alike
        model(torch.rand(16, 8, 5, 2))
    model.eval()
    joints = torch.rand(3, 8, 5, 2)
    before = model(joints)
    assert before.shape == (3, 4)
    torch.testing.assert_close(model(joints + 100), before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(joints * 7), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(joints.flip(1)), before, atol=1e-3)


def test_the_skeleton_networks_features() -> None:
    """Distances between all pairs, and differences of one and of two frames, over the mean distance, against loops."""
    model, seen = SkeletonCNN(3, (4, 2), width=4), dict[str, Tensor]()
    for name in ("distances", "slow", "fast"):
        part = getattr(model, name)
        part.register_forward_hook(lambda _module, inputs, _output, name=name: seen.update({name: inputs[0]}))
    joints = torch.rand(2, 9, 4, 2)
    model(joints)
    apart = [[[math.dist(f[a], f[b]) for a in range(4) for b in range(a + 1, 4)] for f in clip] for clip in joints.tolist()]
    scale = torch.tensor(apart).mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(seen["distances"], (torch.tensor(apart) / scale - 1).transpose(1, 2))
    places = joints.flatten(2) / scale
    for frame in range(8):
        torch.testing.assert_close(seen["slow"][:, :, frame], places[:, frame + 1] - places[:, frame])
    for half in range(3):
        torch.testing.assert_close(seen["fast"][:, :, half], places[:, 2 * half + 2] - places[:, 2 * half])
    assert seen["slow"].shape[2] == 9
    assert seen["fast"].shape[2] == 4


@pytest.mark.parametrize(("name", "stream"), [("i3d", "skeletons"), ("skeleton_cnn", "rgb"), ("skeleton_cnn", "flow")])
def test_models_of_skeletons_and_of_images_are_not_confused(name: str, stream: str) -> None:
    with pytest.raises(InputError, match=f"{name} cannot take {stream}"):
        check_clips(ActionModelConfig(name), 3, SMALL, stream)


def test_a_widened_convolution_gives_a_grey_input_the_same_output() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    grey = torch.randn(2, 1, 8, 8)
    before = net(grey.expand(-1, 3, -1, -1))
    widen_first(net, 8, keep=True)
    torch.testing.assert_close(net(grey.expand(-1, 8, -1, -1)), before)
    widen_first(net, 4, keep=False)
    assert net[0].weight.shape == (5, 4, 3, 3)
    assert not torch.equal(net[0].weight[:, 0], net[0].weight[:, 1])


def test_mixed_clips_and_labels_are_in_the_same_shares() -> None:
    """With a model that is linear in the clip, and its logits fixed, the loss is that of the mixed labels."""
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            seen.append(clips)
            return torch.tensor([[2.0, 0.0, -1.0]]).expand(len(clips), -1)

    clips = torch.zeros(4, 2, 4, 4, 3)
    clips[:2] = 1.0  # each clip of ones is mixed with one of zeros
    labels = torch.tensor([0, 1, 2, 0])
    torch.manual_seed(3)
    results = ActionsTask(Watched(), smoothing=0.1, mixup=0.4)({"clips": clips, "labels": labels})  # type: ignore[arg-type]
    share = seen[0][:, 0, 0, 0, 0]
    share[2:] = 1 - share[2:]
    assert len(set(share.tolist())) == 4
    targets = share[:, None] * F.one_hot(labels, 3) + (1 - share[:, None]) * F.one_hot(labels.flip(0), 3)
    smoothed = 0.9 * targets + 0.1 / 3
    expected = -(smoothed * F.log_softmax(torch.tensor([2.0, 0.0, -1.0]), dim=0)).sum(dim=1).mean()
    torch.testing.assert_close(results["loss"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c3d", "i3d", "s3d", "mvit_v2_s"])
def test_full_models_step(name: str) -> None:
    """At the paper's width and clip: 16 x 112 x 112 (C3D), 64 x 224 x 224 (I3D)."""
    clip = ClipConfig(frames=64 if name == "i3d" else 16, size=(224, 224) if name != "c3d" else (112, 112))
    task = ActionsTask(Actions(ActionModelConfig(name), 5, clip, "rgb"))
    first = next(task.parameters()).detach().clone()
    clips = torch.randint(256, (1, clip.frames, *clip.size, 3), dtype=torch.uint8)
    task({"clips": clips, "labels": torch.tensor([2])})["loss"].backward()
    torch.optim.SGD(task.parameters(), 0.1).step()
    assert torch.isfinite(next(task.parameters())).all()
    assert not torch.equal(next(task.parameters()), first)


def test_ours_stand_in_the_registry_beside_torchvisions() -> None:
    assert {"c3d", "i3d", "cnn_lstm", "s3d", "r3d_18", "mc3_18", "r2plus1d_18", "mvit_v1_b", "swin3d_t"} <= set(
        action_model_names()
    )
    assert {"c3d", "i3d", "cnn_lstm"} <= set(models.list_models())
    assert isinstance(models.get_model("I3D", num_classes=3, width=8), I3D)
    for name, module in (("c3d", C3D), ("cnn_lstm", nn.Module)):
        assert isinstance(models.get_model(name, num_classes=3), module)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "i3dd"}, "did you mean i3d"), ({"name": "resnet18"}, "unknown model"),
        ({"name": "c3d", "weights": "DEFAULT"}, "has: none"),
        ({"weights": "NONE"}, "it has: IMAGENET1K_V1"), ({"name": "cnn_lstm", "backbone": "resnet19"}, "unknown backbone"),
        ({"width": 0}, "at least 1"), ({"dropout": 1.0}, "below 1"),
    ],
)  # fmt: skip
def test_wrong_models(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActionModelConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "clip"),
    [("c3d", ClipConfig(frames=8, size=(32, 32))), ("s3d", ClipConfig(frames=8, size=(32, 32))), ("mvit_v2_s", SMALL)],
)
def test_clips_that_a_model_cannot_take(name: str, clip: ClipConfig) -> None:
    with pytest.raises(InputError, match=r"too small for C3D|cannot take clips"):
        check_clips(ActionModelConfig(name, width=4), 3, clip, "rgb")
