"""Degradations are pure and seeded, and each does what its name says."""

import numpy as np
import pytest

from datasets.layouts.degrade import DEGRADATIONS, Degradation, degrade

RAMP = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
CHECKED = (np.indices((48, 64)).sum(axis=0) % 8 < 4)[..., None].repeat(3, axis=2).astype(np.uint8) * 255


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_same_for_the_same_seed_and_name_alone(kind: Degradation) -> None:
    before = RAMP.copy()
    out = degrade(RAMP, kind, 1, "a.png")
    assert (before == RAMP).all()
    assert out.dtype == np.uint8
    assert out.shape == RAMP.shape
    assert (out == degrade(RAMP, kind, 1, "a.png")).all()
    assert (out != degrade(RAMP, kind, 2, "a.png")).any()
    assert (out != degrade(RAMP, kind, 1, "b.png")).any()


def test_each_does_what_its_name_says() -> None:
    for seed in range(5):
        made = {kind: degrade(CHECKED, kind, seed, "x").astype(float) for kind in DEGRADATIONS}
        assert made["fog"].std() < 0.7 * CHECKED.std()
        assert made["fog"].min() > 60
        assert made["night"].mean() < 0.5 * CHECKED.mean()
        edges = np.abs(np.diff(made["blur"], axis=1)).max()
        assert edges < 255
        assert made["blur"].mean() == pytest.approx(CHECKED.mean(), rel=0.05)
        assert made["stain"][CHECKED == 255].min() > 250  # what takes no stain stays white
    for seed in range(5):  # twice the strength, and more of it
        weak, strong = ({kind: degrade(CHECKED, kind, seed, "x", s).astype(float) for kind in DEGRADATIONS} for s in (1.0, 2.0))
        for kind in ("fog", "blur"):
            assert strong[kind].std() < 0.9 * weak[kind].std()
        assert strong["night"].mean() < 0.7 * weak["night"].mean()
    pink = np.full((4, 4, 3), (220, 120, 160), np.uint8)
    changes = [np.abs(degrade(pink, "stain", 0, "x", strength).astype(int) - pink).max() for strength in (1.0, 2.0)]
    assert changes[1] > changes[0] > 10
