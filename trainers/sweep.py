"""Search a job's best settings: many short runs of it under Ray Tune; bad ones are stopped early.

    python trainers/sweep.py attributes --name search --trials 16 -- --data s3://bucket/celeba s3://bucket/utkface
    python trainers/sweep.py attributes --name search --resume      continue, also after the driver was killed
    python trainers/attributes.py --config runs/search/best.json    train with the best settings found
    python trainers/sweep.py detection --name align -- --source s3://bucket/bccd --target s3://bucket/cells --arm align

The job's own options follow `--`; all trials use them. To sweep another job, add its search space to SPACES; its Train needs
`check`, and must report "score" and "step" with its checkpoints.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ray import tune

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.config import ClusterConfig
from cluster.connection import connect
from cluster.sweep import SweepConfig, Trial, cpus_for, sweep
from datasets.command_line import FLAT, POSITIONAL, parse
from datasets.errors import InputError, run_main
from trainers.engine.config import changed, from_json, to_json
from trainers.engine.job import JobConfig, named, stored_config
from trainers.engine.run import METRICS, Run
from trainers.reports.console import summary_table
from trainers.reports.sweep import relations
from trainers.tasks.attributes.losses import TASKS

STAGES = ("stage1", "stage2", "stage3")
BASE, BEST, TRIALS, PICTURE = "base.json", "best.json", "trials.json", "sweep.png"


def around(value: float, factor: float) -> Any:
    """Log-uniform from ``value / factor`` to ``value * factor``; ``value`` is above 0."""
    return tune.loguniform(value / factor, value * factor)


def attributes_space(base: Any) -> dict[str, Any]:
    """Length, threshold and learning rate of each stage, and the tasks' loss weights: a weight that is the same in all stages is
    drawn once, any other stage by stage; a weight of 0 stays 0."""
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
    """lambda (0 stays 0), K (m = regions / K follows), weighting, and the learning rates of detector and adversaries."""
    space: dict[str, Any] = {"align.strength": tune.loguniform(0.01, 1)} if base.align.strength else {}
    space |= {"align.clusters": tune.choice([2, 4, 8]), "align.weighting": tune.choice([True, False])}
    return space | {"optim.lr": around(base.optim.lr, 2), "adversary_lr": around(base.adversary_lr, 4)}


SPACES: dict[str, Callable[[Any], dict[str, Any]]] = {"attributes": attributes_space, "detection": detection_space}


@dataclass(frozen=True)
class Sweep:
    """Search a job's best settings."""

    job: str = field(metadata=POSITIONAL)
    """The job whose settings are searched: attributes or detection."""
    name: str = ""
    """The sweep's name; empty: made from the time."""
    runs: str = ""
    """Where sweep and runs are kept: a folder that all nodes see, or s3://bucket/prefix; empty: ./runs, in a Ray job ~/runs."""
    resume: bool = False
    """Continue the sweep of that name."""
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=FLAT)

    def run(self, options: list[str]) -> None:
        """Run the trials; ``options``: the job's own command line."""
        if self.job not in SPACES:
            raise InputError(f"no search space for '{self.job}'", "trainers/sweep.py", f"there is one for {', '.join(SPACES)}")
        kind = importlib.import_module(f"trainers.{self.job}").Train
        config = named(JobConfig(name=self.name, runs=self.runs), "sweep")
        folder = Run(config.runs, config.name)
        base = self._base(kind, folder, options)
        base.check()
        if not self.resume:
            folder.write_text(BASE, to_json(base))
        cores = cpus_for(self.sweep, base.cluster.workers, base.cluster.cpus)
        connect(ClusterConfig(workers=cores, cpus=1, gpu=False), dashboard=True)  # each trial asks for its GPUs itself
        print(f"sweep {config.name} of {self.job}{' continues' if self.resume else f': {self.sweep.trials} trials'}")
        trial, space, most = partial(run_trial, self.job, to_json(base)), SPACES[self.job](base), 3 * base.steps // 2
        trials = sweep(trial, space, self.sweep, name=config.name, runs=config.runs, steps=most, resume=self.resume)
        report(folder, base, trials)

    def _base(self, kind: Any, folder: Run, options: list[str]) -> Any:
        """The settings that all trials share; those of a resumed sweep are stored in its folder."""
        if self.resume != folder.objects.exists(BASE):
            what = f"no sweep '{folder.name}' to resume" if self.resume else f"the sweep '{folder.name}' exists"
            raise InputError(what, folder.url, "is --runs right?" if self.resume else "continue it with --resume")
        if self.resume:
            if options:
                raise InputError("a resumed sweep keeps its job's options", folder.url, "leave out everything after --")
            return from_json(kind, folder.objects.get(BASE).decode(), f"{folder.url}/{BASE}")
        base = parse(kind, f"trainers/{self.job}.py", options)
        every = min(base.checkpoint_every, self.sweep.grace)
        steps = {"evaluate_every": every, "checkpoint_every": every, "record_every": math.gcd(every, base.record_every)}
        return replace(base, runs=folder.runs, **steps)


def run_trial(job: str, base: str, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Run one trial, from its last checkpoint if there is one; returns its last score (NaN without one) and step."""
    config = changed(from_json(importlib.import_module(f"trainers.{job}").Train, base, "the sweep"), settings)
    run = Run(config.runs, name)
    replace(config, name=name, resume=run.exists()).run()
    metrics = run.read_json(METRICS)
    return {"score": metrics.get("after", {}).get("score", math.nan), "step": metrics["step"]}


def report(folder: Run, base: Any, trials: list[Trial]) -> None:
    """Print the table of trials; write the picture and the best settings. Raises InputError when every trial failed."""
    ended = {t.name: Run(folder.runs, t.name).objects.exists(METRICS) for t in trials}
    ranked = sorted(trials, key=lambda t: (math.isnan(t.score), -t.score))
    rows = []
    for t in ranked:
        state = f"failed: {t.failure}" if t.failure else "ended" if ended[t.name] else "stopped early"
        settings = ", ".join(f"{name} {shown(value)}" for name, value in sorted(t.settings.items()) if "weights" not in name)
        rows.append([t.name, t.score, t.step, state, settings])
    summary_table(f"{folder.name}: {len(trials)} trials", ["trial", "score", "steps", "state", "settings"], rows)
    scored = [{**vars(t), "score": None if math.isnan(t.score) else t.score, "ended": ended[t.name]} for t in ranked]
    folder.write_json(TRIALS, scored)
    folder.objects.put(PICTURE, relations([(t.settings, t.score, ended[t.name]) for t in trials]))
    if math.isnan(ranked[0].score):
        raise InputError("every trial failed", folder.url, "the table shows why")
    best = max((t for t in trials if not math.isnan(t.score)), key=lambda t: (ended[t.name], t.score))
    ran = stored_config(type(base), Run(folder.runs, best.name))  # with absolute paths of its data
    folder.write_text(BEST, to_json(replace(ran, name="", resume=False, evaluate_every=0)))
    print(f"best: {best.name}, score {best.score:.3f}; settings: {folder.url}/{BEST}, picture: {folder.url}/{PICTURE}")


def shown(value: float) -> str:
    """A setting's value in the table."""
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3g}"


def main() -> None:
    """The command."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parse(Sweep, "trainers/sweep.py", sys.argv[1:at], about=__doc__ or "").run(sys.argv[at + 1 :])


if __name__ == "__main__":
    run_main(main)
