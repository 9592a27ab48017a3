"""What the comparison of samplers makes of its runs."""

import json
import math
from pathlib import Path

import pytest
from benchmarks.claim_reid import measured, median_interval, reached, row

from datasets.errors import InputError
from trainers.engine.config import to_json
from trainers.reid import Train


def run(*of_mean_ap: float) -> list[dict[str, float]]:
    return [{"step": 100.0 * (i + 1), "mAP": value, "rank1": value} for i, value in enumerate(of_mean_ap)]


def test_the_step_at_which_a_goal_is_reached() -> None:
    figures = run(0.1, 0.3, 0.2, 0.4)
    assert reached(figures, 0.05) == pytest.approx(50)
    assert reached(figures, 0.2) == pytest.approx(150)
    assert reached(figures, 0.3) == pytest.approx(200)
    assert reached(figures, 0.35) == pytest.approx(375)
    assert reached(figures, 0.41) == math.inf


def test_the_median_has_an_interval_from_six_values_on() -> None:
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 0.0, math.inf)
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0, math.inf]) == (3.5, 1.0, math.inf)
    assert median_interval([float(i) for i in range(9)]) == (4.0, 1.0, 7.0)  # 96.1%: 1 - 2 (1 + 9) / 2^9


def test_an_arm_is_paired_with_the_first_seed_by_seed() -> None:
    first, other = [run(0.2, 0.4)] * 6, [run(0.4, 0.5)] * 6
    assert row("other", other, first)[3:] == ["10.0 ± 0.0", "0.50 (0.50 to 0.50)"]
    assert row("other", first, other)[4] == "never (never to never)"


def test_runs_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    config = Train(data="nowhere", seed=4)
    (tmp_path / "pk-4.json").write_text(json.dumps({"settings": json.loads(to_json(config)), "figures": run(0.5)}))
    assert measured(config, "pk", tmp_path) == run(0.5)
    with pytest.raises(InputError, match="other settings"):
        measured(Train(data="elsewhere", seed=4), "pk", tmp_path)
