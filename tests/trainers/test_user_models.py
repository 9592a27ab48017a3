"""Models that a user brings as package.module:function: built, tried, trained, opened again and exported in every job."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from datasets.loading.clips import ClipConfig
from trainers.engine.export import export_onnx, export_program
from trainers.engine.loop import steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.tasks.attributes.model import Attributes, AttributesTask, FaceModelConfig
from trainers.tasks.backbones import build_backbone, build_level_backbone, check_backbone, try_model
from trainers.tasks.detection.adaptation import RECIPES, AlignConfig, DetectionTask, TeacherConfig
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.detection.export import export_detector
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.model import Embedder, ModelConfig, ReidTask
from trainers.tasks.small_net import SMALL
from trainers.tasks.user_models import build_users, check_users
from trainers.tasks.video.action_model import ActionModelConfig, Actions, ActionsTask, check_clips
from trainers.tasks.video.sequence_model import SequenceModel, SequenceModelConfig, SequenceTask

CPU = torch.device("cpu")
CLIP = ClipConfig(frames=4, size=(16, 24))


def test_a_backbone_is_what_the_function_returns() -> None:
    model, features = build_backbone("usermodels:backbone")
    assert features == 12
    assert model.training
    assert model(torch.zeros(2, 3, 40, 24)).shape == (2, 12)
    ones, _ = build_backbone("usermodels:backbone", "ones")
    assert all((p == 1).all() for p in ones.parameters())
    assert build_backbone("usermodels:fixed")[1] == 7  # which has its features in an attribute
    _, features, channels = build_level_backbone("usermodels:backbone")
    assert (features, channels) == (12, [8, 12])
    assert build_level_backbone("usermodels:fixed")[2] == []


def test_levels_are_what_the_modules_give() -> None:
    torch.manual_seed(0)
    model, _, channels = build_level_backbone("usermodels:backbone")
    images = torch.randn(2, 3, 32, 32)
    found = model.eval()(images)
    assert set(found) == {"0", "1", "pooled"}
    assert [found[str(level)].shape[1] for level in range(2)] == channels
    net: Any = model.backbone
    torch.testing.assert_close(found["0"], net.one(images))
    torch.testing.assert_close(found["1"].mean(dim=(2, 3)), found["pooled"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_package.models:net",
            "the module no_such_package.models cannot be imported (No module named 'no_such_package')",
        ),
        ("usermodels:none", "usermodels has no function none: "),
        ("usermodels:not_a_function", "usermodels has no function not_a_function: "),
        ("usermodels:a_list", "the function returns a list, not a torch.nn.Module: usermodels:a_list"),
        ("usermodels:clips", "the function does not take no arguments (missing a required argument: 'num_classes')"),
        ("usermodels:two_outputs", "for an image the model returns a tuple, not features [1, F]"),
        ("usermodels:one_map", "for an image the model returns a tensor of [1, 16, 16, 16], not features [1, F]"),
        ("usermodels:fixed_and_silent", "the model cannot take an image of 128x128 (mat1 and mat2 shapes"),
    ],
)
def test_what_is_no_backbone_is_reported_in_a_line(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        build_backbone(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["./models.py:net", "models:", ":net", "a:b:c", "a b:c", "/models/m:net", "m:net()", "..m:net", "1m:n"]
)
def test_only_functions_of_modules_are_named(name: str) -> None:
    with pytest.raises(InputError, match=r"give package\.module:function, not a path"):
        check_users(name)
    for config in (ModelConfig, FaceModelConfig, SequenceModelConfig, DetectorConfig):
        with pytest.raises(InputError, match="not a function of a module"):
            config(backbone=name)
    with pytest.raises(InputError, match="not a function of a module"):
        ActionModelConfig(name)


def test_a_config_imports_nothing() -> None:
    for kind in (ModelConfig, FaceModelConfig, SequenceModelConfig, DetectorConfig):
        assert kind(backbone="not.there:yet", weights="mine").weights == "mine"
    assert ActionModelConfig("not.there:yet").name == ActionModelConfig("cnn_lstm", backbone="not.there:yet").backbone
    with pytest.raises(InputError, match="last stride of 1 is for resnets"):
        check_backbone("not.there:yet", last_stride=1)


def test_options_that_the_function_does_not_take_are_named() -> None:
    with pytest.raises(
        InputError, match=r"the function does not take weights \(got an unexpected keyword argument 'weights'\): usermodels:ex"
    ):
        build_users("usermodels:exportable", "DEFAULT")
    with pytest.raises(InputError, match="does not take num_classes"):
        build_users("usermodels:backbone", num_classes=3)


@pytest.mark.parametrize(
    ("build", "inputs", "message"),
    [
        (
            lambda: Embedder(ModelConfig("usermodels:fixed")),
            (2, 3, 48, 48),
            "cannot be trained on inputs of [2, 3, 48, 48] (mat1",
        ),
        (lambda: Embedder(ModelConfig("usermodels:fixed_and_wrong")), (2, 3, 32, 32), "cannot be trained on inputs of [2, 3, 32"),
    ],
)
def test_a_model_is_tried_at_the_size_of_the_run(build: Any, inputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        try_model("usermodels:it", "", build, torch.zeros(inputs))
    assert message in str(error.value)
    assert try_model("usermodels:it", "", lambda: Embedder(ModelConfig("usermodels:fixed")), torch.zeros(2, 3, 32, 32)).shape == (
        2,
        128,
    )
    assert try_model(SMALL, "", build, torch.zeros(inputs)) is None


def test_clips_are_tried_and_logits_counted() -> None:
    check_clips(ActionModelConfig("usermodels:clips"), 5, CLIP, "rgb")
    check_clips(ActionModelConfig("cnn_lstm", backbone="usermodels:backbone"), 5, CLIP, "rgb")
    with pytest.raises(
        InputError, match=r"of 2 clips it gives a tensor of \[2, 9\], not logits \[2, 5\]: usermodels:four_logits"
    ):
        check_clips(ActionModelConfig("usermodels:four_logits"), 5, CLIP, "rgb")
    with pytest.raises(InputError, match=r"cannot be trained on inputs of \[2, 3, 4, 16, 24\]"):
        check_clips(ActionModelConfig("usermodels:fixed_clips"), 5, CLIP, "rgb")
    with pytest.raises(InputError, match="does not take num_classes"):
        check_clips(ActionModelConfig("usermodels:backbone"), 5, CLIP, "rgb")


def test_a_backbone_without_maps_is_no_base_of_the_decoupling_part() -> None:
    model = Attributes(FaceModelConfig("usermodels:fixed"), ("gender", "age"), single=False)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
    with pytest.raises(InputError, match="no feature maps"):
        model.insert_decoupler()


def test_a_detector_wants_maps() -> None:
    for wrong in ("usermodels:backbone", "usermodels:two_outputs", "usermodels:fixed"):
        with pytest.raises(InputError, match=r"it gives no maps \[1, C, h, w\]"):
            Detector(DetectorConfig(wrong), 2)
    with pytest.raises(InputError, match="3 anchors for 2 levels"):
        Detector(DetectorConfig("usermodels:pyramid", anchors=(8, 16, 32)), 2)
    generator: Any = Detector(DetectorConfig("usermodels:pyramid"), 2).rpn.anchor_generator
    assert generator.sizes == ((32,), (64,))  # eight times the 4 and 8 pixels that a cell stands for
    generator = Detector(DetectorConfig("usermodels:one_map", anchors=(9, 18)), 2).rpn.anchor_generator
    assert generator.sizes == ((9, 18),)


def batches(job: str) -> Iterator[dict[str, Any]]:
    """Three batches of noise as a job's loader gives them."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    for step in range(3):
        clips = {"clips": noise(2, 4, 16, 24, 3), "lengths": torch.tensor([4, 4]), "targets": torch.tensor([[1], [2]])}
        yield {"step": step} | {
            "reid": {"images": noise(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 3])},
            "attributes": {"images": noise(4, 3, 32, 32), "targets": torch.rand(4, 5, generator=generator)},
            "actions": {"clips": clips["clips"], "labels": torch.tensor([0, 1])},
            "sequences": clips,
            "detection": {
                "images": noise(2, 3, 64, 64), "boxes": torch.tensor([[8.0, 8, 40, 40], [4, 4, 30, 60]]),
                "classes": torch.tensor([0, 1]), "counts": torch.tensor([1, 1]),
                "target_images": noise(2, 3, 64, 64), "active": torch.tensor(1.0),
            },
        }[job]  # fmt: skip


def attributes_task(name: str) -> nn.Module:
    model = Attributes(FaceModelConfig(name), ("gender", "age", "pose"), single=False)
    model.insert_decoupler()
    task = AttributesTask(model)
    task.enter({"gender": 1.0, "age": 1.0, "pose": 1.0})
    return task


def detection_task(name: str) -> nn.Module:
    config = DetectorConfig(name, regions=16)
    return DetectionTask(config, 2, RECIPES["align+aug"], AlignConfig(clusters=2), TeacherConfig())


TASKS: dict[str, Any] = {
    "reid usermodels:backbone": lambda name: ReidTask(ModelConfig(name), HeadConfig(), 4),
    "attributes usermodels:backbone": attributes_task,
    "actions usermodels:clips": lambda name: ActionsTask(Actions(ActionModelConfig(name), 4, CLIP, "rgb")),
    "actions usermodels:backbone": lambda name: ActionsTask(
        Actions(ActionModelConfig("cnn_lstm", backbone=name), 4, CLIP, "rgb")
    ),
    "sequences usermodels:backbone": lambda name: SequenceTask(SequenceModel(SequenceModelConfig(name), 4), "ctc"),
    "detection usermodels:one_map": detection_task,
    "detection usermodels:pyramid": detection_task,
}


@pytest.mark.parametrize("which", TASKS)
def test_a_users_model_is_trained_by_every_job(which: str) -> None:
    """All its weights move, and what is stored of it opens in a model that is built anew."""
    job, name = which.split()
    torch.manual_seed(0)
    task = TASKS[which](name)
    before = {n: p.detach().clone() for n, p in task.named_parameters() if p.requires_grad}
    config = OptimConfig(steps=3, warmup=0)
    done = [step.done for step in steps(task, build_optimiser(config, task), config, batches(job), CPU, 0)]
    assert done == [1, 2, 3]
    mine = [
        n for n in before if not any(part in n for part in ("heads", "decoupler", "rpn", "roi", "adversaries", "tell", "make"))
    ]
    assert len(mine) > 3
    moved = dict(task.named_parameters())
    assert all(not torch.equal(before[n], moved[n]) for n in mine if "bias" not in n)
    again = TASKS[which](name)
    again.load_state_dict(task.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(task.state_dict().values(), again.state_dict().values(), strict=True))


def test_it_is_exported_as_any_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedder = Embedder(ModelConfig("usermodels:exportable")).eval()
    assert export_program(embedder, (32, 32), tmp_path / "m.pt2") < 1e-4
    faces = Attributes(FaceModelConfig("usermodels:exportable"), ("gender", "age", "pose"), single=False)
    faces.insert_decoupler()
    assert export_program(faces.eval(), (32, 32), tmp_path / "f.pt2") < 1e-4
    assert export_onnx(faces, (32, 32), tmp_path / "f.onnx", "labels") < 1e-4
    clips = Actions(ActionModelConfig("usermodels:clips"), 4, CLIP, "rgb")
    assert export_program(clips.eval(), (4, 16, 24), tmp_path / "c.pt2") < 1e-4
    detector = Detector(DetectorConfig("usermodels:pyramid", regions=16), 2).eval()
    assert export_detector(detector, (64, 64), tmp_path / "d.onnx") < 1e-4


def test_layers_that_take_no_part_are_named_at_the_first_step() -> None:
    """DistributedDataParallel would raise at the second, on every worker, as often as the run is tried."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        task = ReidTask(ModelConfig("usermodels:idle"), HeadConfig(), 4)
        config = OptimConfig(steps=3, warmup=0)
        model = DistributedDataParallel(task)
        with pytest.raises(InputError, match=r"2 of the model's weights take no part.*embedder\.backbone\.spare\.weight"):
            list(steps(model, build_optimiser(config, task), config, batches("reid"), CPU, 0))
    finally:
        torch.distributed.destroy_process_group()


def test_statistics_and_channels_of_a_users_clips() -> None:
    """RGB and flow come as three channels in -1..1."""
    for stream in ("rgb", "flow"):
        model = Actions(replace(ActionModelConfig("usermodels:clips")), 4, CLIP, stream)
        seen: list[Tensor] = []
        model.net.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))  # noqa: B023
        model(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 3, 4, 16, 24))
        assert seen[0].shape == (2, 3, 4, 16, 24)
        assert seen[0].amin().item() == pytest.approx(-1, abs=0.01)
        assert seen[0].amax().item() == pytest.approx(1, abs=0.01)
