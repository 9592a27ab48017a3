"""Ray Tune around whole runs: each trial starts a run of its own under Ray Train, whose reports are passed on to Tune.

The sweep's state is stored in the runs' folder, beside each trial's run. Whatever ended its driver, a sweep can be resumed:
unfinished trials then resume from their latest checkpoints.
"""

import logging
import math
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType
from typing import Any, Literal

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.trainable import wrap_function

from cluster import prometheus
from cluster.errors import ClusterError, StoppedError
from cluster.ray_compat import keep_s3_keys_out_of_tune
from cluster.ray_train import CALLBACKS
from cluster.storage import storage_uri
from cluster.trackers import Tracker, check_trackers, tracker_callbacks

METRIC, PART, TIME = "score", "score/", "step"  # keys of what runs report; Tune's own count restarts in a resumed trial
_STATES = {"PENDING": "pending", "PAUSED": "pending", "RUNNING": "running", "TERMINATED": "ended", "ERROR": "failed"}
DRIVER_CPUS = 0.01  # reserved for a trial's driver, which only waits


@dataclass(frozen=True)
class SweepConfig:
    """The number of trials, and when trials are stopped early."""

    trials: int = 16
    """Number of trials, each with settings of its own."""
    search: Literal["random", "optuna"] = "random"
    """random: draw each trial's settings on their own; optuna: near what scored well (TPE), after ten trials at random."""
    concurrent: int = 2
    """Trials that run at a time; each has the workers of one run."""
    grace: int = 100
    """Steps before which no trial is stopped."""
    reduction: int = 3
    """ASHA's reduction factor: after grace, grace * reduction, ... steps, the best 1 of this many trials goes on."""
    seed: int = 0
    """Seed by which the trials' settings are drawn."""
    track: tuple[Tracker, ...] = ()
    """wandb, mlflow: report each trial as a run there; by their own environment variables, such as WANDB_PROJECT."""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.concurrent < 1 or self.grace < 1 or self.reduction < 2:
            raise ClusterError("trials, concurrent and grace must be at least 1, reduction at least 2", "sweep")
        if self.search == "optuna" and not find_spec("optuna"):
            raise ClusterError("Optuna is not installed", "--search optuna", "pip install optuna, or leave it at random")
        check_trackers(self.track)


@dataclass(frozen=True)
class Trial:
    """A trial's result. A failed one has the ``score`` NaN and a message in ``failure``. ``step``: the last that it reported.
    ``made_of``: the figures behind the score."""

    name: str
    settings: dict[str, Any]
    score: float
    step: int
    failure: str
    made_of: dict[str, float]


def sweep(
    run: Callable[[str, dict[str, Any]], Mapping[str, float]], space: Mapping[str, Any], config: SweepConfig, *,
    name: str, runs: str, steps: int, resume: bool, stopping: Callable[[], None] = lambda: None,
) -> list[Trial]:  # fmt: skip
    """Call ``run(trial's name, its settings)`` with settings drawn from ``space``; bad trials are stopped early.

    The scheduler is ASHA (Li et al., 2020). ``run`` makes ``steps`` steps at most, reports "score" (more is better), the figures
    that it is made of as "score/NAME", and "step" with each checkpoint, and returns the last of these. ``stopping`` is called in
    a trial's process before Tune ends it, which may be in the middle of ``run``.

    ``resume``: go on from Tune's state, if it had stored one.

    Raises:
        KeyboardInterrupt: at Ctrl-C, when the state is stored; the sweep can be resumed.
        StoppedError: at SIGTERM, likewise.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables, which no other setting silences
    keep_s3_keys_out_of_tune()

    def trial(settings: dict[str, Any]) -> None:
        _run_trial(run, name, settings)

    class Stoppable(wrap_function(trial)):  # type: ignore[misc]  # made by a function
        def cleanup(self) -> None:
            try:
                stopping()
            finally:
                super().cleanup()

    trainable = tune.with_resources(Stoppable, {"CPU": DRIVER_CPUS})
    folder = storage_uri(f"{runs.rstrip('/')}/{name}")
    if resume and tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable, resume_unfinished=True, resume_errored=True)
    else:
        asha = ASHAScheduler(
            time_attr=TIME, max_t=max(steps, config.grace) + 1, grace_period=config.grace, reduction_factor=config.reduction
        )
        tune_config = tune.TuneConfig(
            metric=METRIC, mode="max", scheduler=asha, search_alg=_searcher(config), num_samples=config.trials,
            trial_name_creator=lambda trial: f"{name}-{trial.trial_id}",
        )  # fmt: skip
        kept = {"name": name, "storage_path": storage_uri(runs), "failure_config": tune.FailureConfig(max_failures=1)}
        run_config = tune.RunConfig(**kept, callbacks=[_TrialReporter(name), *tracker_callbacks(config.track, name)], verbose=0)
        tuner = tune.Tuner(trainable, param_space=dict(space), tune_config=tune_config, run_config=run_config)
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)  # it warns of each failed trial's NaN
    with _stopped_by_signals(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The reported value is ignored")  # Optuna's: a resumed trial's reports count from 1
        results = tuner.fit()
    return [_trial_of(name, result) for result in results]


def _searcher(config: SweepConfig) -> Any:
    """What proposes the trials' settings; Tune stores its state with the sweep's."""
    if config.search == "random":
        return BasicVariantGenerator(max_concurrent=config.concurrent, random_state=config.seed)
    import optuna  # here: a choice of the user's
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return ConcurrencyLimiter(OptunaSearch(metric=METRIC, mode="max", seed=config.seed), max_concurrent=config.concurrent)


@contextmanager
def _stopped_by_signals(name: str) -> Iterator[None]:
    """At Ctrl-C and SIGTERM, Tune saves its state and stops, as at SIGUSR1; then raises the error, which Tune swallows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    errors = {
        signal.SIGINT: KeyboardInterrupt(),
        signal.SIGTERM: StoppedError(0, f"continue the sweep with the same command and --name {name} --resume"),
    }
    before, got = {number: signal.getsignal(number) for number in errors}, list[BaseException]()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])  # a second one ends at once
        got.append(errors[signal.Signals(number)])
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # Tune has not installed its handler yet
            raise got[0]
        signal.raise_signal(signal.SIGUSR1)

    for number in errors:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if got:
        raise got[0]


class _TrialReporter(tune.Callback):
    """Prints each trial's result, and exports the numbers of trials by state."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        gauge = prometheus.trials()  # no attribute: Tune pickles this callback with the sweep's state
        counts = Counter(_STATES.get(trial.status, "pending") for trial in trials)
        for state in sorted(set(_STATES.values())):
            gauge.set(counts[state], {"run": self._name, "state": state})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        what = result.get("failure") or f"score {result.get(METRIC, math.nan):.3f} at step {result.get(TIME, 0)}"
        print(f"trial {trial.trial_id}: {what}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        print(f"trial {trial.trial_id}: failed", flush=True)


class _ScoreReporter(TuneReportCallback):
    """Passes a run's reports on to Tune; without a score, which ends a sweep, they stay here."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if METRIC in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _run_trial(run: Callable[[str, dict[str, Any]], Mapping[str, float]], sweep_name: str, settings: dict[str, Any]) -> None:
    token = CALLBACKS.set((_ScoreReporter(),))
    try:
        figures = run(f"{sweep_name}-{tune.get_context().get_trial_id()}", settings)
        tune.report(dict(figures))  # again: the driver may have died after the run's last report, before Tune got it
    except Exception as error:
        if getattr(error, "exit_code", 1) != 2:
            raise
        tune.report({METRIC: math.nan, TIME: 0, "failure": str(error)})  # wrong input: another try would not help
    finally:
        CALLBACKS.reset(token)


def _trial_of(name: str, result: Any) -> Trial:
    figures = result.metrics or {}
    failure = figures.get("failure") or (str(result.error).strip().splitlines()[-1] if result.error else "")
    score = float("nan") if failure else float(figures.get(METRIC, math.nan))
    trial = figures.get("trial_id") or result.path.rstrip("/").rpartition("/")[2]
    made_of = {key.removeprefix(PART): value for key, value in figures.items() if key.startswith(PART) and not failure}
    return Trial(f"{name}-{trial}", dict(result.config or {}), score, int(figures.get(TIME, 0)), failure, made_of)


def cpus_for(config: SweepConfig, workers: int, cpus: int) -> int:
    """Number of CPU cores that a sweep's concurrent trials take."""
    return config.concurrent * workers * cpus + math.ceil(config.concurrent * DRIVER_CPUS)
