"""How long a run takes from the command line to its first step, and from the death of a worker to a later step.

    python -m benchmarks.startup [--times 3] [--recoveries 3] [--plain] [--json]

Starts `python trainers/reid.py` on the shipped data, with a Ray of its own, and notes when it prints each phase's line. Then, in
another run, kills one of the two workers (kill -9) after a checkpoint, and notes when a checkpoint of a later step is stored; one
is stored every five steps. ``--plain``: without forks (`cluster.fork_server`), for comparison.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.fork_server import PLAIN
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from trainers.reports.console import summary_table

PHASES = (  # how the line begins that the run prints at a phase's end, and the phase
    ("run ", "imports, data checks, Ray's start"),
    ("step 0:", "controller and workers, imports there, first evaluation"),
    ("step 1/", "first step: loaders' start, a batch"),
)
MARK = "HARDSHARD_MEASURED"  # in the environment of all processes of a measured run: its folder of runs
PATIENCE = 300.0  # seconds for a start or a recovery


@dataclass(frozen=True)
class Startup:
    """Measure the time to the first step, and that of recoveries."""

    times: int = 3
    recoveries: int = 3
    plain: bool = False
    """Start workers without forks."""
    json: bool = False

    def __post_init__(self) -> None:
        if min(self.times, self.recoveries) < 0 or not self.times + self.recoveries:
            raise InputError("there is nothing to measure", "--times")


@contextmanager
def training(runs: str, every: int, steps: int, *, plain: bool) -> Iterator["subprocess.Popen[str]"]:
    """A run of ``steps`` steps with a Ray of its own, with a checkpoint ``every`` so many; killed at the end of the context."""
    numbers = {"--optim.steps": steps, "--record_every": 1, "--checkpoint_every": every}
    options = ["--runs", runs, "--name", "measured", *(word for name, n in numbers.items() for word in (name, str(n)))]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1", MARK: runs, **({PLAIN: "1"} if plain else {})}
    command, root = [sys.executable, "trainers/reid.py", *options], Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.terminate()


def start(*, plain: bool) -> list[float]:
    """Seconds of each phase of one start."""
    began, ends = time.perf_counter(), list[float]()
    with tempfile.TemporaryDirectory() as runs, training(runs, 1, 2, plain=plain) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if len(ends) < len(PHASES) and line.startswith(PHASES[len(ends)][0]):
                ends.append(time.perf_counter() - began)
        if process.wait() or len(ends) < len(PHASES):
            raise RuntimeError(f"the run ended with {process.returncode} after {len(ends)} of {len(PHASES)} phases")
    return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]


def recover(times: int, *, plain: bool) -> list[float]:
    """Seconds from the death of a worker to the checkpoint of a later step, in one run."""
    seconds = list[float]()
    with tempfile.TemporaryDirectory() as runs, training(runs, 5, 100_000, plain=plain):
        for _ in range(times):
            _await_checkpoint(runs, _newest(runs) + 10)
            both = [each for each in psutil.process_iter() if _trains(each, runs)]
            workers = [each for each in both if each.parent() not in both]  # the others are their loaders
            died, step = time.perf_counter(), _newest(runs)
            random.choice(workers).kill()  # noqa: S311
            _await_checkpoint(runs, step + 1)
            seconds.append(time.perf_counter() - died)
    return seconds


def _trains(process: psutil.Process, runs: str) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline()) and process.environ().get(MARK) == runs
    except psutil.Error:
        return False


def _newest(runs: str) -> int:
    """The step of the newest checkpoint that is whole; 0 if there is none."""
    return max((int(path.parent.name[5:13]) for path in Path(runs, "measured").glob("step-*/manifest.json")), default=0)


def _await_checkpoint(runs: str, step: int) -> None:
    until = time.monotonic() + PATIENCE
    while _newest(runs) < step:
        if time.monotonic() > until:
            raise RuntimeError(f"no checkpoint of step {step} or later after {PATIENCE:.0f} s")
        time.sleep(0.05)


def main(options: Startup) -> None:
    """Measure and print."""
    starts = [start(plain=options.plain) for _ in range(options.times)]
    recoveries = recover(options.recoveries, plain=options.plain) if options.recoveries else []
    if options.json:
        print(json.dumps({"phases": [name for _, name in PHASES], "seconds": starts, "recoveries": recoveries}))
        return
    if starts:
        rows = [[name, *(f"{s[place]:.1f}" for s in starts)] for place, (_, name) in enumerate(PHASES)]
        rows.append(["in all", *(f"{sum(s):.1f}" for s in starts)])
        title = f"Seconds to the first step: median {statistics.median(sum(s) for s in starts):.1f}, {os.cpu_count()} cores"
        summary_table(title, ["phase", *(f"start {k + 1}" for k in range(options.times))], rows)
    if recoveries:
        title = f"Seconds from a worker's death to the checkpoint of a later step: median {statistics.median(recoveries):.1f}"
        summary_table(title, [f"death {k + 1}" for k in range(options.recoveries)], [[f"{s:.1f}" for s in recoveries]])


if __name__ == "__main__":
    run_main(lambda: main(parse(Startup, "python -m benchmarks.startup")))
