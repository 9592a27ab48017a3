"""The lease on a folder of a run: one driver at a time writes there, on whatever cluster it is.

A lease is a record ``lease/00000007.json`` in the folder. Its number is the fencing token. A driver takes the lease by creating
the record of the next number, which only one driver can; renews it, which proves that it lives; and marks it as released at the
end. Before each checkpoint the run's workers look for a record of a higher number: who finds one was taken over, and ends.

Whether a driver lives: one of this machine, by its process. Any other lives if it renews its lease. It is dead when it did not
for `STALE_S` seconds, by the clock of the storage or while this process watched; this machine's time of day is never compared.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem

from cluster.errors import ClusterError
from cluster.ledger import Ledger, Record, open_ledger
from cluster.storage import storage_uri

FOLDER = "lease"
RENEW_S = 15.0  # seconds between two renewals
STALE_S = 180.0  # seconds without renewal after which a lease can be taken over

_FORK = threading.Lock()  # held while a thread uses a lease: a process forked meanwhile would inherit locks that nobody opens
os.register_at_fork(before=_FORK.acquire, after_in_parent=_FORK.release, after_in_child=_FORK.release)


class Lease:
    """The lease with the fencing token ``token`` on a run's folder; the driver holds it, workers check it.

    ``holder``: the driver's random id. Two drivers have the same token where somebody has deleted the records in between.
    """

    def __init__(self, runs: str, name: str, token: int, holder: str) -> None:
        self._what = (runs, name, token, holder)
        self._ledger = _ledger_of(runs, name)

    def __reduce__(self) -> tuple[type["Lease"], tuple[str, str, int, str]]:
        return Lease, self._what

    def check(self) -> None:
        """Raises ClusterError when another driver has taken the run over, or the storage does not answer."""
        _, name, token, holder = self._what
        with _FORK:
            names = self._ledger.names(FOLDER)
            newest = self._ledger.get(names[-1]) if names and _token(names[-1]) >= token else None
        if newest and newest.get("id") != holder:
            what = f"'{name}' was taken over by {_holder(newest)}, as this driver had not renewed its lease"
            raise ClusterError(what, self._ledger.url, "let that one go on")


@contextmanager
def held(runs: str, name: str) -> Iterator[Lease]:
    """Take the lease on the folder of a run (or sweep), and renew it until the end of the context, which releases it.

    Where a driver that may be dead holds it, this waits until that one has renewed its lease, or may be taken over.

    Raises:
        ClusterError: the run is under way, or the storage refuses.
    """
    ledger, now = _ledger_of(runs, name), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    process = {"host": socket.gethostname(), "process": os.getpid(), "system": _system(), "began": _began(os.getpid())}
    record: Record = {"id": secrets.token_hex(8), **process, "since": now, "renewals": 0, "released": False}
    token, ended = _taken(ledger, name, record), threading.Event()
    renewer = threading.Thread(target=_renew, args=(ledger, _record_name(token), record, ended), name="lease", daemon=True)
    renewer.start()
    try:
        yield Lease(runs, name, token, record["id"])
    finally:
        ended.set()
        renewer.join()
        with suppress(ClusterError):  # it ends by itself, later
            ledger.put(_record_name(token), {**record, "released": True})


def drivers(runs: str) -> list[tuple[str, str, float]]:
    """Who trains in a folder of runs, on whatever cluster: run, driver, and seconds since it has renewed its lease.

    Raises:
        ClusterError: the storage refuses or does not answer.
        OSError: the folder cannot be listed.
    """
    filesystem, path = FileSystem.from_uri(storage_uri(runs))
    listed = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: _driver(runs, name), sorted(entry.base_name for entry in listed if not entry.is_file))
        return [driver for driver in found if driver]


def _driver(runs: str, name: str) -> tuple[str, str, float] | None:
    ledger = _ledger_of(runs, name)
    names = ledger.names(FOLDER)
    record = ledger.get(names[-1]) if names else None
    return (name, _holder(record), ledger.age(names[-1])) if record and not record.get("released") else None


def _taken(ledger: Ledger, name: str, record: Record) -> int:
    """Create a record as the lease's newest; returns its number."""
    seen: Record | None = None
    began = time.monotonic()
    while True:
        names = ledger.names(FOLDER)
        holder = (ledger.get(names[-1]) if names else None) or {"released": True}
        if holder.get("id") == record["id"]:  # this driver's: the first try had succeeded though its answer was lost
            return _token(names[-1])
        free, age = bool(holder.get("released")), 0.0
        if not free:
            lives, age = _lives(holder), max(time.monotonic() - began, ledger.age(names[-1]))
            if lives or (seen and seen != holder):
                what = f"'{name}' is under way: {_holder(holder)}, lease renewed {age:.0f} s ago"
                raise ClusterError(what, ledger.url, "stop it first, or choose another --name")
            free = lives is False or age > STALE_S
        if free:
            token = _token(names[-1]) + 1 if names else 1
            if ledger.create(_record_name(token), record) and ledger.names(FOLDER)[-1] == _record_name(token):
                for old in names:
                    ledger.delete(old)
                return token
            continue  # another driver was faster
        if not seen:
            print(f"'{name}' may be under way: {_holder(holder)}, lease renewed {age:.0f} s ago; waiting to see", flush=True)
        seen = holder
        time.sleep(1.0)


def _renew(ledger: Ledger, name: str, record: Record, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        record["renewals"] += 1
        with _FORK, suppress(ClusterError):  # tried again; meanwhile nobody else reaches the storage either
            ledger.put(name, record)


def _ledger_of(runs: str, name: str) -> Ledger:
    return open_ledger(f"{runs.rstrip('/') if runs.startswith('s3://') else storage_uri(runs)}/{name}")


def _record_name(token: int) -> str:
    return f"{FOLDER}/{token:08d}.json"


def _token(name: str) -> int:
    return int(Path(name).stem)


def _holder(record: Record) -> str:
    return f"process {record.get('process')} on {record.get('host')} since {record.get('since')}"


def _lives(holder: Record) -> bool | None:
    """Whether the holder's process lives; None: it is not one of this system's, so that nobody here knows."""
    if not holder.get("system") or holder["system"] != _system():
        return None
    return bool(holder["began"]) and _began(holder["process"]) == holder["began"]


def _system() -> str:
    """Where numbers of processes have a meaning: this boot of this machine, and the container; empty if that is unknown."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    return ""


def _began(process: int) -> str:
    """When a process began, in ticks since the boot; empty if it has ended. Another process may get its number."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    return ""
