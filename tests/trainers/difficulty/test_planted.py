"""Look-alikes planted in a data set head the difficulty vector after training, and are drawn as often as the formulas say."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import chisquare

from cluster.config import ClusterConfig
from datasets.difficulty import Difficulty
from datasets.loading.batches import LoaderConfig
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from datasets.sampling.sampler import Sampler, SamplerConfig, probabilities
from datasets.shards.index import Split, read_index, split_of
from trainers.difficulty.vector import difficulty
from trainers.engine.checkpoint import read_state
from trainers.engine.optim import OptimConfig
from trainers.engine.training import STATE
from trainers.reid import Train

IDENTITIES, EACH, DRAWS, STEPS = 24, 12, 400, 160
TWINS = ((0, 1), (2, 3))  # the second of each differs from the first in one small corner only
SIGNIFICANCE = 1e-4
pytestmark = pytest.mark.xdist_group("planted")  # one process trains the model that all tests look at


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (IDENTITIES, 8, 8, 3), dtype=np.uint8)
    for first, second in TWINS:
        faces[second] = faces[first]
        faces[second, 6:, 6:] = 255 - faces[first, 6:, 6:]
    for identity, face in enumerate(faces):
        home = folder / f"{identity:02d}"
        home.mkdir(parents=True)
        for number in range(EACH):
            noisy = cv2.resize(face, (32, 32), interpolation=cv2.INTER_NEAREST) + rng.normal(0, 25, (32, 32, 3))
            cv2.imwrite(str(home / f"{number}.png"), noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Difficulty]:
    """The set, and the difficulty vector of a model trained on it."""
    folder = tmp_path_factory.mktemp("planted")
    write_images(folder / "images")
    pack("folders", folder / "images", str(folder / "shards"), Options(held_out=0))
    train = Train(
        data=(str(folder / "shards"),), runs=str(folder), name="run", loader=LoaderConfig(workers=0, size=(32, 32)),
        augment=AugmentConfig(flip=False), sampler=SamplerConfig(batch=48, interval=20, lag=5),
        optim=OptimConfig(steps=STEPS, warmup=10), cluster=ClusterConfig(local=True),
    )  # fmt: skip
    train.run()
    state = read_state(folder / "run" / f"step-{STEPS:08d}" / STATE)["task"]
    cosine, nearest = difficulty(state["head.loss.W"].T)
    return split_of(read_index(*train.data), "train"), Difficulty(1, cosine.numpy(), nearest[:, None].numpy())


def drawn(split: Split, version: Difficulty, config: SamplerConfig) -> np.ndarray:
    """The labels of the DRAWS batches from the first version on, [DRAWS, B]."""
    sampler, first = Sampler(config, split, seed=7), config.mixed_from
    return np.stack([split.labels_of(sampler.draw(step, version)) for step in range(first, first + DRAWS)])


def test_the_twins_head_the_vector_and_find_each_other(planted: tuple[Split, Difficulty]) -> None:
    split, version = planted
    hardest = np.argsort(-version.cosine)[:4]
    assert {split.names[i] for i in hardest} == {f"{i:02d}" for pair in TWINS for i in pair}
    for a, b in TWINS:
        assert (version.nearest[a], version.nearest[b]) == (b, a)


def test_strategy_a_gives_the_hardest_their_share(planted: tuple[Split, Difficulty]) -> None:
    split, version = planted
    config = SamplerConfig(kind="hardest", batch=32, hardest=2, uniform_share=0.5)
    labels = drawn(split, version, config)
    hardest = np.argsort(-version.cosine, kind="stable")[:2]
    counts = np.bincount(labels.ravel(), minlength=IDENTITIES)
    counts[hardest] -= 8 * DRAWS  # half of the batch is theirs, and each has half of that
    assert (
        counts.max() - counts.min() <= EACH
    )  # the other half comes from shuffled epochs: even, but for the first and the last one


def test_strategy_b_draws_by_the_formula(planted: tuple[Split, Difficulty]) -> None:
    split, version = planted
    config = SamplerConfig(kind="proportional", batch=32, uniform_share=0.0, instances=4, temperature=1)
    labels = drawn(split, version, config)[:, ::4].ravel()
    expected = probabilities(version.cosine, config)
    np.testing.assert_allclose(expected, np.maximum(version.cosine, 0) / np.maximum(version.cosine, 0).sum(), rtol=1e-6)
    seen = np.bincount(labels, minlength=IDENTITIES)
    possible = expected > 0
    assert not seen[~possible].any()
    assert chisquare(seen[possible], expected[possible] * len(labels)).pvalue > SIGNIFICANCE
    assert seen[np.argmax(version.cosine)] > len(labels) / IDENTITIES


def test_strategy_c_brings_the_nearest_with_each(planted: tuple[Split, Difficulty]) -> None:
    split, version = planted
    config = SamplerConfig(kind="pairs", batch=32, uniform_share=0.0, instances=2, temperature=1)
    pairs = drawn(split, version, config)[:, ::2].reshape(-1, 2)
    assert np.array_equal(pairs[:, 1], version.nearest[pairs[:, 0]])
    expected = probabilities(version.cosine, config)
    possible = expected > 0
    seen = np.bincount(pairs[:, 0], minlength=IDENTITIES)
    assert chisquare(seen[possible], expected[possible] * len(pairs)).pvalue > SIGNIFICANCE
