"""Trains several runs at once, each in a process of its own, which is the job's command with a file of settings."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from datasets.errors import InputError
from trainers.engine.config import to_json
from trainers.engine.run import Run

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
POLL_S = 0.2


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
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        failed[name] = process.returncode
                    count = len(configs) - len(waiting) - len(running)
                    said = f"failed with exit code {process.returncode}" if process.returncode else "has ended"
                    print(f"{name} {said}; {count} of {len(configs)} runs are over", flush=True)
            time.sleep(POLL_S)
    if failed:
        what = f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}"
        remedy = "their last lines above say why; the same command trains what is missing"
        if set(failed.values()) == {InputError.exit_code}:
            raise InputError(what, folder.url, remedy)
        raise RunsFailedError(f"{what}; {remedy}")


def _start(config: Any, jobs: int, folder: Run) -> "subprocess.Popen[str]":
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
        [sys.executable, script, "train", *where], env=environment, start_new_session=True, preexec_fn=_end_with_parent,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    threading.Thread(target=_print_lines, args=(config.name, process.stdout), daemon=True).start()
    return process


@contextmanager
def _ended_with_this() -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Running processes by name; those that still run at the end get SIGTERM, and are waited for."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        yield running
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()


def _print_lines(name: str, lines: IO[str]) -> None:
    for line in lines:
        print(f"{name}: {line}", end="", flush=True)


_LIBC = ctypes.CDLL(None)  # loaded here: the new process only calls it


def _end_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
