"""Reads pickles of plain data without unpickling: lists, tuples, booleans, byte strings, numpy arrays of bytes and booleans.

No name in a pickle is looked up, and nothing is called: the few names that numpy's arrays need are recognised by their text.
"""

import math
import pickletools
from typing import IO, Any, NamedTuple

from datasets.errors import InputError

# Opcodes of byte strings, with the bytes of their length. BINSTRING is Python 2's str.
STRINGS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4}
VALUES: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
ARGUMENTS = ("BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE")  # opcodes whose value is their argument
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NAMES = {
    "numpy ndarray": "ndarray", "numpy dtype": "dtype",
    **{f"numpy.{core}.multiarray {name}": name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{f"numpy.{core}.numeric _frombuffer": "_frombuffer" for core in ("core", "_core")},
}  # fmt: skip
DTYPES = {"u1": "bytes", "uint8": "bytes", "b1": "booleans", "bool": "booleans"}
MARK = object()
HEAD = 12  # bytes


class Bytes(NamedTuple):
    """A byte string that stays in the file; ``head``: its first 12 bytes."""

    offset: int
    size: int
    head: bytes


class _Name(NamedTuple):
    """One of numpy's functions or types, which is not looked up."""

    name: str


class _Dtype(NamedTuple):
    content: str


class _Array:
    """An array that is still without its content; memoised so, before the content follows."""

    value: Any = None


def read_pickle(stream: IO[bytes], where: str) -> Any:
    """Return a pickle's lists, tuples, booleans, whole numbers and texts; byte strings as `Bytes`.

    Of numpy's arrays, those of uint8 are byte strings, too, and those of booleans are lists.

    Raises:
        InputError: anything else is in it, it is damaged or cut off, or more follows.
    """
    reader = _Reader(stream, where)
    try:
        for opcode, argument, at in pickletools.genops(stream):
            reader.run(opcode.name, argument, at or 0)
        (value,) = reader.stack
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"not a whole pickle ({error})", where, "is it the file that was published? Get it again") from error
    if stream.read(1):
        raise InputError("more data after the pickle", where, "get it again")
    return value


class _Reader:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._stream, self._where = stream, where

    def run(self, name: str, argument: Any, at: int) -> None:
        """Run one opcode, which begins at a byte of the file."""
        stack = self.stack
        if name in STRINGS:
            head = argument[:HEAD]
            stack.append(
                Bytes(at + 1 + STRINGS[name], len(argument), bytes(head, "latin-1") if isinstance(head, str) else bytes(head))
            )
        elif name in VALUES:
            stack.append(VALUES[name])
        elif name in ARGUMENTS:
            stack.append(argument)
        elif name == "MARK":
            stack.append(MARK)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "APPEND":
            stack[-2].append(stack.pop())
        elif name == "APPENDS":
            items = self._marked()
            stack[-1].extend(items)
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in TUPLES:
            stack.append(tuple(self._popped(TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            found = self._memo[argument]
            stack.append(found.value if isinstance(found, _Array) and found.value is not None else found)
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._run_numpy(name, argument, at)

    def _run_numpy(self, name: str, argument: Any, at: int) -> None:
        """Run one of the opcodes that can run code, if it makes an array; raises InputError for anything else."""
        stack = self.stack
        if name == "GLOBAL" and argument in NAMES:
            stack.append(_Name(NAMES[argument]))
        elif name == "STACK_GLOBAL" and isinstance(stack[-2], str) and f"{stack[-2]} {_text(stack[-1])}" in NAMES:
            stack.append(_Name(NAMES[" ".join(self._popped(2))]))
        elif name == "REDUCE" and isinstance(stack[-2], _Name):
            function, arguments = self._popped(2)
            stack.append(self._called(function.name, arguments))
        elif name == "BUILD" and isinstance(stack[-2], _Dtype):
            stack.pop()  # byte order and alignment
        elif name == "BUILD" and isinstance(stack[-2], _Array):
            array, (_, shape, dtype, _, data) = self._popped(2)
            array.value = self._content(dtype, data, shape)
            stack.append(array.value)
        else:
            what = f"a pickle with {name}{f' {argument}' if name == 'GLOBAL' else ''} at byte {at}"
            remedy = (
                "only lists, tuples, booleans and byte strings are read, since others can run code: write it so, with protocol 4"
            )
            raise InputError(what, self._where, remedy)

    def _called(self, name: str, arguments: Any) -> Any:
        """Return what one of numpy's functions would return; raises InputError or ValueError for what is not read."""
        if name == "_reconstruct":
            return _Array()
        if name == "dtype":
            text = _text(arguments[0])
            if text not in DTYPES:
                raise InputError(f"an array of {text}", self._where, "only arrays of bytes and booleans are read")
            return _Dtype(DTYPES[text])
        if name == "_frombuffer":
            data, dtype, shape, _ = arguments
            return self._content(dtype, data, shape)
        if name == "scalar":
            dtype, data = arguments
            (value,) = self._content(dtype, data, (1,))
            return value
        raise ValueError(f"a call of numpy's {name}")

    def _content(self, dtype: Any, data: Any, shape: Any) -> Any:
        """Return the content of an array: `Bytes`, or a list of booleans."""
        whole = isinstance(shape, tuple) and all(isinstance(side, int) for side in shape)
        if not isinstance(dtype, _Dtype) or not isinstance(data, Bytes) or not whole or math.prod(shape) != data.size:
            raise ValueError("an array that contradicts its shape, or not of bytes or booleans")
        if dtype.content == "bytes":
            return data
        following = self._stream.tell()
        self._stream.seek(data.offset)
        booleans = [byte != 0 for byte in self._stream.read(data.size)]
        self._stream.seek(following)
        return booleans

    def _popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("too few values")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        """Remove and return what stands above the last mark, and remove the mark."""
        mark = next((place for place in range(len(self.stack) - 1, -1, -1) if self.stack[place] is MARK), None)
        if mark is None:
            raise IndexError("no mark")
        items = self.stack[mark + 1 :]
        del self.stack[mark:]
        return items


def _text(value: Any) -> str:
    """Return a short text, of Python 2 as well; raises ValueError for anything else, which could be without end."""
    if isinstance(value, Bytes):
        return value.head.decode("ascii")
    if not isinstance(value, str):
        raise ValueError("a name that is no text")
    return value
