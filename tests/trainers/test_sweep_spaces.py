"""What a sweep draws: every trial is a valid config of the job, and what is switched off stays off."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from trainers import attributes, detection
from trainers.engine.config import changed
from trainers.sweep import SPACES
from trainers.tasks.attributes.curriculum import StageConfig
from trainers.tasks.attributes.losses import TASKS, Weights
from trainers.tasks.detection.adaptation import AlignConfig

STAGES = ("stage1", "stage2", "stage3")
weights = st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=len(TASKS), max_size=len(TASKS))
stages = st.builds(
    lambda values, least, more, lr: attributes.Stage(least=least, most=least + more, lr=lr, weights=Weights(*values)),
    weights, st.integers(1, 9), st.integers(0, 9), st.sampled_from([1e-4, 0.1]),
)  # fmt: skip


def drawn(space: dict[str, Any]) -> dict[str, Any]:
    return {name: domain.sample() for name, domain in space.items()}


@settings(max_examples=40)
@given(st.lists(stages, min_size=3, max_size=3), st.booleans())
def test_every_trial_of_a_face_job_is_valid_and_a_weight_of_0_stays_0(of: list[attributes.Stage], alike: bool) -> None:
    base = attributes.Train(**dict(zip(STAGES, of[:1] * 3 if alike else of, strict=True)))
    trial = changed(base, drawn(SPACES["attributes"](base)))
    for name in STAGES:
        for task in TASKS:
            was, now = (getattr(getattr(config, name).weights, task) for config in (base, trial))
            assert was / 3 <= now <= was * 3 * (1 + 1e-9)
            assert not alike or now == getattr(trial.stage1.weights, task)
        was, now = getattr(base, name), getattr(trial, name)
        assert max(was.least, was.most // 2) <= now.most <= was.most * 3 // 2
        assert was.lr / 4 <= now.lr <= was.lr * 4 * (1 + 1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_every_trial_of_a_detection_job_is_valid_and_a_strength_of_0_stays_0(strength: float) -> None:
    base = replace(detection.Train(), align=AlignConfig(strength=strength))
    for _ in range(10):
        trial = changed(base, drawn(SPACES["detection"](base)))
        assert (trial.align.strength == 0) == (strength == 0)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("inf")}, {"lr": float("nan")}, {"warmup": -1}])
def test_a_stage_that_no_optimiser_takes_is_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="learning rate"):
        StageConfig(**wrong)  # type: ignore[arg-type]
