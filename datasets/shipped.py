"""The data that the repository ships: a subset of Omniglot (Lake et al., Science 2015; MIT licence in datasets/data).

242 handwritten characters by 20 drawers. A character is an identity, its drawer a camera.
"""

import fcntl
import os
from pathlib import Path

from datasets.index import MANIFEST
from datasets.pack import Options, pack

ARCHIVE = Path(__file__).parent / "data" / "omniglot_small.zip"
OPTIONS = Options(shard_size=512 * 1024)  # small shards, so that a small set too has several to stream and to shuffle


def shipped_set() -> str:
    """The folder of the shipped data as shards; packed when it is first asked for, on each node, to the same bytes."""
    home = Path(os.environ.get("HARDSHARD_HOME") or Path.home() / ".cache" / "hardshard")
    folder = home / f"omniglot-small-{ARCHIVE.stat().st_size}"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "omniglot-small.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of a node come here at the same time
        if not (folder / MANIFEST).exists():
            pack("omniglot", ARCHIVE, str(folder), OPTIONS)
    return str(folder)
