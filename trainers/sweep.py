"""Look for a job's best settings: many short runs of it under Ray Tune, the worse ones stopped early.

    python trainers/sweep.py attributes --name search --trials 16 -- --data s3://bucket/celeba s3://bucket/utkface
    python trainers/sweep.py attributes --name search --resume      go on, also after the driver was killed
    python trainers/attributes.py --config runs/search/best.json    train with the best settings found
    python trainers/sweep.py detection --name align -- --source s3://bucket/bccd --target s3://bucket/cells --arm align

What stands behind `--` are the job's own options, which all trials share. To sweep another job, add its search space to SPACES:
its Train has `check`, and reports "score" and "step" with its checkpoints.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import tyro
from ray import tune

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.config import ClusterConfig
from cluster.connection import connect
from cluster.sweep import SweepConfig, Trial, cpus_for, sweep
from datasets.errors import InputError, run_main
from trainers.engine.config import changed, from_json, to_json
from trainers.engine.job import JobConfig, resolved, stored_config
from trainers.engine.run import METRICS, Run
from trainers.reports.console import summary_table
from trainers.reports.sweep import relations
from trainers.tasks.attributes.losses import TASKS

STAGES = ("stage1", "stage2", "stage3")
BASE, BEST, TRIALS, PICTURE = "base.json", "best.json", "trials.json", "sweep.png"


def around(value: float, factor: float) -> Any:
    """Evenly by its logarithm, from a ``factor``-th of a value above 0 to ``factor`` times it."""
    return tune.loguniform(value / factor, value * factor)


def attributes_space(base: Any) -> dict[str, Any]:
    """Stage lengths, thresholds and learning rates, and the weights of the tasks' losses: of one that is the same in all stages
    once for all, else stage by stage. A weight of 0 stays 0."""
    space: dict[str, Any] = {}
    for name in STAGES:
        stage = getattr(base, name)
        space[f"{name}.most"] = tune.randint(max(stage.least, stage.most // 2), stage.most * 3 // 2 + 1)
        space[f"{name}.threshold"] = tune.uniform(0, 2)
        space[f"{name}.lr"] = around(stage.lr, 4)
    for task in TASKS:
        weights = {name: getattr(getattr(base, name).weights, task) for name in STAGES}
        if len(set(weights.values())) == 1:
            weights = {"stage*": weights[STAGES[0]]}
        space |= {f"{name}.weights.{task}": around(weight, 3) for name, weight in weights.items() if weight}
    return space


def detection_space(base: Any) -> dict[str, Any]:
    """lambda, K (m = regions / K follows), weighting, and the learning rates of detector and adversaries. 0 as lambda stays."""
    return {
        **({"align.strength": tune.loguniform(0.01, 1)} if base.align.strength else {}),
        "align.clusters": tune.choice([2, 4, 8]),
        "align.weighting": tune.choice([True, False]),
        "optim.lr": around(base.optim.lr, 2),
        "adversary_lr": around(base.adversary_lr, 4),
    }


SPACES: dict[str, Callable[[Any], dict[str, Any]]] = {"attributes": attributes_space, "detection": detection_space}


@dataclass(frozen=True)
class Sweep:
    """Sweep a job's settings."""

    job: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JOB")]
    """The job whose settings are looked for: attributes or detection."""
    name: str = ""
    """The sweep's name; empty: made from the time."""
    runs: str = ""
    """Where it and its runs are kept: a folder that all nodes see, or s3://bucket/prefix; empty: ./runs, in a Ray job ~/runs."""
    resume: bool = False
    """Go on with the sweep of that name."""
    sweep: tyro.conf.OmitArgPrefixes[SweepConfig] = field(default_factory=SweepConfig)

    def run(self, options: list[str]) -> None:
        """Run the trials; ``options``: the job's own."""
        if self.job not in SPACES:
            raise InputError(f"no search space for '{self.job}'", "trainers/sweep.py", f"there is one for {', '.join(SPACES)}")
        kind = importlib.import_module(f"trainers.{self.job}").Train
        named = resolved(JobConfig(name=self.name, runs=self.runs), "sweep")
        folder = Run(named.runs, named.name)
        base = self._base(kind, folder, options)
        base.check()
        if not self.resume:
            folder.write_text(BASE, to_json(base))
        cores = cpus_for(self.sweep, base.cluster.workers, base.cluster.cpus)
        connect(ClusterConfig(workers=cores, cpus=1, gpu=False), dashboard=True)  # each trial asks for its GPUs itself
        print(f"sweep {named.name} of {self.job}{' goes on' if self.resume else f': {self.sweep.trials} trials'}")
        trial = partial(run_trial, self.job, to_json(base))
        space, most = SPACES[self.job](base), 3 * base.steps // 2
        trials = sweep(trial, space, self.sweep, name=named.name, runs=named.runs, steps=most, resume=self.resume)
        tell(folder, base, trials)

    def _base(self, kind: Any, folder: Run, options: list[str]) -> Any:
        """The settings that all trials share; of a sweep that goes on, those that it began with."""
        there = folder.objects.exists(BASE)
        if self.resume != there:
            what = f"no sweep '{folder.name}' to resume" if self.resume else f"the sweep '{folder.name}' exists"
            raise InputError(what, folder.url, "is --runs right?" if self.resume else "go on with it by --resume")
        if self.resume:
            if options:
                raise InputError("a sweep that goes on keeps its job's options", folder.url, "leave out what stands behind --")
            return from_json(kind, folder.objects.get(BASE).decode(), f"{folder.url}/{BASE}")
        base = tyro.cli(kind, prog=f"trainers/{self.job}.py", args=options)
        every = min(base.checkpoint_every, self.sweep.grace)
        record = math.gcd(every, base.record_every)
        return replace(base, runs=folder.runs, evaluate_every=every, checkpoint_every=every, record_every=record)


def run_trial(job: str, base: str, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """One trial: a run of the job, from its last checkpoint when there is one; the score and the step that it ended with."""
    config = changed(from_json(importlib.import_module(f"trainers.{job}").Train, base, "the sweep"), settings)
    run = Run(config.runs, name)
    replace(config, name=name, resume=run.exists()).run()
    metrics = run.read_json(METRICS)
    return {"score": metrics.get("after", {}).get("score", math.nan), "step": metrics["step"]}


def tell(folder: Run, base: Any, trials: list[Trial]) -> None:
    """The table of trials, the picture, and the best settings; raises InputError when every trial failed."""
    ended = {t.name: Run(folder.runs, t.name).objects.exists(METRICS) for t in trials}
    ranked = sorted(trials, key=lambda t: (math.isnan(t.score), -t.score if not math.isnan(t.score) else 0))
    rows = []
    for t in ranked:
        state = f"failed: {t.failure}" if t.failure else "ended" if ended[t.name] else "stopped early"
        settings = ", ".join(f"{name} {_told(value)}" for name, value in sorted(t.settings.items()) if "weights" not in name)
        rows.append([t.name, t.score, t.step, state, settings])
    summary_table(f"{folder.name}: {len(trials)} trials", ["trial", "score", "steps", "state", "settings"], rows)
    scores = {t.name: None if math.isnan(t.score) else t.score for t in trials}
    folder.write_json(TRIALS, [{**vars(t), "score": scores[t.name], "ended": ended[t.name]} for t in ranked])
    folder.objects.put(PICTURE, relations([(t.settings, t.score, ended[t.name]) for t in trials]))
    if math.isnan(ranked[0].score):
        raise InputError("every trial failed", folder.url, "the table says why")
    best = max((t for t in trials if not math.isnan(t.score)), key=lambda t: (ended[t.name], t.score))
    ran = stored_config(type(base), Run(folder.runs, best.name))  # where its data lie stands there in full
    folder.write_text(BEST, to_json(replace(ran, name="", resume=False, evaluate_every=0)))
    print(f"best: {best.name}, score {best.score:.3f}; settings: {folder.url}/{BEST}, picture: {folder.url}/{PICTURE}")


def _told(value: float) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3g}"


def main() -> None:
    """The command."""
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    tyro.cli(Sweep, prog="trainers/sweep.py", description=__doc__, args=arguments[:at]).run(arguments[at + 1 :])


if __name__ == "__main__":
    run_main(main)
