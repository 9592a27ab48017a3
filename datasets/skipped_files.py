"""Files that are never packed (hidden files, desktop clutter), and the summary line that reports left-out files."""

from collections.abc import Sequence

CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}
LITTER = "hidden files and what desktops leave behind"
NAMED = 3  # names that a summary lists for each rule


def left_out_line(rule: str, count: int, names: Sequence[str]) -> str:
    """Return the summary line for files that a rule leaves out: how many, and the first names."""
    more = f" (+{count - NAMED:,} more)" if count > NAMED else ""
    return f"left out {count:,}, {rule}: {', '.join(names[:NAMED])}{more}"


def is_litter(name: str) -> bool:
    """Whether a file is hidden, or created by a desktop (``._x.jpg``, ``__MACOSX/``, ``Thumbs.db``)."""
    return any(part in CLUTTER or part.startswith(".") for part in name.split("/"))
