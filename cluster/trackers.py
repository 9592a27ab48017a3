"""What sweeps report to Weights & Biases and MLflow: Tune's own callbacks, each trial one run there, also after a resume.

Settings and keys are the packages' own environment variables, such as WANDB_PROJECT, WANDB_MODE and MLFLOW_TRACKING_URI.
"""

import math
import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS, TRAINING_ITERATION
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

Tracker = Literal["wandb", "mlflow"]
STEP = "step"  # as runs report it; Tune counts reports, anew in a resumed trial
KEY = "WANDB_API_KEY"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_trackers(trackers: tuple[Tracker, ...]) -> None:
    """Raise ClusterError if the package of a tracker is not installed."""
    for tracker in trackers:
        if not find_spec(tracker):
            raise ClusterError(f"{tracker} is not installed", f"--track {tracker}", f"pip install {PACKAGES[tracker]}")


def tracker_callbacks(trackers: tuple[Tracker, ...], sweep: str) -> list[Callback]:
    """The callbacks of the trackers. ``sweep``: name of the experiment (MLflow) or group (W&B)."""
    return [{"wandb": _wandb, "mlflow": _mlflow}[tracker](sweep) for tracker in trackers]


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """The numbers that a run itself reported, without those whose names MLflow refuses, such as a class with brackets."""
    own = {name: value for name, value in result.items() if name not in AUTO_RESULT_KEYS and re.fullmatch(r"[/\w.\- :]+", name)}
    return {name: value for name, value in own.items() if type(value) in (int, float) and math.isfinite(value)}


def _mlflow(sweep: str) -> Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # here, as it is a choice of the user's

    class MlflowRuns(MLflowLoggerCallback):
        """A run of MLflow for each trial; a resumed sweep goes on with those that there are."""

        def log_trial_start(self, trial: "Trial") -> None:
            client, experiment = self.mlflow_util._mlflow.MlflowClient(), self.mlflow_util.experiment_id
            for run in client.search_runs([experiment], f"tags.trial_name = '{trial}'", max_results=1):
                self._trial_runs[trial] = run.info.run_id
                client.update_run(run.info.run_id, status="RUNNING")
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: "Trial", result: dict[str, Any]) -> None:
            figures, run = _figures(result), self._trial_runs[trial]
            self.mlflow_util.log_metrics(int(figures[STEP]), figures, run)

    return MlflowRuns(experiment_name=sweep)


def _wandb(sweep: str) -> Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor  # here, as it is a choice of the user's
    from wandb import Settings

    class Logger(_WandbLoggingActor):
        """Ends W&B's own process, too, which Ray would kill first when the sweep ends."""

        def run(self) -> None:
            super().run()
            self._wandb.teardown()

    class WandbRuns(WandbLoggerCallback):
        """A run of W&B for each trial; a resumed sweep goes on with those that there are."""

        _logger_actor_cls = Logger

        def setup(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().setup(*args, **kwargs)
            except ValueError as error:
                remedy = "run `wandb login` on this machine, or set WANDB_MODE=offline"
                raise ClusterError("no key for Weights & Biases", "--track wandb", remedy) from error
            # As the callback's own, but without the key in a runtime environment, which Ray's dashboard shows.
            near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            shown = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name != KEY}
            forever = {"max_restarts": -1, "max_task_retries": -1}
            options = {"num_cpus": 0, "scheduling_strategy": near, "runtime_env": {"env_vars": shown}, **forever}
            self._remote_logger_class = ray.remote(**options)(self._logger_actor_cls)

        def _start_logging_actor(self, trial: "Trial", exclude_results: list[str], **init: Any) -> None:
            # The key is no attribute: Tune stores this callback with the sweep's state.
            settings = Settings(silent=True, console="off", api_key=os.environ.get(KEY))
            super()._start_logging_actor(trial, exclude_results, settings=settings, **init)

        def log_trial_result(self, iteration: int, trial: "Trial", result: dict[str, Any]) -> None:
            figures = _figures(result)
            super().log_trial_result(iteration, trial, {**figures, TRAINING_ITERATION: int(figures[STEP])})

    project = os.environ.get("WANDB_PROJECT", "hardshard")
    return WandbRuns(project=project, group=sweep, resume="allow")
