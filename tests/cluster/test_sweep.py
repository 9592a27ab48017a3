"""Sweeps on real Ray Tune: a failed trial does not end the sweep, and a finished sweep returns its results again."""

import math
import os
import secrets
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray import tune

from cluster.errors import ClusterError, StoppedError
from cluster.sweep import SweepConfig, sweep
from trainers.engine.run import Run
from trainers.engine.tensorboard import Scalars, close_scalars

pytestmark = pytest.mark.usefixtures("cluster")


def run(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """A trial without training: its score is its setting; some settings fail."""
    if settings["x"] == 2:
        raise ClusterError("x is 2", "here", "choose another")
    if settings["x"] == 3:
        raise RuntimeError("broken")
    if settings["x"] != 4:  # as a run that had finished before: it returns without reports
        tune.report({"score": settings["x"] + 0.1, "step": 10})
    return {"score": settings["x"] + 0.2, "score/x": settings["x"], "step": 20}


def test_failed_trials_are_reported_and_do_not_end_the_sweep(tmp_path: Path) -> None:
    space = {"x": tune.grid_search([1, 2, 3, 4])}
    config = SweepConfig(trials=1, concurrent=2, grace=10)
    trials = sweep(run, space, config, name="s", runs=str(tmp_path), steps=20, resume=False)
    found = {trial.settings["x"]: trial for trial in trials}
    assert {x: (t.score, t.step) for x, t in found.items() if not t.failure} == {1: (1.2, 20), 4: (4.2, 20)}
    assert (found[1].made_of, found[2].made_of) == ({"x": 1}, {})
    assert found[2].failure == "x is 2: here; choose another"
    assert "broken" in found[3].failure
    assert math.isnan(found[2].score)
    assert math.isnan(found[3].score)
    assert all(trial.name.startswith("s-") for trial in trials)
    again = sweep(run, space, config, name="s", runs=str(tmp_path), steps=20, resume=True)
    assert {t.name: t.score for t in again if not t.failure} == {t.name: t.score for t in trials if not t.failure}


def test_no_key_of_s3_is_written_by_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune would put the keys in the driver's environment into its trials' runtime environments, which Ray logs."""
    planted = {
        name: f"planted-{secrets.token_hex(8)}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    sweep(run, {"x": tune.grid_search([4])}, SweepConfig(trials=1), name="s", runs=str(tmp_path), steps=20, resume=False)
    session = Path(tempfile.gettempdir()) / "ray" / ray.get_runtime_context().get_session_name()
    written = [file.read_bytes() for folder in (session, tmp_path) for file in folder.rglob("*") if file.is_file()]
    assert any(b"PL_DISABLE_FORK" in data for data in written)  # of the same runtime environment
    assert [value for value in planted.values() if any(value.encode() in data for data in written)] == []


def shows(runs: str, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """A trial that shows a record, reports, and takes long to end."""
    with Scalars(Run(runs, name)) as scalars:
        scalars.add({"step": 10, "loss": settings["x"]})
        tune.report({"score": settings["x"], "step": 10})
        time.sleep(0.1 if settings["x"] == 2 else 8)
    return {"score": settings["x"], "step": 20}


@pytest.mark.slow
def test_a_trial_that_is_stopped_early_keeps_its_scalars_in_s3(s3_url: str) -> None:
    what = {"space": {"x": tune.grid_search([2, 1])}, "config": SweepConfig(1, concurrent=1, grace=10, reduction=2)}
    trials = sweep(
        partial(shows, s3_url), name="s", runs=s3_url, steps=20, resume=False, stopping=close_scalars, **what  # type: ignore[arg-type]
    )  # fmt: skip
    assert [(trial.score, trial.step) for trial in trials] == [(2, 20), (1, 10)]
    for trial in trials:
        assert len(Run(s3_url, trial.name).objects.sizes("tensorboard/")) == 1


def waits(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """A trial that leaves a file when it begins."""
    (folder / "began").touch()
    time.sleep(2)
    return {"score": settings["x"], "step": 20}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Tune's open files
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, StoppedError)])
def test_a_signal_ends_a_sweep_and_it_can_be_resumed(number: int, error: type[BaseException], tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    what = {"run": partial(waits, tmp_path), "space": {"x": tune.grid_search([1, 2])}, "config": SweepConfig(1, concurrent=1)}
    where = {"name": "s", "runs": str(tmp_path / "runs"), "steps": 20}
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(error):
        sweep(**what, **where, resume=False)  # type: ignore[arg-type]
    trials = sweep(**what, **where, resume=True)  # type: ignore[arg-type]
    assert sorted(trial.score for trial in trials) == [1, 2]


def hill(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """A trial that leaves a file of its name when it begins; its score is highest at 0.01."""
    (folder / name).touch()
    time.sleep(0.5)
    return {"score": -abs(math.log10(settings["x"]) + 2), "step": 20}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Tune's open files
def test_an_interrupted_sweep_by_optuna_proposes_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    began = tmp_path / "began"
    began.mkdir()

    def interrupt() -> None:
        while len(list(began.iterdir())) < 4:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    config = SweepConfig(trials=12, concurrent=1, grace=100, search="optuna", seed=1)  # two more than Optuna draws at random
    what = {"run": partial(hill, began), "space": {"x": tune.loguniform(1e-4, 1)}, "config": config}
    where = {"name": "s", "runs": str(tmp_path / "runs"), "steps": 20}
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(**what, **where, resume=False)  # type: ignore[arg-type]
    trials = sweep(**what, **where, resume=True)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1), direction="maximize")
    wanted = []
    for _ in range(12):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(1e-4, 1, log=True)})
        wanted.append(trial.params["x"])
        study.tell(trial, -abs(math.log10(trial.params["x"]) + 2))
    assert sorted(trial.settings["x"] for trial in trials) == sorted(wanted)
    assert not any(trial.failure for trial in trials)


def test_wrong_settings_of_a_sweep_are_refused() -> None:
    for wrong in ({"trials": 0}, {"concurrent": 0}, {"reduction": 1}, {"grace": 0}):
        with pytest.raises(ClusterError, match="at least"):
            SweepConfig(**wrong)
