"""Safe reading of untrusted text, JSON, csv and XML. Every fault is an InputError that names the file."""

import codecs
import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from datasets.errors import InputError

WHOLE = "is the file whole, and of the layout that was named?"


def text_of(data: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        InputError: another encoding.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"not a text in UTF-8 (byte {error.start})", where, "save it as UTF-8, or take it out") from error


def json_of(data: bytes | str, where: str, remedy: str = WHOLE) -> Any:
    """Parse a JSON document; raises InputError, also where it is nested too deep."""
    try:
        return json.loads(text_of(data, where) if isinstance(data, bytes) else data)
    except ValueError as error:
        raise InputError(f"not a JSON document ({error})", where, remedy) from error
    except RecursionError as error:
        raise InputError("a JSON document nested too deep", where, remedy) from error


def csv_rows(text: str, where: str, needed: Collection[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv with a header, each as (where it is, in words; its cells by column).

    Raises:
        InputError: a needed column is missing, or a row has more or fewer cells than the header.
    """
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = list(rows.fieldnames or ())
        if missing := [column for column in needed if column not in columns]:
            raise InputError(f"no column {', '.join(missing)}", where, f"it has: {', '.join(columns) or 'none'}")
        for row in rows:
            place = f"line {rows.line_num} of {where}"
            if None in row or None in row.values():
                raise InputError("more or fewer cells than columns", place, WHOLE)
            yield place, row
    except csv.Error as error:
        raise InputError(f"not a csv ({error})", f"line {rows.line_num} of {where}", WHOLE) from error


def csv_columns(text: str) -> list[str]:
    """Return the names of a csv's columns."""
    return next(csv.reader(io.StringIO(text, newline="")), [])


def xml_of(data: bytes, where: str, remedy: str) -> ElementTree.Element:
    """Parse an XML document in the encoding that it declares.

    Raises:
        InputError: not an XML, or one with a DTD, which can expand to gigabytes.
    """
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([A-Za-z0-9._-]+)[\"'][^>]*\?>", data.removeprefix(codecs.BOM_UTF8))
    encoding = declared[1].decode() if declared else "utf-8"
    unicode = encoding.lower() in ("utf-8", "utf-16")
    try:  # Python's parser knows no multi-byte encoding but Unicode, so the text is decoded here
        text = text_of(data, where) if unicode else data.decode(WIDER.get(encoding.lower(), encoding))
    except (LookupError, UnicodeDecodeError) as error:
        raise InputError(f"not a text in {encoding}, which it declares", where, "save it as UTF-8") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError("an XML with a DTD", where, remedy)
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL))  # noqa: S314 - no DTD
    except (ElementTree.ParseError, RecursionError) as error:
        raise InputError(f"not an XML ({error})", where, remedy) from error


WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}  # files that declare these often use the larger sets


def number_of(value: Any, what: str, where: str) -> float:
    """Convert a number, or a text of one; raises InputError for anything else (a list, a boolean, another text)."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise InputError(f"{what} is {shown}, not a number", where, "correct the annotation") from error


def cell(row: Mapping[str, str], names: Collection[str]) -> str:
    """Return the cell of the first of these columns that the row has, stripped; "" for none."""
    return next((row[name].strip() for name in names if name in row), "")
