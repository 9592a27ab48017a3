"""Reads pickles of plain data without unpickling: lists, tuples, booleans and byte strings, nothing that runs code."""

import pickletools
import struct
from typing import IO, Any, NamedTuple

from datasets.errors import InputError

# Opcodes of byte strings, with the bytes of their length. BINSTRING is Python 2's str.
STRINGS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4}
VALUES: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


class Bytes(NamedTuple):
    """A byte string that stays in the file."""

    offset: int
    size: int


def read_pickle(stream: IO[bytes], where: str) -> Any:
    """Return a pickle's lists, tuples, booleans and numbers below 256; byte strings as `Bytes`.

    Raises:
        InputError: any other opcode is in it, it is damaged or cut off, or more follows.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, at in pickletools.genops(stream):
            _run(opcode.name, argument, at or 0, stack, memo, where)
        (value,) = stack
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError, struct.error) as error:
        what = f"not a whole pickle ({error})"
        raise InputError(what, where, "is it the file that was published? Get it again") from error
    if stream.read(1):
        raise InputError("more data after the pickle", where, "get it again")
    return value


def _run(name: str, argument: Any, at: int, stack: list[Any], memo: dict[int, Any], where: str) -> None:
    """Run one opcode, which begins at a byte of the file."""
    if name in STRINGS:
        stack.append(Bytes(at + 1 + STRINGS[name], len(argument)))
    elif name in VALUES:
        stack.append(VALUES[name])
    elif name == "BININT1":
        stack.append(argument)
    elif name == "MARK":
        stack.append(MARK)
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "APPEND":
        stack[-2].append(stack.pop())
    elif name == "APPENDS":
        items = _marked(stack)
        stack[-1].extend(items)
    elif name == "TUPLE":
        stack.append(tuple(_marked(stack)))
    elif name in TUPLES and len(stack) >= TUPLES[name]:
        stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name not in ("PROTO", "FRAME", "STOP"):
        remedy = "only lists, tuples, booleans and byte strings are read, since others can run code: write it so, with protocol 4"
        raise InputError(f"a pickle with {name} at byte {at}", where, remedy)


def _marked(stack: list[Any]) -> list[Any]:
    """Remove and return what stands above the last mark, and remove the mark."""
    mark = next((place for place in range(len(stack) - 1, -1, -1) if stack[place] is MARK), None)
    if mark is None:
        raise IndexError("no mark")
    items = stack[mark + 1 :]
    del stack[mark:]
    return items
