"""Files of a source that no set takes, and the line of a summary that reports them."""

from collections.abc import Sequence
from pathlib import PurePosixPath

CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}


LITTER = "hidden files and what desktops leave behind"


NAMED = 3  # first names that a summary gives of what a rule leaves out


def left_out_line(rule: str, count: int, names: Sequence[str]) -> str:
    """A summary's line about files that a rule leaves out: how many, and the first of their names."""
    more = f" (+{count - NAMED:,} more)" if count > NAMED else ""
    return f"left out {count:,}, {rule}: {', '.join(names[:NAMED])}{more}"


def is_litter(name: str) -> bool:
    """Whether a file is one that desktops leave behind (``._x.jpg``, ``__MACOSX/``, ``Thumbs.db``), or hidden."""
    return any(part in CLUTTER or part.startswith(".") for part in PurePosixPath(name).parts)
