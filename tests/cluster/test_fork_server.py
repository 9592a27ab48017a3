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
    "arguments": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "name": __name__, "parent": os.getppid(),
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
print(json.dumps(fork_server.start(3)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A driver that has started a server: its process, and the runtime environment of workers."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdin=-1, stdout=-1, text=True) as driver:
        assert driver.stdout
        yield {"driver": driver, **json.loads(driver.stdout.readline())}
        driver.kill()


def ask(server: dict[str, Any], folder: Path, wrap: str = "", **more: str) -> tuple[dict[str, Any], "subprocess.Popen[str]"]:
    """What a worker that is started as Ray starts it says about itself, and the process that was started."""
    (folder / "script.py").write_text(SCRIPT)
    command = f"{wrap} exec {server['py_executable']} script.py --number 5"
    environment = {**os.environ, **server["env_vars"], "ASKED": "yes", **more}
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
    said, started = ask(server, tmp_path, wrap="renice -n 3 $$ > /dev/null;")
    with started:
        assert started.wait(30) == 0  # it has handed over
        assert said["imported"]
        assert said["arguments"] == ["script.py", "--number", "5"]
        assert (said["folder"], said["set"], said["name"], said["niceness"]) == (str(tmp_path), "yes", "__main__", 3)
        assert said["group"] == said["process"] != started.pid  # Ray ends a worker with its process group
        assert (said["ray"], said["children"], said["threads"]) == (False, True, None)
        assert started.stdin
        started.stdin.close()  # which the fork has inherited
        until_ended(said["process"])


def test_a_process_with_other_settings_of_libraries_is_no_fork(server: dict[str, Any], tmp_path: Path) -> None:
    said, started = ask(server, tmp_path, OPENBLAS_NUM_THREADS="7")
    with started:
        assert not said["imported"]
        assert said["process"] == started.pid
        assert (said["arguments"], said["set"]) == (["script.py", "--number", "5"], "yes")
        started.communicate()
        assert started.returncode == 3


def test_the_server_ends_with_the_driver_and_its_forks_go_on(server: dict[str, Any], tmp_path: Path) -> None:
    said, started = ask(server, tmp_path)
    server["driver"].send_signal(signal.SIGKILL)
    until_ended(said["parent"])
    assert not Path(server["env_vars"][fork_server.ADDRESS]).parent.exists()
    assert not ended(said["process"])
    later, plain = ask(server, tmp_path)
    with started, plain:
        assert (later["imported"], later["process"]) == (False, plain.pid)  # as usual: no server answers any more
        plain.communicate()
        assert started.stdin
        started.stdin.close()
        until_ended(said["process"])
