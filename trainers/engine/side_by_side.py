"""Trains several runs at once, each in a process of its own, which is the job's command with a file of settings."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, NamedTuple

from datasets.errors import InputError
from datasets.parent_death import signal_at_parents_death
from trainers.engine.config import to_json
from trainers.engine.run import Run

POLL_S = 0.2
LAST_LINES_S = 5.0  # for the last lines of a process that has ended; one of its own may hold the pipe open for longer


class RunsFailedError(Exception):
    """Some runs have failed: which, and how to go on. Exit code 1."""

    exit_code = 1


def train_side_by_side(configs: Sequence[Any], jobs: int, folder: Run, connect: Callable[[Any], None]) -> None:
    """Train these runs, ``jobs`` at a time, each from its newest checkpoint if it has one; print their lines with their names.

    A run that fails does not end the others. At SIGTERM or Ctrl-C every run stores a checkpoint and ends; so it does when this
    process is killed. ``folder``: gets the settings of each run as a file. ``connect``: `cluster.launch.connect`.

    Raises:
        InputError: a run failed because of wrong input, and no run for another reason.
        RunsFailedError: a run failed for another reason.
    """
    if not configs:
        return
    connect(configs[0].cluster)  # the runs join this cluster; two of them would each start one
    waiting, failed = deque(configs), dict[str, int]()
    with _ended_with_this() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.popleft()
                running[config.name] = _start(config, jobs, folder)
            for name, run in list(running.items()):
                if run.process.poll() is not None:
                    del running[name]
                    if code := run.ended():
                        failed[name] = code
                    count = len(configs) - len(waiting) - len(running)
                    said = f"failed with exit code {code}" if code else "has ended"
                    print(f"{name} {said}; {count} of {len(configs)} runs are over", flush=True)
            time.sleep(POLL_S)
    if failed:
        what = f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}"
        remedy = "their last lines above say why; the same command trains what is missing"
        if set(failed.values()) == {InputError.exit_code}:
            raise InputError(what, folder.url, remedy)
        raise RunsFailedError(f"{what}; {remedy}")


class _Running(NamedTuple):
    """A run's process, and the thread that prints its lines."""

    process: "subprocess.Popen[str]"
    printer: threading.Thread

    def ended(self) -> int:
        """Wait until it has ended and its last lines are printed; returns its exit code."""
        code = self.process.wait()
        self.printer.join(LAST_LINES_S)
        return code


def _start(config: Any, jobs: int, folder: Run) -> _Running:
    """Start the command that trains or continues a run, in a process group of its own: Ctrl-C is for this process alone."""
    script = sys.modules[type(config).__module__].__file__
    assert script is not None
    settings = f"{config.name}.json"
    folder.write_text(settings, to_json(config))
    where = ["--name", config.name, "--runs", config.runs, "--config", f"{folder.url}/{settings}", "--resume", "auto"]
    environment = dict(os.environ)
    if config.cluster.local:  # Ray sets it by the CPUs of a worker
        environment.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // jobs, 1)))
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, script, "train", *where], env=environment, start_new_session=True,
        preexec_fn=partial(signal_at_parents_death, signal.SIGTERM),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    printer = threading.Thread(target=_print_lines, args=(config.name, process.stdout), daemon=True)
    printer.start()
    return _Running(process, printer)


@contextmanager
def _ended_with_this() -> Iterator[dict[str, _Running]]:
    """The runs that are being trained, by name; those that still are at the end get SIGTERM, and are waited for."""
    running: dict[str, _Running] = {}
    try:
        yield running
    finally:
        for run in running.values():
            run.process.send_signal(signal.SIGTERM)
        for run in running.values():
            run.ended()


def _print_lines(name: str, lines: IO[str]) -> None:
    for line in lines:
        print(f"{name}: {line}", end="", flush=True)
