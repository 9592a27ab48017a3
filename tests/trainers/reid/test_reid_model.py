from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.model import Embedder, ModelConfig, ReidTask


def images(batch: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def batch_of(labels: list[int]) -> dict[str, Tensor]:
    return {"images": images(len(labels)), "labels": torch.tensor(labels)}


def task(head: HeadConfig | None = None, identities: int = 4, pair: PairConfig | None = None, **model: Any) -> ReidTask:
    torch.manual_seed(0)
    return ReidTask(ModelConfig(embedding=16, **model), head or HeadConfig(), identities, pair=pair or PairConfig())


@pytest.mark.parametrize("backbone", ["hardshard_small_v2", "shufflenet_v2_x0_5"])
def test_features_have_the_embeddings_width(backbone: str) -> None:
    embedder = Embedder(ModelConfig(backbone, embedding=24)).eval()
    before, after = embedder.features(images(3, 64, 32))
    assert before.shape == after.shape == (3, 24)
    assert torch.equal(embedder(images(3, 64, 32)), after)


def test_bytes_and_floats_are_the_same_images() -> None:
    embedder = Embedder(ModelConfig(embedding=16)).eval()
    assert torch.equal(embedder(images(2)), embedder(images(2).float()))


def test_pixels_are_normalised_as_imagenets() -> None:
    embedder = Embedder(ModelConfig(embedding=16)).eval()
    seen: list[Tensor] = []
    embedder.backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    embedder(torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    expected = torch.tensor([(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(seen[0][0, :, 5, 7], expected)


def test_the_neck_centres_a_training_batch_and_keeps_its_bias_at_zero() -> None:
    model = task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(batch_of([0, 1, 2, 3]))["loss"].backward()
    optimizer.step()
    _, after = model.embedder.features(images(8))
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(16), rtol=0, atol=1e-5)
    assert not model.embedder.neck.bias.any()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_neighbours_are_those_of_the_largest_cosines(k: int) -> None:
    model = task(identities=30)
    cosines, numbers = model.neighbours(k, None)
    rows = model.classifier.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    plain = rows @ rows.T
    np.fill_diagonal(plain, -2)
    expected = np.argsort(-plain, axis=1)[:, :k]
    np.testing.assert_array_equal(numbers.numpy(), expected)
    np.testing.assert_allclose(cosines.numpy(), np.take_along_axis(plain, expected, 1), atol=1e-6)


def test_dropout_acts_in_training_alone() -> None:
    embedder = Embedder(ModelConfig(embedding=16, dropout=0.9)).eval()
    assert torch.equal(embedder(images(2)), embedder(images(2)))
    embedder.dropout.train()
    assert not torch.equal(embedder(images(2)), embedder(images(2)))


@pytest.mark.parametrize("kind", ["softmax", "sphereface", "cosface", "arcface", "adaface"])
def test_every_parameter_gets_a_gradient(kind: Any) -> None:
    model = task(HeadConfig(kind))
    result = model(batch_of([0, 1, 2, 3, 0, 1]))
    result["loss"].backward()
    assert set(result) == {"loss", "accuracy", "head_loss"}
    assert torch.equal(result["loss"], result["head_loss"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # DDP waits for all of them
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_pair_loss_is_added_by_its_weight() -> None:
    model = task(pair=PairConfig("triplet", weight=0.5, margin=5.0))
    result = model(batch_of([0, 0, 1, 1]))
    torch.testing.assert_close(result["loss"], result["head_loss"] + 0.5 * result["pair_loss"])
    assert result["pair_loss"] > 0
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]


def test_without_a_weight_the_pair_loss_follows_the_heads_scale() -> None:
    model = task(HeadConfig("cosface", scale=5.0), pair=PairConfig("soft_triplet"))
    result = model(batch_of([0, 0, 1, 1]))
    torch.testing.assert_close(result["loss"], result["head_loss"] + 0.25 * result["pair_loss"])


def test_triplets_are_taken_before_the_neck_and_the_head_after_it() -> None:
    model = task(pair=PairConfig("triplet"))
    batch = batch_of([0, 0, 1, 1])
    before, after = model.embedder.features(batch["images"])
    result = model(batch)
    assert model.pair is not None
    torch.testing.assert_close(result["pair_loss"], model.pair(before, before, batch["labels"])[0].detach())
    torch.testing.assert_close(result["head_loss"], model.head(after, batch["labels"])[0].detach())


def test_accuracy_is_the_fraction_of_own_rows_that_score_highest() -> None:
    model = task(HeadConfig("cosface"), identities=3).eval()
    with torch.no_grad():
        model.head.rows.copy_(torch.eye(16)[:3])
        model.head.rows[1] = model.embedder(images(4)).mean(dim=0)
        scores = torch.nn.functional.normalize(model.embedder(images(4))) @ model.classifier.T
        predicted = (scores / model.classifier.norm(dim=1)).argmax(dim=1).tolist()
    labels = [*predicted[:3], (predicted[3] + 1) % 3]
    assert model(batch_of(labels))["accuracy"].item() == 0.75


@pytest.mark.parametrize("kind", ["softmax", "cosface"])
def test_the_classifier_follows_training(kind: Any) -> None:
    model = task(HeadConfig(kind), identities=5)
    rows = model.classifier
    was = rows.clone()
    model(batch_of([0, 1, 2, 3]))["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert rows.shape == (5, 16)
    assert not rows.requires_grad
    assert not torch.equal(rows, was)
    assert torch.equal(rows, model.classifier)


def test_autocast_keeps_the_loss_in_float32() -> None:
    model = task(pair=PairConfig("triplet"))
    with torch.autocast("cpu", torch.bfloat16):
        result = model(batch_of([0, 0, 1, 1]))
    result["loss"].backward()
    assert {value.dtype for value in result.values()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_few_steps_learn_the_batch() -> None:
    model = task(HeadConfig(scale=16.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = batch_of([0, 1, 2, 3, 0, 1, 2, 3])
    first = model(batch)["loss"].item()
    for _ in range(15):
        optimizer.zero_grad()
        result = model(batch)
        result["loss"].backward()
        optimizer.step()
    assert result["loss"].item() < first / 4
    assert result["accuracy"].item() == 1


def test_the_state_goes_from_one_task_to_another() -> None:
    source, target = task(), ReidTask(ModelConfig(embedding=16), HeadConfig(), 4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.eval()(batch_of([0, 1]))["loss"], target.eval()(batch_of([0, 1]))["loss"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet51"}, "unknown backbone: resnet51"),
        ({"weights": "DEFAULT"}, "no weights"),
        ({"last_stride": 1}, "for resnets"),
        ({"embedding": 0}, "at least one feature: 0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"dropout": -0.1}, "dropout must be"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**fields)
