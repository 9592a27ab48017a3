"""Starts Ray's worker processes as forks of one process that has imported the job's modules: they then start without imports.

Ray starts each worker as ``python default_worker.py ...``; a worker that trains then imports torch and the job, for seconds. A
driver starts the server on its machine, which imports the modules that the driver has imported, while Ray starts. As
`py_executable` of the runtime environment, this file is run by Python before the worker: it hands its arguments, environment and
open files to the server, which forks, and the child goes on as that worker. Where no server answers (on another machine, or when
the driver has ended), or another network or container has asked, or other settings of libraries, Python is run as usual.

Ray itself is not imported before the fork: its core reads the environment, which differs between workers, when it is loaded.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ADDRESS = "HARDSHARD_FORK_SERVER"  # the socket's path, in the environment of workers
ALSO = ("pandas", "pydantic", "pyarrow.fs", "requests")  # Ray imports them in every worker that trains
PLAIN = "HARDSHARD_NO_FORKS"  # set in a driver's environment: its workers are started as Ray does
OURS = ("cluster", "datasets", "trainers")
JOB_MAY_BRING = ("_ray_commit", "config", "env_vars", "excludes", "py_modules", "working_dir")
READ_WHEN_LOADED = ("GOMP_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH_")
PATIENCE = 30.0  # seconds until the server answers; it does when its imports are done
OUT_OF_MEMORY = Path("/proc/self/oom_score_adj")  # how soon the kernel ends the process: Ray's workers before anything else


def start(threads: int) -> str:
    """Start the server, which ends with this process; returns the path of its socket.

    ``threads``: of numerical libraries, where OMP_NUM_THREADS does not say it: the CPUs of a worker, as Ray does.
    """
    folder = tempfile.mkdtemp(prefix="hardshard-fork-")  # only this user can open what is in it
    names = sorted(name for name in sys.modules if name.partition(".")[0] in OURS)
    command = [sys.executable, __file__, "--serve", folder, str(threads), json.dumps(sys.path), *ALSO, *names]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own module
    atexit.register(server.communicate)  # closes its stdin, on which it ends, and waits for it
    return f"{folder}/socket"


def wanted() -> bool:
    """Whether a driver that is about to join or start a Ray shall start a server: not where a Ray job brings its own Python."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    outside = os.environ.get("RAY_ADDRESS", "").startswith("ray://")
    plain_path = " " not in f"{tempfile.gettempdir()}{__file__}"  # a shell splits them
    return not outside and PLAIN not in os.environ and set(job) <= set(JOB_MAY_BRING) and plain_path


def _serve(folder: Path, threads: str, names: list[str]) -> None:
    """Answer requests until the driver has ended; returns in a fork, as the worker that was asked for."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        settings = _settings()
        os.environ.setdefault("OMP_NUM_THREADS", threads)
        _import(names)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks that have ended
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            with contextlib.suppress(OSError, ValueError), listener.accept()[0] as connection:
                if _forked(connection, settings):
                    return
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit()


def _import(names: list[str]) -> None:
    sys.modules["ray"] = None  # type: ignore[assignment]  # modules that import it are left to the workers
    for name in names:
        with contextlib.suppress(Exception):
            import_module(name)
    del sys.modules["ray"]
    gc.collect()
    gc.freeze()  # else the first collection in each fork would copy all pages


def _forked(connection: socket.socket, settings: Mapping[str, str]) -> bool:
    """Answer a request; True in the fork, which has become what was asked for, but for its script."""
    connection.settimeout(PATIENCE)
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    try:
        with connection.makefile("rb") as stream:
            asked: dict[str, Any] = json.loads(stream.read(int.from_bytes(size, "big")))
        same = asked["settings"] == settings
        connection.sendall(b"y" if same else b"n")  # raises OSError when nobody waits any more
        if not same or os.fork():
            return False
        if os.fork():  # the worker is no descendant of the driver, to whose descendants `ray job stop` sends SIGTERM
            os._exit(0)
        for number, file in enumerate(files):
            os.dup2(file, number)
    finally:
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray sends signals to a worker's whole process group, in which it had started the asking process
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, asked["niceness"])
        OUT_OF_MEMORY.write_text(asked["out_of_memory"])
    sys.argv = asked["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    return True


def _settings() -> dict[str, str]:
    """What a fork and its server must have in common: what libraries read when they are loaded, and the namespaces, so that a
    worker of another container or network that shares the folder of the socket stays there."""
    read = {name: value for name, value in os.environ.items() if name.startswith(READ_WHEN_LOADED)}
    return {**read, **{str(path): str(path.readlink()) for path in sorted(Path("/proc/self/ns").iterdir())}}


def _asked(arguments: list[str]) -> bool:
    """Ask the server for a worker with these arguments of Python; returns whether it forks one."""
    what: dict[str, Any] = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    what |= {"settings": _settings(), "niceness": os.getpriority(os.PRIO_PROCESS, 0), "out_of_memory": OUT_OF_MEMORY.read_text()}
    request = json.dumps(what).encode()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(os.environ.get(ADDRESS, ""))
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        return connection.recv(1) == b"y"
    return False


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        path = json.loads(sys.argv[4])
        own = [folder for folder in sys.path[1:] if folder not in path]
        sys.path[:] = [path[0], *path, *own]  # the first is that of the script, which forks replace by that of theirs
        _serve(Path(sys.argv[2]), sys.argv[3], sys.argv[5:])
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif not _asked(sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - what Ray has asked for
