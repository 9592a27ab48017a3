"""How long a checkpoint keeps training from its next step: while it is stored in a thread, and if training waited for it.

    python -m benchmarks.checkpoints [--mb 150] [--times 5] [--json]

A state of so many megabytes (weights, and both moments of AdamW) is stored in a local folder and in a real S3 server on loopback,
behind a proxy that delays each answer by 20 ms. After each save one core does matrix products for a while, as
training does.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.checkpoint_folder import RunFolder
from cluster.local_worker import LocalWorker
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from tests.proxy import ProxyProcess
from tests.s3server import S3Server
from trainers.engine.checkpoint import write_state
from trainers.reports.console import summary_table

LATENCY_MS = 20.0
TRAINS_S = 3.0  # seconds of training between two saves


@dataclass(frozen=True)
class Checkpoints:
    """Measure how long saves block."""

    mb: int = 150
    times: int = 5
    json: bool = False

    def __post_init__(self) -> None:
        if self.mb < 1 or self.times < 1:
            raise InputError("mb and times must be at least 1")


def blocked(runs: str, state: dict[str, torch.Tensor], times: int) -> tuple[list[float], list[float]]:
    """Seconds that each save kept training, in turn: of those that a thread stores, and of those that are waited for."""
    worker = LocalWorker(torch.device("cpu"), RunFolder(runs, "run"), lambda records, notices: None)
    in_thread, waited = list[float](), list[float]()
    for number in range(times):
        for step, seconds in ((2 * number + 1, in_thread), (2 * number + 2, waited)):
            began = time.perf_counter()
            worker.save(f"step-{step:08d}", lambda folder: write_state(folder / "state.pt", state))
            if seconds is waited:
                worker.flush()
            seconds.append(time.perf_counter() - began)
            train()
            worker.flush()
    return in_thread, waited


def train() -> None:
    """Use one core for a while, as a step does."""
    until, product = time.perf_counter() + TRAINS_S, torch.ones(512, 512) / 512
    while time.perf_counter() < until:
        product = product @ product


def main(options: Checkpoints) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    state = {f"tensor {number}": torch.randn(1 << 18) for number in range(options.mb)}  # of a mebibyte each
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(S3Server(folder / "s3"))
        proxy = stack.enter_context(ProxyProcess(server.endpoint, latency_ms=LATENCY_MS, all_late=True))
        os.environ.update(server.environment())
        bucket = server.make_bucket("checkpoints")
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        places = {"folder": str(folder / "runs"), f"S3 at {LATENCY_MS:g} ms": f"{bucket}/runs"}
        found = {place: blocked(runs, state, options.times) for place, runs in places.items()}
    load = os.getloadavg()[0]
    if options.json:
        json.dump({"mb": options.mb, "load": load, "seconds": found}, sys.stdout)
        return
    rows = [[place, *(f"{statistics.median(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in both)] for place, both in found.items()]
    title = f"Seconds that a checkpoint of {options.mb} MB keeps training: median (range) of {options.times}, load {load:.0f}"
    summary_table(title, ["stored in", "in a thread", "waited for"], rows)


if __name__ == "__main__":
    run_main(lambda: main(parse(Checkpoints, "python -m benchmarks.checkpoints")))
