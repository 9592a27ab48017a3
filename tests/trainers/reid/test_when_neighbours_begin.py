"""When a draw by neighbours begins: decided by the share of hard images in batches of random identities."""

from typing import Any

import pytest

from datasets.sampling.sampler import SamplerConfig
from trainers.tasks.reid.difficulty import RECENT, neighbours_begin

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
