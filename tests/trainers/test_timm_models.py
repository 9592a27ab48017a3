"""timm's models as backbones of every job: built for the run's size, normalised as theirs, with levels, maps and pyramids."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_user_models import CLIP, CPU, attributes_task, batches, detection_task
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.loading.clips import ClipConfig
from trainers.engine.export import export_onnx, export_program
from trainers.engine.loop import steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.tasks.attributes.model import Attributes, FaceModelConfig
from trainers.tasks.backbones import Normalise, build_backbone, build_level_backbone, check_backbone, try_model
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.export import export_detector
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.model import Embedder, ModelConfig, ReidTask
from trainers.tasks.reid.pooling import Pooling
from trainers.tasks.small_net import SmallNet
from trainers.tasks.timm_models import TimmMap, build_timm
from trainers.tasks.video.action_model import ActionModelConfig, Actions, ActionsTask, check_clips
from trainers.tasks.video.sequence_model import SequenceModel, SequenceModelConfig, SequenceTask

SMALL_IMAGES = (32, 32)


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "features"),
    [("test_vit", 64), ("test_vit2", 64), ("test_resnet", 96), ("test_convnext", 64), ("mobilenetv3_small_050", 1024)],
)
@pytest.mark.parametrize("size", [(128, 64), (96, 112)])
def test_features_are_timms_own_at_the_runs_size(name: str, features: int, size: tuple[int, int]) -> None:
    model, found = build_backbone(f"timm/{name}", size=size)
    assert found == features
    options = {"img_size": size} if "vit" in name else {}
    own = timm.create_model(name, num_classes=0, **options)
    own.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images(*size)), own.eval()(images(*size)))


def test_a_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_backbone("timm/test_resnet")[0].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_pixels_are_normalised_as_the_models_own() -> None:
    """By timm's list: test_vit by a half, resnet18 as ImageNet; a tag of weights may differ from the model's default."""
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    halves = torch.tensor([-1, (128 / 255 - 0.5) / 0.5, 1])
    imagenets = torch.tensor([-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    for name, expected in [("timm/test_vit", halves), ("timm/resnet18", imagenets), ("resnet18", imagenets)]:
        torch.testing.assert_close(Normalise(name)(pixels)[0, :, 1, 2], expected)
    assert Normalise("timm/vit_base_patch16_224.mae").mean[0, 0, 0, 0] == pytest.approx(0.485 * 255)
    assert Normalise("timm/vit_base_patch16_224").mean[0, 0, 0, 0] == pytest.approx(127.5)
    clips = Actions(ActionModelConfig("cnn_lstm", backbone="timm/test_resnet"), 3, CLIP, "rgb")
    assert clips.mean.flatten().tolist() == [127.5] * 3


@pytest.mark.parametrize(("name", "channels"), [("test_resnet", [48, 192, 96]), ("test_vit", [64])])
def test_levels_are_the_models_maps(name: str, channels: list[int]) -> None:
    size = (64, 96)
    model, features, found = build_level_backbone(f"timm/{name}", size=size)
    assert found == channels
    outputs = model.eval()(images(*size))
    heights = [8, 4, 2] if name == "test_resnet" else [4]
    assert [outputs[str(level)].shape for level in range(len(found))] == [
        (2, c, h, h * 3 // 2) for c, h in zip(channels, heights, strict=True)
    ]
    plain, _ = build_backbone(f"timm/{name}", size=size)
    plain.load_state_dict(model.get_submodule("model").state_dict())
    assert features == outputs["pooled"].shape[1]
    torch.testing.assert_close(outputs["pooled"], plain.eval()(images(*size)))
    if name == "test_resnet":
        torch.testing.assert_close(outputs["2"].mean(dim=(2, 3)), outputs["pooled"])


def test_the_map_of_tokens_has_them_in_their_places() -> None:
    """A token depends most on its own patch: a changed patch moves the token at its row and column most."""
    torch.manual_seed(0)
    model = TimmMap(build_timm("timm/test_vit", size=(64, 96), pool="")).eval()
    before = images(64, 96, batch=1)
    after = before.clone()
    after[:, :, 32:48, 80:96] += 3  # row 2, column 5
    moved = (model(after) - model(before)).norm(dim=1)[0]
    assert moved.shape == (4, 6)
    assert divmod(int(moved.argmax()), 6) == (2, 5)


def test_maps_with_the_channels_last_are_turned() -> None:
    model = TimmMap(build_timm("timm/swin_tiny_patch4_window7_224", size=(64, 32), pool=""))
    assert model(images(64, 32)).shape == (2, 768, 2, 1)


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet51", "timm has no such model: timm/resnet51; did you mean timm/resnet"),
        ("timm/ViT_small_patch16_224", "did you mean timm/vit_small_patch16_224"),
        ("timm/", "timm.list_models() lists its names"),
        ("timm/qqqqqqqqqq", "timm.list_models() lists its names"),
        ("timm/test_vit.nope", "timm has no weights of this tag: timm/test_vit.nope; it has timm/test_vit.r160_in1k"),
        ("timm/hf-hub:timm/resnet18", "give package.module:function, not a path"),
    ],
)
def test_unknown_names_are_answered_in_a_line(name: str, message: str) -> None:
    for config in (ModelConfig, FaceModelConfig, SequenceModelConfig, DetectorConfig):
        with pytest.raises(InputError) as error:
            config(backbone=name)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_are_timms_or_a_file() -> None:
    assert check_backbone("timm/resnet18", "timm") == "timm/resnet18"
    with pytest.raises(InputError, match="timm/resnet18 has no weights of this name: DEFAULT; use one of timm; or name a file"):
        ModelConfig("timm/resnet18", weights="DEFAULT")
    for name in ("small", "timm/efficientnet_b8"):
        with pytest.raises(InputError, match="no weights of this name: timm; leave the weights out: it has none; or name a file"):
            check_backbone(name, "timm")


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_byobnet", "resnet18"])
@pytest.mark.parametrize("pooling", ["own", "gem"])
def test_a_last_stride_of_1_doubles_the_last_map_and_weights_fit(name: str, pooling: Pooling, tmp_path: Path) -> None:
    source = timm.create_model(name, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    maps, states = [], []
    for stride in (2, 1):
        config = ModelConfig(f"timm/{name}", weights=str(tmp_path / "w.pt"), last_stride=stride, pooling=pooling)
        embedder = Embedder(config, (128, 64)).eval()
        assert embedder(images(128, 64)).shape == (2, 128)
        timms = next(module for module in embedder.modules() if hasattr(module, "feature_info"))
        maps.append(timms.forward_features(images(128, 64)).shape)
        states.append(timms.state_dict())
    assert [shape[2:] for shape in maps] == [(4, 2), (8, 4)]
    assert maps[0][1] == maps[1][1]
    theirs = source.state_dict()
    for state in states:
        assert len(state) > 40
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050", "vgg11"])
@pytest.mark.parametrize("pooling", ["own", "average"])
def test_models_without_such_a_stride_refuse_it_in_a_line(name: str, pooling: Pooling) -> None:
    config = ModelConfig(f"timm/{name}", last_stride=1, pooling=pooling)
    message = (
        f"timm cannot build the model for images of 64x32 with a last stride of 1 .*: timm/{name}; leave the last stride at 2"
    )
    with pytest.raises(InputError, match=message) as error:
        try_model(config.backbone, "", lambda: Embedder(config, (64, 32)), torch.zeros(2, 3, 64, 32))
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_fetched_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        build_backbone("timm/test_vit", "timm")
    assert "the weights cannot be downloaded: timm/test_vit (" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm/test_vit", (105, 105), r"inputs of \[2, 3, 105, 105\] \(Input height \(105\) should be divisible by patch size"),
        ("timm/vgg11", (16, 16), "cannot be trained on inputs of"),
        ("timm/test_vit", (8, 8), "timm/test_vit"),
    ],
)
def test_a_size_that_a_model_cannot_take_is_refused_in_a_line(name: str, size: tuple[int, int], message: str) -> None:
    config = ModelConfig(name)
    with pytest.raises(InputError, match=message) as error:
        try_model(name, "", lambda: Embedder(config, size), torch.zeros(2, 3, *size))
    assert "\n" not in str(error.value)


def test_other_jobs_start_without_timm() -> None:
    code = (
        "import sys, trainers.reid as r; r.Train(); from trainers.tasks.backbones import build_backbone; build_backbone('small');"
        "print([m for m in ('timm', 'safetensors', 'huggingface_hub', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_timm_finds_our_models_once_their_module_is_imported() -> None:
    import trainers.tasks.timm_registry  # noqa: F401

    for name, features in {"hardshard_small_v2": 1152, "hardshard_small": 128}.items():
        assert timm.is_model(name)
        model = timm.create_model(name, num_classes=7)
        assert isinstance(model, SmallNet)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
        assert timm.create_model(name, num_classes=0)(torch.zeros(2, 3, 32, 32)).shape == (2, features)
        with pytest.raises(ValueError, match="no pretrained weights"):
            timm.create_model(name, pretrained=True)


# Jobs

TASKS: dict[str, Any] = {
    "reid timm/test_vit": lambda name: ReidTask(ModelConfig(name), HeadConfig(), 4, size=SMALL_IMAGES),
    "reid timm/test_resnet": lambda name: ReidTask(ModelConfig(name, pooling="gem"), HeadConfig(), 4, size=SMALL_IMAGES),
    "attributes timm/test_convnext": attributes_task,
    "actions timm/test_resnet": lambda name: ActionsTask(Actions(ActionModelConfig("cnn_lstm", backbone=name), 4, CLIP, "rgb")),
    "sequences timm/test_resnet": lambda name: SequenceTask(SequenceModel(SequenceModelConfig(name), 4, size=CLIP.size), "ctc"),
    "detection timm/test_resnet": detection_task,
}


@pytest.mark.parametrize("which", TASKS)
def test_a_model_of_timm_is_trained_by_every_job(which: str) -> None:
    """All its weights take part, and what is stored of it opens in a model that is built anew."""
    job, name = which.split()
    torch.manual_seed(0)
    task = TASKS[which](name)
    config = OptimConfig(steps=1, warmup=0)
    frozen = {"adversaries"}
    assert [step.done for step in steps(task, build_optimiser(config, task), config, islice(batches(job), 1), CPU, 0)] == [1]
    idle = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None and not frozen & set(n.split("."))]
    assert not idle
    again = TASKS[which](name)
    again.load_state_dict(task.state_dict())


def test_detection_refuses_models_of_one_size() -> None:
    with pytest.raises(InputError, match=r"takes images of one size.*: timm/test_vit; choose a CNN"):
        Detector(DetectorConfig("timm/test_vit"), 2)


def test_a_detectors_batch_norms_are_frozen_with_weights(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    detector: Any = Detector(DetectorConfig("timm/test_resnet", str(tmp_path / "w.pt"), regions=16), 2)
    body = detector.backbone.body
    assert not [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = source.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in body.state_dict().items())
    assert len(body.state_dict()) > 50
    assert detector.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,))
    again = Detector(DetectorConfig("timm/test_resnet", str(tmp_path / "gone.pt"), regions=16), 2, fetch=False)
    again.load_state_dict(detector.state_dict())


def test_clips_are_tried_with_a_model_of_timm() -> None:
    config = ActionModelConfig("cnn_lstm", backbone="timm/test_vit")
    check_clips(config, 5, ClipConfig(frames=4, size=(32, 48)), "rgb")
    with pytest.raises(InputError, match=r"inputs of \[2, 3, 4, 16, 24\] \(Input width \(24\) should be divisible"):
        check_clips(config, 5, CLIP, "rgb")
    model = SequenceModel(SequenceModelConfig("timm/test_vit"), 4, size=(32, 48))
    assert model(torch.zeros(1, 3, 32, 48, 3)).shape == (1, 3, 5)


def test_a_vision_transformer_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedder = Embedder(ModelConfig("timm/test_vit", pooling="stripes", parts=3), (64, 32)).eval()
    assert export_program(embedder, (64, 32), tmp_path / "m.pt2") < 1e-4


@pytest.mark.slow
def test_all_jobs_export_models_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for pooling in ("own", "gem"):
        embedder = Embedder(ModelConfig("timm/test_vit", pooling=pooling), (64, 32)).eval()
        assert export_onnx(embedder, (64, 32), tmp_path / "m.onnx") < 1e-4
    faces = Attributes(FaceModelConfig("timm/test_resnet"), ("gender", "age", "pose"), single=False)
    faces.insert_decoupler()
    assert export_program(faces.eval(), (64, 64), tmp_path / "f.pt2") < 1e-4
    detector = Detector(DetectorConfig("timm/test_resnet", regions=16), 2).eval()
    assert export_detector(detector, (64, 64), tmp_path / "d.onnx") < 1e-4
