"""Finds the files that a list names, whatever form of path the list uses."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from datasets.errors import InputError
from datasets.splits import split_of_path


def listed_path(text: str) -> str:
    """Normalise a path from a list: slashes only, without ``.``."""
    return "/".join(part for part in text.strip().replace("\\", "/").split("/") if part not in ("", "."))


class ListedFiles:
    """The files that a list may name. A name in a list means the one file whose path ends with it."""

    def __init__(self, names: Iterable[str], what: str = "image") -> None:
        self.what = what
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_name[PurePosixPath(name).name].append(name)

    def find(self, file: str, where: str, beside: str = "", split: str = "") -> str:
        """Return the path of the file that a list names; ``where``: the place in the list, for messages.

        If there are several, it is the one below ``beside``, the list's own folder, else the one in a folder of ``split``.

        Raises:
            InputError: there is no such file, or it is ambiguous.
        """
        wanted = listed_path(file)
        alike = self._by_name.get(PurePosixPath(wanted).name, [])
        found = [name for name in alike if f"/{name}".endswith(f"/{wanted}")]
        if len(found) > 1:
            found = [name for name in found if name == str(PurePosixPath(beside) / wanted)] or _narrowed(found, beside, split)
        if len(found) > 1:
            what = f"{len(found)} {self.what}s are called '{file}': {found[0]} and {found[1]}"
            raise InputError(what, where, "write more of its path, so that only one fits")
        if not found:
            remedy = f"there is {alike[0]}: correct the path" if alike else "is the download whole?"
            raise InputError(f"the {self.what} '{file}' is not there", where, remedy)
        return found[0]


def _narrowed(found: list[str], beside: str, split: str) -> list[str]:
    if beside:
        found = [name for name in found if name.startswith(f"{beside}/")] or found
    if split and len(found) > 1:
        found = [name for name in found if split_of_path(f"{PurePosixPath(name).parent}/_") == split] or found
    return found
