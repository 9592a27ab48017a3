"""Re-ID's comparison: its figures by hand, its arms' settings, and a comparison of two arms over two seeds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.pack import Options, pack
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.optim import OptimConfig
from trainers.reid import Compare, Train
from trainers.tasks.reid.comparison import PAIR_LOSSES, SAMPLERS, Figures, arm_of, median_interval, ratio, reached, row
from trainers.tasks.reid.config import ReidConfig
from trainers.tasks.reid.head_config import PairConfig


def figures(*of_mean_ap: float) -> Figures:
    return [{"step": 100.0 * (i + 1), "mAP": value, "rank1": value} for i, value in enumerate(of_mean_ap)]


def test_the_step_at_which_a_goal_is_reached() -> None:
    run = figures(0.1, 0.3, 0.2, 0.4)
    assert reached(run, 0.05) == pytest.approx(50)
    assert reached(run, 0.2) == pytest.approx(150)
    assert reached(run, 0.3) == pytest.approx(200)
    assert reached(run, 0.35) == pytest.approx(375)
    assert reached(run, 0.41) == math.inf


def test_the_median_has_an_interval_from_six_values_on() -> None:
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 0.0, math.inf)
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0, math.inf]) == (3.5, 1.0, math.inf)
    assert median_interval([float(i) for i in range(9)]) == (4.0, 1.0, 7.0)  # 96.1%: 1 - 2 (1 + 9) / 2^9


def test_a_ratio_shows_its_interval_where_there_is_one() -> None:
    assert ratio([0.5, 0.7, 0.6]) == "0.60"
    assert ratio([0.5, 0.7, 0.6, 0.5, 0.7, math.inf]) == "0.65 (0.50 to never)"


def test_an_arm_is_paired_with_the_first_seed_by_seed() -> None:
    first, other = [figures(0.2, 0.4)] * 6, [figures(0.4, 0.5)] * 6
    assert row("other", other, first)[3:] == ["10.0 ± 0.0", "0.50 (0.50 to 0.50)"]
    assert row("other", first, other)[4] == "never (never to never)"
    assert row("first", first, first) == ["first", "40.0 ± 0.0", "40.0 ± 0.0", "", ""]


def test_an_arm_changes_its_sampler_or_its_loss_alone() -> None:
    base = ReidConfig(sampler=SamplerConfig(batch=32, interval=7))
    for name, settings in SAMPLERS.items():
        changed = replace(base, **arm_of(base, name))
        assert replace(changed, sampler=base.sampler) == base
        assert all(getattr(changed.sampler, setting) == value for setting, value in settings.items())
        assert (changed.sampler.batch, changed.sampler.interval) == (32, 7)
    assert arm_of(base, "arcface") == {"head": replace(base.head, kind="arcface")}
    base = replace(base, pair=PairConfig(weight=0.5))
    for kind in PAIR_LOSSES:
        changed = replace(base, **arm_of(base, kind))
        assert (changed.pair, changed.sampler.kind) == (PairConfig(kind, weight=0.5), "pk")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two shard sets of twelve people: one with a third of them held out, one with none."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for person in range(12):
        (folder / "images" / f"{person:02d}").mkdir(parents=True)
        look = rng.integers(0, 256, (16, 16, 3))
        for number in range(8):
            noisy = (look + rng.normal(0, 120, look.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / "images" / f"{person:02d}" / f"{number}.png"), noisy)
    for name, fraction in (("some", 0.34), ("none", 0.0)):
        pack("folders", folder / "images", str(folder / name), Options(held_out=fraction))
    return str(folder / "some"), str(folder / "none")


def comparison(data: str, runs: Path) -> Compare:
    train = Train(
        data=(data,), runs=str(runs), name="compare", evaluate_every=2, checkpoint_every=2, record_every=2,
        sampler=SamplerConfig(batch=16, interval=2, lag=1), loader=LoaderConfig(workers=0, size=(16, 16)),
        optim=OptimConfig(steps=4, warmup=1), cluster=ClusterConfig(local=True),
    )  # fmt: skip
    return Compare(train, ("uniform", "pairs"), (3, 5))


def test_a_comparison_trains_prints_its_table_and_reads_ended_runs(
    people: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison(people[0], tmp_path).run()
    out = capsys.readouterr().out
    assert "2 seeds, 95% intervals" in out
    assert "mAP - uniform, paired" in out
    document = json.loads((tmp_path / "compare" / "comparison.json").read_text())
    assert document["seeds"] == [3, 5]
    assert {arm: [[e["step"] for e in run] for run in runs] for arm, runs in document["figures"].items()} == {
        "uniform": [[2, 4]] * 2,
        "pairs": [[2, 4]] * 2,
    }
    for arm in ("uniform", "pairs"):
        for seed in (3, 5):
            config = json.loads((tmp_path / f"compare-{arm}-{seed}" / "config.json").read_text())
            assert (config["sampler"]["kind"], config["seed"]) == (arm, seed)
    monkeypatch.setattr(Train, "run", None)  # nothing may be trained again
    comparison(people[0], tmp_path).run()
    assert json.loads((tmp_path / "compare" / "comparison.json").read_text()) == document
    again = capsys.readouterr().out
    assert again.splitlines()[-1].startswith("figures of all runs: ")
    assert [line for line in again.splitlines() if "pairs" in line][-1] in out
    changed = comparison(people[0], tmp_path)
    with pytest.raises(InputError, match=r"another optim\.lr"):
        replace(changed, train=replace(changed.train, optim=OptimConfig(steps=4, warmup=1, lr=0.5))).run()


def test_a_comparison_needs_something_held_out(people: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was held out to compare by"):
        comparison(people[1], tmp_path).run()
