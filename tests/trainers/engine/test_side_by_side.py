"""A comparison whose runs are trained at once: killed and started again, and with runs that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trainers.engine.run import Run

RUN = [
    "--cluster.local", "--loader.workers", "0", "--loader.size", "16", "16", "--sampler.batch", "16", "--checkpoint-every", "10",
    "--arms", "uniform", "--seeds", "0", "1",
]  # fmt: skip


def compare(folder: Path, name: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "trainers/reid.py", "compare", *RUN, "--name", name, "--runs", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_of(folder: Path, name: str) -> list[str]:
    return [path.name for path in (folder / name).glob("step-*")]


def trainers_in(folder: Path) -> list[int]:
    """The processes that train runs of this folder."""
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if str(folder).encode() in _command_line(p)]


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def figures(folder: Path, name: str) -> Any:
    return json.loads((folder / name / "comparison.json").read_text())["figures"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_at_once_end_as_one_after_the_other_also_after_a_kill(tmp_path: Path) -> None:
    options = ["--optim.steps", "160", "--evaluate-every", "80"]
    killed = compare(tmp_path, "both", "--jobs", "2", *options)
    deadline = time.monotonic() + 120
    while not (steps_of(tmp_path, "both-uniform-0") and steps_of(tmp_path, "both-uniform-1")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(trainers_in(tmp_path)) == 3
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    while trainers_in(tmp_path):  # each stores a checkpoint and ends
        assert time.monotonic() < deadline
        time.sleep(0.05)
    continued = compare(tmp_path, "both", "--jobs", "2", *options)
    out, error = continued.communicate(timeout=280)
    assert continued.returncode == 0, error
    assert "both-uniform-1: step 160: " in out
    assert "2 of 2 runs are over" in out
    assert (tmp_path / "both" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    in_turn = compare(tmp_path, "turn", *options)
    assert (in_turn.communicate(timeout=280), in_turn.returncode)[1] == 0
    assert figures(tmp_path, "both") == figures(tmp_path, "turn")


def test_runs_that_fail_are_named_and_do_not_end_the_others(tmp_path: Path) -> None:
    Run(str(tmp_path), "some-uniform-0").write_text("metrics.json", "{}")  # not a run's: it has no config
    (tmp_path / "some-uniform-1").write_text("a file where the run's folder should be")
    process = compare(tmp_path, "some", "--jobs", "2", "--optim.steps", "10")
    out, error = process.communicate(timeout=280)
    assert process.returncode == 2
    assert "some-uniform-0 has ended; " in out
    assert "some-uniform-1 failed with exit code" in out
    assert error.splitlines()[-1].startswith("error: 1 of 2 runs failed: some-uniform-1: ")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_end_all_runs(number: signal.Signals, tmp_path: Path) -> None:
    process = compare(tmp_path, "ended", "--jobs", "2", "--optim.steps", "2000")
    deadline = time.monotonic() + 120
    while not steps_of(tmp_path, "ended-uniform-1"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert not trainers_in(tmp_path)
    assert out.count("continue it with: ") == 2
