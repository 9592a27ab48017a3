"""Values as text in tables, the same on the console and on a report's page."""

import math
import numbers
import re
from collections.abc import Sequence

ABSENT = "–"
_NUMBER = re.compile(r"[+\-−±]?\d[\d.,]*(e[+\-]?\d+)?( ?[%×x]| ?[a-zA-Zµ]{1,3}(/[a-z]+)?)?")


def cell_text(value: object) -> str:
    """None and NaN as a dash, booleans as yes and no, floats to four significant digits, integers in groups of three."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}"
    return readable(str(value))


def readable(text: str) -> str:
    """``text`` with everything replaced that UTF-8 cannot encode, such as bytes of a file name that were not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def table_cells(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[list[str]], list[bool]]:
    """The rows as texts, and for each column whether it holds only numbers (and so is aligned right).

    Raises ValueError when a row's length is not the number of columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns: {row!r}")
    texts = [[cell_text(value) for value in row] for row in rows]
    return texts, [_numeric([row[column] for row in texts]) for column in range(len(columns))]


def _numeric(texts: Sequence[str]) -> bool:
    said = [text for text in texts if text not in (ABSENT, "")]
    return bool(said) and all(_NUMBER.fullmatch(text) for text in said)
