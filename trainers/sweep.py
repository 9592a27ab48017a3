"""Search a job's best settings: many short runs of it under Ray Tune; bad ones are stopped early.

    python trainers/sweep.py reid --name search --trials 16 -- --data s3://bucket/market1501
    python trainers/sweep.py reid --name search --resume            continue, also after the driver was killed
    python trainers/reid.py --config runs/search/best.json          train with the best settings found
    python trainers/sweep.py actions --name wide --search optuna --space optim.lr=log:1e-5:1e-2 model.name=c3d,i3d -- --data ...

The job's own options follow `--`; all trials use them. Guide: docs/sweeps.md.
"""

import importlib
import math
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.config import ClusterConfig
from cluster.connection import connect
from cluster.lease import held
from cluster.sweep import SweepConfig, Trial, cpus_for, sweep
from datasets.command_line import FLAT, POSITIONAL, parse
from datasets.errors import InputError, run_main
from trainers.engine.config import HARMLESS, changed, from_json, settings_of, to_json
from trainers.engine.job import JobConfig, Resume, named, resumed_defaults, stored_config
from trainers.engine.run import METRICS, Run
from trainers.engine.tensorboard import close_scalars
from trainers.reports.console import summary_table
from trainers.reports.sweep import relations
from trainers.spaces import SPACES, check_space, space_of

BASE, SEARCH, BEST, TRIALS, PICTURE = "base.json", "search.json", "best.json", "trials.json", "sweep.png"


@dataclass(frozen=True)
class Sweep:
    """Search a job's best settings."""

    job: str = field(default="", metadata=POSITIONAL)
    """The job whose settings are searched: reid, attributes, detection, actions or sequences."""
    name: str = field(default="", metadata=HARMLESS)
    """The sweep's name; empty: made from the time and a random part."""
    runs: str = field(default="", metadata=HARMLESS)
    """Where sweep and runs are kept: a folder that all nodes see, or s3://bucket/prefix; empty: ./runs, in a Ray job ~/runs."""
    resume: Resume = field(default=False, metadata=HARMLESS)
    """Continue the sweep of that name, with its own settings; auto: if there is one, else start it."""
    space: tuple[str, ...] = ()
    """The settings to search, in place of those that the job has for sweeps: optim.lr=log:1e-4:1e-2, model.dropout=uniform:0:0.5,
    optim.warmup=int:50:500 (bounds included), sampler.kind=pk,proportional (one of these)."""
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=FLAT)

    def run(self, options: list[str]) -> None:
        """Run the trials; ``options``: the job's own command line."""
        if self.job not in SPACES:
            raise InputError(f"no job '{self.job}' to sweep", "trainers/sweep.py", f"name one of {', '.join(SPACES)}")
        kind = importlib.import_module(f"trainers.{self.job}").Train
        config = named(JobConfig(name=self.name, runs=self.runs, resume=self.resume), "sweep")
        folder = Run(config.runs, config.name)
        resume = folder.objects.exists(BASE) if self.resume == "auto" else self.resume
        how = self._kept(folder) if resume else self
        base = self._base(kind, folder, options, resume)
        space = space_of(how.space, base, f"trainers/{self.job}.py") if how.space else SPACES[self.job](base)
        most = check_space(space, base)
        base.check()
        cores = cpus_for(how.sweep, base.cluster.workers, base.cluster.cpus)
        connect(ClusterConfig(workers=cores, cpus=1, gpu=False))  # each trial asks for its GPUs itself
        with held(config.runs, config.name):
            if not resume:
                folder.write_text(SEARCH, to_json(self))
                folder.write_text(BASE, to_json(base))
            print(f"sweep {config.name} of {self.job}{' continues' if resume else f': {how.sweep.trials} trials'}")
            trial = partial(run_trial, self.job, to_json(base))
            where = {"name": config.name, "runs": config.runs}
            trials = sweep(trial, space, how.sweep, **where, steps=most, resume=resume, stopping=close_scalars)
            report(folder, base, trials)

    def _kept(self, folder: Run) -> "Sweep":
        """The settings that a resumed sweep was started with; those that are given must be the same."""
        if not folder.objects.exists(SEARCH):  # begun by an earlier version
            return self
        kept = from_json(Sweep, folder.objects.get(SEARCH).decode(), f"{folder.url}/{SEARCH}")
        for (name, value, change), (_, was, _), (_, default, _) in zip(*map(settings_of, (self, kept, Sweep())), strict=True):
            if change != "harmless" and value not in (was, default):
                given = " ".join(was) if isinstance(was, tuple) else was
                what = f"the sweep was started with {name.removeprefix('sweep.')} {given or 'left out'}"
                raise InputError(what, folder.url, "resume it without this option")
        return kept

    def _base(self, kind: Any, folder: Run, options: list[str], resume: bool) -> Any:
        """The settings that all trials share; those of a resumed sweep are stored in its folder."""
        if resume != folder.objects.exists(BASE):
            what = f"no sweep '{folder.name}' to resume" if resume else f"the sweep '{folder.name}' exists"
            raise InputError(what, folder.url, "is --runs right?" if resume else "continue it with --resume")
        if not resume:
            return self._given(kind, folder, options)
        stored = from_json(kind, folder.objects.get(BASE).decode(), f"{folder.url}/{BASE}")
        if options and self._given(kind, folder, options) != stored:
            raise InputError("a resumed sweep keeps its job's options", folder.url, "leave out everything after --")
        return stored

    def _given(self, kind: Any, folder: Run, options: list[str]) -> Any:
        """The settings of the job's command line."""
        program = f"trainers/{self.job}.py"
        defaults = resumed_defaults(kind, "train", options)  # those of --config or --preset, if given
        base = parse(kind, program, options, default=defaults)
        every = min(base.checkpoint_every, self.sweep.grace)
        steps = {"evaluate_every": every, "checkpoint_every": every, "record_every": math.gcd(every, base.record_every)}
        return replace(base, runs=folder.runs, **steps)


def run_trial(job: str, base: str, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Run one trial, from its last checkpoint if there is one; returns its last score, what that is made of, and the step.

    Raises:
        InputError: the job refuses the settings or the data, or these have nothing to compare by.
    """
    config = changed(from_json(importlib.import_module(f"trainers.{job}").Train, base, "the sweep"), settings)
    run = Run(config.runs, name)
    replace(config, name=name, resume=run.exists()).run()
    metrics = run.read_json(METRICS)
    if "score" not in metrics:
        remedy = "sweep with data that has a test or val split, with labels that differ"
        raise InputError("nothing was held out to compare by", run.url, remedy)
    return {name: value for name, value in metrics.items() if name == "step" or name.partition("/")[0] == "score"}


def report(folder: Run, base: Any, trials: list[Trial]) -> None:
    """Print the table of trials; write the picture and the best settings. Raises InputError when every trial failed."""
    ended = {t.name: Run(folder.runs, t.name).objects.exists(METRICS) for t in trials}
    ranked = sorted(trials, key=lambda t: (math.isnan(t.score), -t.score))
    rows = []
    for t in ranked:
        state = f"failed: {t.failure}" if t.failure else "ended" if ended[t.name] else "stopped early"
        settings = ", ".join(f"{name} {shown(value)}" for name, value in sorted(t.settings.items()) if "weights" not in name)
        made_of = ", ".join(f"{name.removesuffix('.skill')} {shown(value)}" for name, value in t.made_of.items())
        rows.append([t.name, t.score, made_of, t.step, state, settings])
    summary_table(f"{folder.name}: {len(trials)} trials", ["trial", "score", "made of", "steps", "state", "settings"], rows)
    scored = [{**vars(t), "score": None if math.isnan(t.score) else t.score, "ended": ended[t.name]} for t in ranked]
    folder.write_json(TRIALS, scored)
    folder.objects.put(PICTURE, relations([(t.settings, t.score, ended[t.name]) for t in trials]))
    if math.isnan(ranked[0].score):
        raise InputError("every trial failed", folder.url, "the table shows why")
    best = max((t for t in trials if not math.isnan(t.score)), key=lambda t: (ended[t.name], t.score))
    ran = stored_config(type(base), Run(folder.runs, best.name))  # with absolute paths of its data
    folder.write_text(BEST, to_json(replace(ran, name="", resume=False, evaluate_every=0)))
    print(f"best: {best.name}, score {best.score:.3f}; settings: {folder.url}/{BEST}, picture: {folder.url}/{PICTURE}")


def shown(value: Any) -> str:
    """A setting's value in the table."""
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """The command."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parse(Sweep, "trainers/sweep.py", sys.argv[1:at], about=__doc__ or "").run(sys.argv[at + 1 :])


if __name__ == "__main__":
    run_main(main)
