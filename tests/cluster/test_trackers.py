"""Sweeps that report to MLflow (a local database) and to W&B (offline): each trial is one run there, also after a resume."""

from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from cluster import trackers
from cluster.errors import ClusterError
from cluster.sweep import SweepConfig, sweep
from cluster.sweep import Trial as Result

KEY = "0123456789abcdef0123456789abcdef01234567"


def run(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """A trial that fails at x = 2 while there is a file "broken"; its first report is at step 10, the next at 20."""
    if not (folder / name).exists():
        (folder / name).touch()
        tune.report({"score": settings["x"] + 0.1, "step": 10})
    if settings["x"] == 2 and (folder / "broken").exists():
        raise RuntimeError("broken")
    return {"score": settings["x"] + 0.2, "step": 20}


def run_twice(tracker: trackers.Tracker, folder: Path) -> list[Result]:
    """The trials of a sweep of which one failed at first and was resumed."""
    (folder / "broken").touch()
    what = {"space": {"x": tune.grid_search([1, 2])}, "config": SweepConfig(trials=1, track=(tracker,))}
    where = {"name": "s", "runs": str(folder / "runs"), "steps": 20}
    first = sweep(partial(run, folder), **what, **where, resume=False)  # type: ignore[arg-type]
    assert sorted((trial.score == 1.2, "broken" in trial.failure) for trial in first) == [(False, True), (True, False)]
    (folder / "broken").unlink()
    return sweep(partial(run, folder), **what, **where, resume=True)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of MLflow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_a_trial_reports_reaches_mlflow_by_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Tune calls it: a trial that ends, and goes on after a resume."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for resumed in (False, True):
        trial = Trial("stub", config={"x": 1}, trial_id="13650_00000", stub=True)
        (callback,) = trackers.tracker_callbacks(("mlflow",), "s")
        assert isinstance(callback, LoggerCallback)
        callback.setup()
        callback.log_trial_start(trial)
        step = 20 if resumed else 10
        own = {"training_iteration": 1, "pid": 7, "done": False, "trial_id": trial.trial_id, "config": trial.config}
        own |= {"loss": float("nan"), "score/AP50.(x)": 1.0}  # what MLflow would refuse
        callback.log_trial_result(1, trial, {**own, "score": step / 100, "step": step})
        callback.log_trial_end(trial)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (kept,) = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    assert kept.data.params == {"x": "1"}
    assert kept.data.metrics == {"score": 0.2, "step": 20}
    assert [(point.step, point.value) for point in client.get_metric_history(kept.info.run_id, "score")] == [(10, 0.1), (20, 0.2)]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of the packages
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_trial_is_one_run_of_mlflow_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    trials = run_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("s")
    found = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == sorted(trial.name for trial in trials)
    for trial in trials:
        kept, x = found[trial.name], trial.settings["x"]
        assert kept.data.params == {"x": str(x)}
        assert kept.info.status == "FINISHED"
        assert set(kept.data.metrics) == {"score", "step"}
        history = {point.step: point.value for point in client.get_metric_history(kept.info.run_id, "score")}
        assert history == {10: x + 0.1, 20: x + 0.2}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of the packages
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_trial_is_one_run_of_wandb_and_its_key_is_stored_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    for trial in run_twice("wandb", tmp_path):
        assert list(tmp_path.glob(f"wandb/offline-run-*/run-{trial.name.removeprefix('s-')}.wandb"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_the_key_of_wandb_is_not_in_a_runtime_environment(monkeypatch: pytest.MonkeyPatch, cluster: None) -> None:
    """Ray's dashboard and its list of actors show these environments."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (callback,) = trackers.tracker_callbacks(("wandb",), "s")
    callback.setup()
    assert KEY not in str(callback._remote_logger_class._default_options)


def test_without_a_key_or_a_package_a_sweep_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ClusterError, match="no key for Weights & Biases: --track wandb; run `wandb login`"):
        sweep(partial(run, tmp_path), {}, SweepConfig(track=("wandb",)), name="s", runs=str(tmp_path), steps=20, resume=False)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="mlflow is not installed: --track mlflow; pip install mlflow-skinny"):
        SweepConfig(track=("mlflow",))
