"""When a draw by neighbours begins: decided by the share of hard images in batches of random identities."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

from datasets.sampling.sampler import SamplerConfig
from trainers.engine.loop import Step
from trainers.tasks.reid.difficulty import RECENT, measure_difficulty, neighbours_begin
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.model import ModelConfig, ReidTask

CONFIG = SamplerConfig("neighbours", begin_below=0.5)


def begun(shares: list[float], config: SamplerConfig = CONFIG) -> list[bool]:
    """The decisions of a run whose versions measure these shares."""
    measured: list[dict[str, Any]] = []
    for share in shares:
        note = {"hard": share}
        measured.append({**note, "begun": neighbours_begin(config, [*measured, note])})
    return [version["begun"] for version in measured]


def test_they_begin_when_the_mean_of_the_last_versions_is_below_the_threshold_and_stay() -> None:
    assert RECENT == 4
    assert begun([0.9, 0.8, 0.6, 0.4, 0.19, 0.9, 1.0]) == [False] * 4 + [True] * 3  # 0.675, then 0.4975
    assert begun([0.9, 0.8, 0.6, 0.4, 0.21]) == [False] * 5  # 0.5025


def test_one_low_batch_is_not_enough() -> None:
    assert begun([0.9, 0.7, 0.1, 0.7, 0.7, 0.7]) == [False] * 6


@pytest.mark.parametrize("first", [0.0, 0.49])
def test_the_first_version_may_be_the_one(first: float) -> None:
    assert begun([first, 1.0]) == [True, True]


def test_they_begin_at_once_where_asked_to() -> None:
    assert begun([1.0, 1.0], SamplerConfig("neighbours", begin_below=1.1)) == [True, True]


def test_other_draws_and_runs_without_a_pair_loss_do_not_wait() -> None:
    assert begun([1.0, 1.0], SamplerConfig("proportional")) == [True, True]
    assert neighbours_begin(CONFIG, [{"step": 50}])


def measured_on_two_ranks(rank: int) -> tuple[Any, ...]:
    """A version's measurement on each rank, while the look-alikes wait, then when they have begun."""
    torch.manual_seed(0)
    task = ReidTask(ModelConfig(embedding=8), HeadConfig(), 9, dist.group.WORLD)
    run: Any = SimpleNamespace(  # what `measure_difficulty` uses of a run; the real one needs a cluster for two ranks
        config=SimpleNamespace(sampler=SamplerConfig("neighbours", batch=16, anchors=1, instances=4)),
        worker=SimpleNamespace(group=dist.group.WORLD), log=SimpleNamespace(notes={}),
    )  # fmt: skip
    found = []
    for done, share in ((50, 0.5 + rank / 4), (100, 0.0), (150, 0.0), (200, 0.0)):
        step = Step(done, {}, {"hard": torch.tensor(share)}, 0.0, 0.0)
        difficulty = measure_difficulty(run, task, step)
        assert step.results["hard"].item() == share  # the records' means use it, too
        found.append((difficulty.begun, run.log.notes["difficulty"][-1]["hard"]))
    return tuple(found)


def test_all_ranks_decide_alike() -> None:
    first, second = on_ranks(2, measured_on_two_ranks)
    assert first == second == ((False, 0.625), (False, 0.0), (False, 0.0), (True, 0.0))  # means: 0.625, 0.31, 0.21, 0.16
