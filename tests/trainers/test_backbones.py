import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torchvision import models

from datasets.errors import InputError
from trainers.engine.config import from_json, to_json
from trainers.tasks.attributes.model import FaceModelConfig
from trainers.tasks.backbones import backbone_names, build_backbone, check_backbone
from trainers.tasks.reid.model import ModelConfig
from trainers.tasks.small_net import OLD, SMALL, SmallNet
from trainers.tasks.video.action_model import ActionModelConfig
from trainers.tasks.video.sequence_model import SequenceModelConfig


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("resnet34", 512),
        ("mobilenet_v2", 1280),
        ("mobilenet_v3_small", 576),
        ("mobilenet_v3_large", 960),
        ("shufflenet_v2_x1_0", 1024),
        ("mnasnet0_5", 1280),
        ("efficientnet_b0", 1280),
        ("regnet_y_400mf", 440),
        (OLD, 128),
        (SMALL, 1152),
    ],
)
def test_the_promised_width_is_what_comes_out(name: str, width: int) -> None:
    model, features = build_backbone(name)
    assert features == width
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 64, 32)).shape == (2, width)


@pytest.mark.parametrize("size", [(48, 48), (105, 105), (80, 32), (160, 64), (16, 16)])
def test_small_takes_glyphs_and_crops(size: tuple[int, int]) -> None:
    model, features = build_backbone("small")
    assert model(torch.zeros(2, 3, *size)).shape == (2, features)


def test_small_is_small_and_every_weight_learns() -> None:
    model, _ = build_backbone(SMALL)
    parameters = list(model.parameters())
    assert 200_000 < sum(parameter.numel() for parameter in parameters) < 700_000
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (model(images) ** 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


def test_small_gives_the_same_in_channels_last() -> None:
    model = SmallNet(5).eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def test_the_small_one_needs_no_torchvision() -> None:
    """It takes seconds to import, which a run with the small backbone would wait for before its first step."""
    build = f"from trainers.tasks.backbones import build_backbone; build_backbone({SMALL!r})"
    code = f"import sys; {build}; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert SmallNet(7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_all_names_can_be_checked() -> None:
    names = backbone_names()
    assert len(names) > 30
    assert [check_backbone(name) for name in names] == names


@pytest.mark.parametrize(("name", "close"), [("resnet51", "resnet50"), ("ResNet18", "resnet18"), ("smal", SMALL)])
def test_an_unknown_name_is_answered_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(InputError, match=f"unknown backbone: {name}; .*{close}"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["", "fasterrcnn_resnet50_fpn", "vit_b_16", "r3d_18"])
def test_models_that_are_no_backbones_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown backbone"):
        build_backbone(name)


def test_unknown_weights_are_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no weights of this name: V9; use one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        check_backbone("resnet50", "V9")
    with pytest.raises(InputError, match="leave the weights out"):
        check_backbone(SMALL, "DEFAULT")
    assert check_backbone("resnet50", "DEFAULT") == "resnet50"


def test_weights_are_loaded_from_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = models.get_model("resnet18").state_dict()
    file = models.get_model_weights("resnet18")["IMAGENET1K_V1"].url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir(), "checkpoints")
    folder.mkdir(parents=True)
    torch.save(state, folder / file)
    model, _ = build_backbone("resnet18", "IMAGENET1K_V1", last_stride=1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_weights_that_cannot_be_fetched_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"weights of resnet18 cannot be downloaded: DEFAULT .*; .*TORCH_HOME"):
        build_backbone("resnet18", "DEFAULT")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_stride_doubles_a_resnets_last_map(name: str) -> None:
    images = torch.zeros(1, 3, 64, 32)
    maps: list[torch.Size] = []
    for stride in (1, 2):
        model, _ = build_backbone(name, last_stride=stride)
        model.get_submodule("layer4").register_forward_hook(lambda _module, _args, out: maps.append(out.shape[2:]))
        model.eval()(images)
    assert maps == [(4, 2), (2, 1)]


def test_last_stride_is_for_resnets() -> None:
    with pytest.raises(InputError, match="for resnets"):
        build_backbone("mobilenet_v2", last_stride=1)
    with pytest.raises(InputError, match="1 or 2: 3"):
        check_backbone("resnet18", last_stride=3)


def test_the_grid_keeps_where_a_feature_lies() -> None:
    """The averages of the grid's cells, cut as torch cuts them: cell i of n spans rows floor(i h / n) to ceil((i + 1) h / n)."""
    model = SmallNet(0).eval()
    images = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(0))
    maps = model.stages(images)
    assert maps.shape[2:] == (5, 4)
    rows, columns = ((0, 2), (1, 4), (3, 5)), ((0, 2), (1, 3), (2, 4))
    cells = [maps[:, :, top:bottom, left:right].mean(dim=(2, 3)) for top, bottom in rows for left, right in columns]
    torch.testing.assert_close(model(images), torch.stack(cells, dim=2).flatten(1))


@pytest.mark.parametrize(
    "default",
    [ModelConfig(), FaceModelConfig(), ActionModelConfig("cnn_lstm"), SequenceModelConfig()],
    ids=lambda one: type(one).__name__,
)
def test_the_small_network_of_an_older_run_stays_that_one(default: ModelConfig) -> None:
    """Earlier versions stored the short name or the old network's full name; today the short name means the new one."""
    assert replace(default, backbone="small") == default
    assert default.backbone == SMALL
    for stored in ("small", OLD):
        old = from_json(type(default), json.dumps({**asdict(default), "backbone": stored}), "a test")
        assert old.backbone == OLD
        assert from_json(type(default), to_json(old), "a test") == old
