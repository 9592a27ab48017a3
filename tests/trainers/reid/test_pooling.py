"""How re-ID pools feature maps, by independent formulas, and that the default changes nothing."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from datasets.errors import InputError
from trainers.engine.config import from_json
from trainers.tasks.backbones import Normalise, build_backbone, build_map_backbone, try_model
from trainers.tasks.reid.model import Embedder, ModelConfig
from trainers.tasks.reid.pooling import GeM, Stripes, build_pooled

SIZE = (64, 32)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_the_default_is_the_model_of_older_runs() -> None:
    """To the bit: the same weights under the same names, and the same features."""
    assert from_json(ModelConfig, '{"backbone": "resnet18", "embedding": 16}', "").pooling == "own"
    for name in ("small", "resnet18"):
        torch.manual_seed(0)
        backbone, width = build_backbone(name)
        project, neck = nn.Linear(width, 16, bias=False), nn.BatchNorm1d(16)
        torch.manual_seed(0)
        embedder = Embedder(ModelConfig(name, embedding=16))
        parts = {"backbone": backbone, "project": project, "neck": neck}
        expected = {f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()}
        found = embedder.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[n], expected[n]) for n in expected)
        pixels = torch.randint(256, (3, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        features = neck.eval()(project(backbone.eval()(Normalise()(pixels))))
        assert torch.equal(embedder.eval()(pixels), features)


@given(st.floats(0.5, 12), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_gem_is_the_generalised_mean(p: float, channels: int, side: int, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(size=(2, channels, side, side + 1)).astype(np.float32)
    expected = (np.maximum(maps.astype(np.float64), 1e-6) ** p).mean(axis=(2, 3)) ** (1 / p)
    with torch.no_grad():
        np.testing.assert_allclose(GeM(p)(torch.from_numpy(maps)).numpy(), expected, rtol=2e-3, atol=1e-6)


def test_gem_lies_between_mean_and_maximum_and_learns_its_power() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pool = GeM()
    assert pool.p.item() == 3
    torch.testing.assert_close(GeM(1.0)(maps), maps.mean(dim=(2, 3)))
    assert ((GeM(50.0)(maps) - maps.amax(dim=(2, 3))).abs() < 0.06).all()
    pool(maps).sum().backward()
    assert pool.p.grad is not None
    assert pool.p.grad > 0  # a higher power gives higher values
    assert torch.isfinite(pool(torch.zeros(1, 2, 3, 3))).all()


@given(st.integers(1, 6), st.integers(0, 9))
def test_stripes_are_means_of_rows_from_top_to_bottom(parts: int, more: int) -> None:
    rows = parts + more
    maps = torch.rand(2, 3, rows, 4, generator=torch.Generator().manual_seed(rows))
    heights = [rows // parts + (stripe < rows % parts) for stripe in range(parts)]
    ends = np.cumsum([0, *heights])
    expected = np.concatenate([maps.numpy()[:, :, a:b].mean(axis=(2, 3)) for a, b in pairwise(ends)], axis=1)
    np.testing.assert_allclose(Stripes(parts)(maps).numpy(), expected, rtol=1e-5)


CNNS = ("hardshard_small", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf")


@pytest.mark.parametrize("name", CNNS)
def test_the_map_is_what_the_backbone_averages(name: str) -> None:
    backbone, features = build_backbone(name)
    maps, channels = build_map_backbone(name)
    maps.get_submodule("backbone").load_state_dict(backbone.state_dict())
    found = maps.eval()(images())
    assert channels == features == found.shape[1]
    torch.testing.assert_close(found.mean(dim=(2, 3)), backbone.eval()(images()))


@pytest.mark.parametrize("name", ["resnet18", "usermodels:exportable", "timm/test_resnet", "timm/test_vit"])
@pytest.mark.parametrize("pooling", ["average", "gem", "stripes"])
def test_every_kind_of_backbone_can_be_pooled(name: str, pooling: Any) -> None:
    config = ModelConfig(name, embedding=16, pooling=pooling, parts=2)
    embedder = Embedder(config, SIZE)
    loss = embedder(torch.randint(256, (4, 3, *SIZE), dtype=torch.uint8)).square().sum()
    loss.backward()
    assert all(p.grad is not None for n, p in embedder.named_parameters() if n != "neck.bias")
    again = Embedder(config, SIZE)
    again.load_state_dict(embedder.state_dict())


def test_a_class_token_is_the_first_of_a_vision_transformer() -> None:
    torch.manual_seed(0)
    token, features = build_pooled("timm/test_vit", "", 2, SIZE, "token", 1)
    average, _ = build_pooled("timm/test_vit", "", 2, SIZE, "average", 1)
    average.get_submodule("0.model").load_state_dict(token.state_dict())
    tokens = token.eval().forward_features(images())  # type: ignore[operator]
    assert tokens.shape == (2, 1 + 4 * 2, features)
    torch.testing.assert_close(token(images()), tokens[:, 0])
    torch.testing.assert_close(average.eval()(images()), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("name", ["small", "resnet18", "timm/test_resnet", "timm/test_vit2", "usermodels:backbone"])
def test_backbones_without_a_class_token_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="no class token"):
        build_pooled(name, "", 2, SIZE, "token", 1)


def test_what_cannot_be_pooled_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"return no map to pool: usermodels:fixed; leave --model\.pooling out"):
        build_pooled("usermodels:fixed", "", 2, SIZE, "gem", 1)
    config = ModelConfig("resnet18", pooling="stripes", parts=3)
    with pytest.raises(InputError, match=r"3 stripes of a feature map of 2 rows: lower --model\.parts") as error:
        try_model("resnet18", "", lambda: Embedder(config), torch.zeros(2, 3, *SIZE), always=True)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"give --model\.parts of 1 or more"):
        ModelConfig(parts=0)


def test_a_last_stride_of_one_gives_stripes_more_rows() -> None:
    module, features = build_pooled("resnet18", "", 1, SIZE, "stripes", 4)
    assert features == 4 * 512
    assert module(images()).shape == (2, features)
