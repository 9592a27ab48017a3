"""The demo data in the repository: a subset of Omniglot (Lake et al., Science 2015; MIT licence in datasets/data).

242 handwritten characters, each drawn by 20 people. A character is an identity, the person who drew it a camera.
"""

import hashlib
from pathlib import Path

from datasets.home_folder import locked_home
from datasets.pack import VERSION, Options, pack
from datasets.shards.index import MANIFEST

ARCHIVE = Path(__file__).parent / "data" / "omniglot_small.zip"
OPTIONS = Options(shard_size=512 * 1024)  # small shards, so that this small set has several of them to shuffle


def shipped_set() -> str:
    """Return the folder of the demo data as shards. The first call on each node packs them, always to the same bytes.

    Raises:
        InputError: the home folder ($HARDSHARD_HOME, else ~/.cache/hardshard) cannot be written.
    """
    key = f"{ARCHIVE.stat().st_size} {OPTIONS} {VERSION}"
    with locked_home("omniglot-small", "the shipped data cannot be packed") as home:  # all ranks of a node call this at once
        folder = home / f"omniglot-small-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        if not (folder / MANIFEST).exists():
            pack("omniglot", ARCHIVE, str(folder), OPTIONS)
    return str(folder)
