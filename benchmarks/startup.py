"""How long a run takes from the command line to its first step, and where that time goes.

    python -m benchmarks.startup [--times 3] [--json]

Starts `python trainers/reid.py` on the shipped data, with a Ray of its own, and notes when it prints each phase's line.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from datasets.command_line import parse
from datasets.errors import InputError, run_main
from trainers.reports.console import summary_table

PHASES = (  # how the line begins that the run prints at a phase's end, and the phase
    ("run ", "imports, data checks, Ray's start"),
    ("step 0:", "controller and workers, imports there, first evaluation"),
    ("step 1/", "first step: loaders' start, a batch"),
)


@dataclass(frozen=True)
class Startup:
    """Measure the time to the first step."""

    times: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        if self.times < 1:
            raise InputError("there is nothing to measure", "--times")


def measure() -> list[float]:
    """Seconds of each phase of one start."""
    with tempfile.TemporaryDirectory() as runs:
        options = ["--runs", runs, "--optim.steps", "2", "--record_every", "1", "--checkpoint_every", "1"]
        command = [sys.executable, "trainers/reid.py", *options]
        environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"}
        began, ends = time.perf_counter(), list[float]()
        root = Path(__file__).parent.parent
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            if len(ends) < len(PHASES) and line.startswith(PHASES[len(ends)][0]):
                ends.append(time.perf_counter() - began)
        if process.wait() or len(ends) < len(PHASES):
            raise RuntimeError(f"the run ended with {process.returncode} after {len(ends)} of {len(PHASES)} phases")
    return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]


def main(options: Startup) -> None:
    """Measure and print."""
    seconds = [measure() for _ in range(options.times)]
    if options.json:
        print(json.dumps({"phases": [name for _, name in PHASES], "seconds": seconds}))
        return
    rows = [[name, *(f"{s[place]:.1f}" for s in seconds)] for place, (_, name) in enumerate(PHASES)]
    rows.append(["in all", *(f"{sum(s):.1f}" for s in seconds)])
    title = f"Seconds to the first step: median {statistics.median(sum(s) for s in seconds):.1f}, {os.cpu_count()} cores"
    summary_table(title, ["phase", *(f"start {k + 1}" for k in range(options.times))], rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Startup, "python -m benchmarks.startup")))
