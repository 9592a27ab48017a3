"""The server that forks Ray's workers: a fork is what was asked for, and without an answer Python is run as usual."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import fork_server

OURS = "datasets.seeding"
SCRIPT = f"""
import json, os, signal, sys
print(json.dumps({{
    "arguments": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "name": __name__,
    "group": os.getpgid(0), "process": os.getpid(), "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "set": os.environ.get("ASKED"), "imported": "{OURS}" in sys.modules, "ray": "ray" in sys.modules,
    "threads": os.environ.get("OMP_NUM_THREADS"), "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
}}), flush=True)
sys.stdin.read()
sys.exit(3)
"""
DRIVER = """
import json, sys
import datasets.seeding
from cluster import fork_server
fork_server.ALSO = ()
print(fork_server.start(3), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A driver that has started a server: its process, and workers' environment."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdin=-1, stdout=-1, text=True) as driver:
        assert driver.stdout
        yield {"driver": driver, "environment": {fork_server.ADDRESS: driver.stdout.readline().strip()}}
        driver.kill()


def ask(server: dict[str, Any], folder: Path, wrap: str = "", **more: str) -> tuple[dict[str, Any], "subprocess.Popen[str]"]:
    """What a worker that is started as Ray starts it says about itself, and the process that was started."""
    (folder / "script.py").write_text(SCRIPT)
    command = f"exec {wrap} {sys.executable} {fork_server.__file__} script.py --number 5"
    environment = {**os.environ, **server["environment"], "ASKED": "yes", **more}
    started = subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, stdin=-1, stdout=-1, text=True)
    assert started.stdout
    return json.loads(started.stdout.readline()), started


def ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until_ended(process: int) -> None:
    deadline = time.monotonic() + 30
    while not ended(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_fork_is_the_worker_that_was_asked_for(server: dict[str, Any], tmp_path: Path) -> None:
    said, started = ask(server, tmp_path, wrap="nice -n 3")
    with started:
        assert said["imported"]
        assert started.wait(30) == 0  # it has handed over
        assert said["arguments"] == ["script.py", "--number", "5"]
        assert (said["folder"], said["set"], said["name"]) == (str(tmp_path), "yes", "__main__")
        assert said["niceness"] == os.getpriority(os.PRIO_PROCESS, 0) + 3
        assert said["group"] == said["process"] != started.pid  # Ray ends a worker with its process group
        assert (said["ray"], said["children"], said["threads"]) == (False, True, None)
        assert started.stdin
        started.stdin.close()  # which the fork has inherited
        until_ended(said["process"])


@pytest.mark.parametrize(("wrap", "more"), [("", {"OPENBLAS_NUM_THREADS": "7"}), ("unshare --uts", {})])
def test_a_process_with_other_settings_or_in_another_container_is_no_fork(
    server: dict[str, Any], tmp_path: Path, wrap: str, more: dict[str, str]
) -> None:
    if wrap and os.getuid():
        pytest.skip("only root may make a namespace")
    said, started = ask(server, tmp_path, wrap, **more)
    with started:
        assert not said["imported"]
        assert said["process"] == started.pid
        assert (said["arguments"], said["set"]) == (["script.py", "--number", "5"], "yes")
        started.communicate()
        assert started.returncode == 3


def test_the_server_ends_with_the_driver_and_its_forks_go_on(server: dict[str, Any], tmp_path: Path) -> None:
    said, started = ask(server, tmp_path)
    [serving] = psutil.Process(server["driver"].pid).children(recursive=True)  # the fork is none of the driver's descendants
    server["driver"].send_signal(signal.SIGKILL)
    until_ended(serving.pid)
    assert not Path(server["environment"][fork_server.ADDRESS]).parent.exists()
    assert not ended(said["process"])
    later, plain = ask(server, tmp_path)
    with started, plain:
        assert (later["imported"], later["process"]) == (False, plain.pid)  # as usual: no server answers any more
        plain.communicate()
        assert started.stdin
        started.stdin.close()
        until_ended(said["process"])


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, True),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, True),
        ({"RAY_ADDRESS": "ray://head:10001"}, False),
        ({fork_server.PLAIN: "1"}, False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"working_dir": "gcs://a.zip", "env_vars": {"A": "1"}}}'}, True),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"pip": ["numpy"]}}'}, False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {}}'}, True),
    ],
)
def test_a_job_that_brings_its_own_python_is_not_forked(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool
) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", fork_server.PLAIN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fork_server.wanted() is wanted
