"""Stages: when one ends, and that a resumed run ends it at the same step."""

import json

import pytest
import torch
from ranks import on_ranks

from datasets.errors import InputError
from trainers.engine.optim import OptimConfig, OptimiserConfig
from trainers.tasks.attributes.curriculum import CHECK, DECAY, StageConfig, StageLog

STAGE = StageConfig(threshold=0.5, least=20, most=100)


def falling(step: int) -> torch.Tensor:
    return torch.tensor(2.0 * 0.96**step)


def end_of(log: StageLog, stage: StageConfig, start: int = 0) -> int:
    return next(step + 1 for step in range(start, 10_000) if log.add(falling(step), stage))


def entered() -> StageLog:
    log = StageLog({}, None)
    log.enter(0)
    return log


def test_a_stage_ends_under_its_threshold() -> None:
    log = entered()
    steps = end_of(log, STAGE)
    mean = sum((1 - DECAY) * DECAY ** (steps - 1 - i) * 2.0 * 0.96**i for i in range(steps)) / (1 - DECAY**steps)
    assert log.smoothed == pytest.approx(mean)
    assert log.smoothed < 0.5
    assert steps % CHECK == 0
    assert "is under 0.5" in log.entries[0]["ended"]


@pytest.mark.parametrize(("stage", "steps", "reason"), [
    (StageConfig(threshold=0.5, least=95, most=100), 100, "is under 0.5"),
    (StageConfig(threshold=1e-6, least=1, most=33), 33, "without its smoothed loss of"),
    (StageConfig(threshold=0, least=1, most=7), 7, "it reached its 7 steps"),
    (StageConfig(threshold=100, least=1, most=50), CHECK, "is under 100"),
])  # fmt: skip
def test_least_and_most_steps(stage: StageConfig, steps: int, reason: str) -> None:
    log = entered()
    assert end_of(log, stage) == steps
    assert reason in log.entries[0]["ended"]


def test_a_loss_below_zero_ends_no_stage_without_a_threshold() -> None:
    """A loss with learned weights falls below zero."""
    log, stage = entered(), StageConfig(threshold=0, least=1, most=40)
    assert next(step + 1 for step in range(100) if log.add(torch.tensor(-1.0), stage)) == 40


def test_a_stage_resumed_with_fewer_steps_than_it_had_is_over() -> None:
    log = entered()
    for step in range(13):
        assert not log.add(falling(step), STAGE)
    log.settle()
    log.cut(StageConfig(least=1, most=14))
    assert not log.over
    log.cut(StageConfig(least=1, most=13))
    assert log.entries[0]["ended"] == "it had 13 steps when its most became 13"


@pytest.mark.parametrize("interrupted", [1, 10, 13, 37])
def test_a_resumed_stage_ends_where_it_would_have(interrupted: int) -> None:
    whole = entered()
    end = end_of(whole, STAGE)
    notes: dict[str, object] = {}
    log = StageLog(notes, None)
    log.enter(0)
    for step in range(interrupted):
        assert not log.add(falling(step), STAGE)
    log.settle()
    again = StageLog(json.loads(json.dumps(notes)), None)
    assert (again.now, again.first, again.over) == (0, 0, False)
    assert end_of(again, STAGE, interrupted) == end
    assert again.entries == whole.entries


def ends_on(rank: int) -> list[float]:
    log = StageLog({}, torch.distributed.group.WORLD)
    log.enter(0)
    steps = next(s + 1 for s in range(100) if log.add(falling(s) * (0.5 if rank else 1.5), STAGE))
    return [steps, log.smoothed]


def test_ranks_of_different_losses_end_together() -> None:
    log = entered()
    alone = [end_of(log, STAGE), log.smoothed]
    ranks = on_ranks(2, ends_on)
    assert ranks[0] == ranks[1] == pytest.approx(alone)


def test_what_is_no_stage_is_refused() -> None:
    for wrong in ({"least": 0}, {"least": 10, "most": 9}, {"threshold": -1.0}, {"threshold": float("inf")}):
        with pytest.raises(InputError, match="stage"):
            StageConfig(**wrong)  # type: ignore[arg-type]


def test_the_stage_says_how_the_loop_trains() -> None:
    optim = StageConfig(most=80, lr=0.5, warmup=4).optim(OptimiserConfig(kind="sgd", weight_decay=0.1, amp=False))
    assert optim == OptimConfig(steps=80, kind="sgd", lr=0.5, warmup=4, weight_decay=0.1, amp=False)
