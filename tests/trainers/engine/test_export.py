from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.engine.export import export_onnx, export_program
from trainers.tasks.reid.model import Embedder, ModelConfig

Export = Callable[[nn.Module, tuple[int, int], Path], float]
BOTH = pytest.mark.parametrize(("export", "name"), [(export_onnx, "model.onnx"), (export_program, "model.pt2")])


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """In training mode, in channels_last and with statistics of its own, as a run leaves it."""
    torch.manual_seed(0)
    model = Embedder(ModelConfig(embedding=16)).to(memory_format=torch.channels_last)
    model(images(8, (32, 16)))
    return model


def images(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def expected(model: Embedder, batch: Tensor) -> Tensor:
    model.eval()
    features: Tensor = model(batch)
    model.train()
    return features


def test_the_onnx_file_runs_alone_at_any_batch_size(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.onnx"
    assert export_onnx(embedder, (32, 16), path) < 1e-4
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [3, 32, 16])
    assert (given.name, given.type, given.shape[1:]) == ("features", "tensor(float)", [16])
    for batch in (1, 2, 5):
        (features,) = session.run(None, {"images": images(batch, (32, 16)).numpy()})
        np.testing.assert_allclose(features, expected(embedder, images(batch, (32, 16))).numpy(), rtol=1e-3, atol=1e-4)


def test_the_program_runs_alone_at_any_batch_size(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert export_program(embedder, (32, 16), path) < 1e-4
    assert list(tmp_path.iterdir()) == [path]
    model = torch.export.load(path).module()
    for batch in (1, 2, 5):
        torch.testing.assert_close(model(images(batch, (32, 16))), expected(embedder, images(batch, (32, 16))))


def test_the_embedder_keeps_training(embedder: Embedder, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in embedder.state_dict().items()}
    export_program(embedder, (32, 16), tmp_path / "model.pt2")
    assert all(module.training for module in embedder.modules())
    assert all(torch.equal(value, state[name]) for name, value in embedder.state_dict().items())


class Unfaithful(nn.Module):
    """Says one thing, and another once exported."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().flatten(1)
        return pixels.flip(1) if torch.compiler.is_exporting() else pixels


@BOTH
def test_a_file_that_differs_is_not_written(export: Export, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"the last good one")
    with pytest.raises(RuntimeError, match=f"{name}: the exported model's features differ by .*; nothing was written"):
        export(Unfaithful(), (4, 4), path)
    assert path.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [path]


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)


@BOTH
def test_an_older_file_is_replaced(export: Export, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    assert export(Flat(), (2, 2), path) == 0
    assert path.read_bytes() != b"old"


def test_a_program_has_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pt2"):
        export_program(Flat(), (2, 2), tmp_path / "model.bin")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write there \(.+\): .*file/model\.onnx"):
        export_onnx(nn.Identity(), (8, 8), tmp_path / "file" / "model.onnx")
