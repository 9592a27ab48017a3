"""The data that the repository ships: a subset of Omniglot (Lake et al., Science 2015; MIT licence in datasets/data).

242 handwritten characters by 20 drawers. A character is an identity, its drawer a camera.
"""

import fcntl
import hashlib
import os
from pathlib import Path

from datasets.errors import InputError
from datasets.pack import VERSION, Options, pack
from datasets.shards.index import MANIFEST

ARCHIVE = Path(__file__).parent / "data" / "omniglot_small.zip"
OPTIONS = Options(shard_size=512 * 1024)  # small shards, so that a small set too has several to stream and to shuffle


def shipped_set() -> str:
    """The folder of the shipped data as shards; packed when it is first asked for, on each node, to the same bytes.

    Raises:
        InputError: the home folder ($HARDSHARD_HOME, else ~/.cache/hardshard) cannot be written.
    """
    home = Path(os.environ.get("HARDSHARD_HOME") or Path.home() / ".cache" / "hardshard")
    key = f"{ARCHIVE.stat().st_size} {OPTIONS} {VERSION}"
    folder = home / f"omniglot-small-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / "omniglot-small.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"the shipped data cannot be packed ({error.strerror})", str(home), "set HARDSHARD_HOME") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of a node come here at the same time
        if not (folder / MANIFEST).exists():
            pack("omniglot", ARCHIVE, str(folder), OPTIONS)
    return str(folder)
