"""Inject faults of a dozen kinds into a real run, and check that its result is that of an undisturbed run.

    python -m benchmarks.faults [--faults 34] [--seed 0] [--json]

A run of trainers/reid.py on a cluster of two nodes, with data and checkpoints in a real S3 server: once undisturbed, and once
with faults at seeded random times (`KINDS`). What the fault ended is started again as docs/cluster.md says: nodes, the server,
and the command with --resume. The run has recovered when it reports a later step than it had half a second after the fault. In
the end the metrics, the weights and the batches of both runs must be equal. A full disk needs the right to mount one; else it is
left out.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faulty_run import FaultyCluster, Training, can_mount
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from trainers.engine.run import METRICS, Run
from trainers.reports.console import summary_table

KINDS = {  # how often each is injected in 34 faults, and what it is
    "worker": (4, "kill -9 of a training process"),
    "freeze": (2, "SIGSTOP of a training process"),
    "actor": (3, "kill -9 of the difficulty actor"),
    "controller": (2, "kill -9 of Ray Train's controller"),
    "node": (3, "kill -9 of a node"),
    "driver": (3, "kill -9 of the command"),
    "terminate": (3, "SIGTERM to the command"),
    "storage": (3, "kill -9 of the S3 server"),
    "refused": (3, "writes refused by S3 for some seconds"),
    "cut": (3, "the newest checkpoint cut, and a training process killed"),
    "disk": (2, "a full disk where checkpoints are written"),
    "second": (2, "a second command for the same run"),
    "clock": (1, "the same, with a clock that is a day ahead"),
}
PATIENCE = 240.0  # seconds for a recovery
SETTLE = 0.5  # seconds after a fault, in which reports from before it arrive


@dataclass(frozen=True)
class Options:
    """Run with faults and without."""

    faults: int = 34
    """Number of faults; fewer are injected if the run ends before."""
    steps: int = 6000
    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of faults to inject."""
    seed: int = 0
    """Draws the order of the faults and their times."""
    limit_s: float = 3600.0
    """Seconds after which no more faults are injected."""
    json: bool = False

    def __post_init__(self) -> None:
        if self.faults < 1 or self.steps < 1 or self.limit_s <= 0 or not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InputError("faults, steps and limit_s must be at least 1", "", f"kinds are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Fault:
    """One fault. ``step``: the last reported half a second after it; ``seconds``: until a later step was reported."""

    kind: str
    step: int
    seconds: float


def kinds_of(options: Options, rng: random.Random) -> list[str]:
    """The kinds of the faults to inject, in a random order."""
    kinds = [kind for kind in options.kinds if kind != "disk" or can_mount()]
    often = [kind for kind in kinds for _ in range(KINDS[kind][0])]
    drawn = list[str]()
    while len(drawn) < options.faults:
        drawn += rng.sample(often, len(often))
    return drawn[: options.faults]


def disturb(options: Options, cluster: FaultyCluster, run: Training) -> list[Fault]:
    """Inject ``options.faults`` faults, fewer if the run ends before; returns them."""
    rng, faults, began = random.Random(options.seed), list[Fault](), time.monotonic()  # noqa: S311
    for kind in kinds_of(options, rng):
        if not run.goes_on(PATIENCE) or time.monotonic() - began > options.limit_s:
            break
        time.sleep(rng.uniform(0.5, 4))
        hit = time.monotonic()
        cluster.inject(kind, run, rng)
        time.sleep(SETTLE)
        before = run.step()
        if not run.goes_on(PATIENCE):
            break
        faults.append(Fault(kind, before, time.monotonic() - hit))
        print(f"{len(faults):3} {kind:10} at step {before:5}: {faults[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return faults


def outcome(name: str) -> dict[str, Any]:
    """The run's final metrics, without the time that it took."""
    metrics: dict[str, Any] = Run("s3://faults/runs", name).read_json(METRICS)
    return {key: value for key, value in metrics.items() if key != "seconds"}


def main(options: Options) -> None:
    """Run both, compare, print."""
    with tempfile.TemporaryDirectory() as folder, FaultyCluster(Path(folder)) as cluster:
        with Training("disturbed", options.steps, cluster.address) as run:
            faults = disturb(options, cluster, run)
            run.end()
        with Training("undisturbed", options.steps, cluster.address) as run:
            run.end()
        results = outcome("disturbed"), outcome("undisturbed")
    equal = {key: results[0][key] == results[1][key] for key in results[1]}
    if options.json:
        print(json.dumps({"faults": [vars(fault) for fault in faults], "equal": equal, "results": results}))
    else:
        print_tables(faults, equal)
    if not all(equal.values()):
        raise RuntimeError(f"the disturbed run ended with other {', '.join(key for key, same in equal.items() if not same)}")


def print_tables(faults: list[Fault], equal: dict[str, bool]) -> None:
    """Print recovery times by kind of fault, and whether the results are equal."""
    rows = []
    for kind, (_, what) in KINDS.items():
        seconds = sorted(fault.seconds for fault in faults if fault.kind == kind)
        if seconds:
            rows.append([what, len(seconds), f"{statistics.median(seconds):.1f}", f"{seconds[-1]:.1f}"])
    summary_table(f"{len(faults)} faults in one run", ["fault", "times", "until a later step, median s", "longest s"], rows)
    summary_table(
        "Equal to the undisturbed run", ["what", "equal"], [[key, "yes" if same else "NO"] for key, same in equal.items()]
    )


if __name__ == "__main__":
    run_main(lambda: main(parse(Options, "python -m benchmarks.faults")))
