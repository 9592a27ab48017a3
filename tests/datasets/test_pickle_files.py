"""Pickles of plain data are read without unpickling; everything else is refused in one line."""

import io
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.pickle_files import Bytes, read_pickle


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # written in Python, so that it can be changed
    """Writes bytes and texts as Python 2 wrote its str."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _save_str(self, value: bytes | str) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write(
            (pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + len(data).to_bytes(1 if short else 4, "little") + data
        )
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = _save_str


def python2(value: Any) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it."""
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def filled(value: Any, data: bytes) -> Any:
    """The value with the byte strings that stay in the file."""
    if isinstance(value, Bytes):
        return data[value.offset : value.offset + value.size]
    return type(value)(filled(item, data) for item in value) if isinstance(value, list | tuple) else value


def read(data: bytes) -> Any:
    """What a pickle holds."""
    return filled(read_pickle(io.BytesIO(data), "here"), data)


WRITERS: list[Callable[[Any], bytes]] = [python2, *(lambda value, p=p: pickle.dumps(value, p) for p in (3, 4, 5))]  # type: ignore[misc]
values = st.recursive(
    st.booleans() | st.binary() | st.integers(0, 255) | st.binary(min_size=250, max_size=270),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple),
)


@given(value=values, writer=st.sampled_from(WRITERS))
def test_values_come_back_as_pickle_itself_reads_them(value: Any, writer: Callable[[Any], bytes]) -> None:
    data = writer(value)
    assert read(data) == value
    assert pickle.loads(data, encoding="bytes") == value  # noqa: S301 - our own: the writers are right


def test_a_byte_string_that_occurs_again() -> None:
    image = b"image" * 100
    assert all(read(writer([image, image, [image]])) == [image, image, [image]] for writer in WRITERS)


class Malicious:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/hardshard-was-here",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        Malicious(),
        [b"1", Malicious()],
        np.ones(3),
        np.float32(1),
        np.array([None]),
        np.array(["a"]),
        {"a": 1},
        1.5,
        {1},
        os.system,
        print,
    ],
)
def test_everything_else_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(
        InputError, match=r"(a pickle with [\w .]+ at byte \d+: here; only lists)|(an array of \w+: here)"
    ) as error:
        read(pickle.dumps(value, protocol))
    assert "\n" not in str(error.value)


@given(
    st.lists(st.binary(min_size=1) | st.binary(min_size=250, max_size=300), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1),
    st.sampled_from(WRITERS),
)
def test_numpy_arrays_of_bytes_and_booleans(images: list[bytes], same: list[bool], writer: Callable[[Any], bytes]) -> None:
    arrays = [np.frombuffer(image, np.uint8).copy().reshape(shape) for image in images for shape in ((-1,), (-1, 1))]
    assert read(writer((arrays, np.array(same)))) == ([image for image in images for _ in range(2)], same)
    assert read(writer(([arrays[0], arrays[0]], [np.bool_(value) for value in same]))) == ([images[0]] * 2, same)


def test_names_of_numpy_are_no_way_to_call_it() -> None:
    for call in (b"cnumpy\nndarray\n(K\x01tR.", b"cnumpy\ndtype\n(tR.", b"cnumpy.core.multiarray\nscalar\n(K\x01tR."):
        with pytest.raises(InputError, match="not a whole pickle"):
            read(b"\x80\x02" + call)
    with pytest.raises(InputError, match="a pickle with GLOBAL numpy save at byte 2"):
        read(b"\x80\x02cnumpy\nsave\n.")


def test_bytes_of_python_3_in_protocol_2_call_a_function_so_they_are_refused() -> None:
    with pytest.raises(InputError, match=r"GLOBAL.*write it so, with protocol 4"):
        read(pickle.dumps([b"image"], 2))


GOOD = pickle.dumps(([b"image" * 99, b"2"], [True]), 4)


@pytest.mark.parametrize("data", [GOOD[:cut] for cut in range(len(GOOD))])
def test_a_pickle_that_is_cut_off(data: bytes) -> None:
    with pytest.raises(InputError, match="not a whole pickle"):
        read(data)


# Lists of the list before, twice: 60 deep, so that printing the last would take for ever; it is in memo 59.
NESTED = b"\x80\x04]\x94" + b"".join(b"]\x94(" + bytes([ord("h"), place]) * 2 + b"e" for place in range(59))
FROM_BUFFER = b"cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\nX\x02\0\0\0u1\x85R"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (GOOD + b"x", "more data after the pickle"),
        (b"\xff" + GOOD, "not a whole pickle"),
        (b"\x80\x04.", "not a whole pickle"),  # nothing on the stack
        (b"\x80\x04\x88\x89.", "not a whole pickle"),  # two values
        (b"\x80\x04h\x05.", "not a whole pickle"),  # a memo that is not there
        (b"\x80\x04e.", "not a whole pickle"),  # no mark
        (b"\x80\x04\x88(\x88e.", "not a whole pickle"),  # appended to a boolean
        (b"\x80\x04\x88\x87.", "not a whole pickle"),  # a tuple of three, of one
        (b"\x80\x04\x8e" + b"\xff" * 8, "not a whole pickle"),  # a string of 2^64 bytes
        (NESTED + b"\x8c\x01a\x93.", "a pickle with STACK_GLOBAL"),  # names of 2^60 lists
        (NESTED + b"cnumpy\ndtype\nh\x3b\x85R.", "not a whole pickle"),
        (b"\x80\x02" + FROM_BUFFER + b"J\xff\xff\xff\x7f]K\x00a\x86K\x01tR.", "contradicts its shape"),  # 2^31 times a list
    ],
)
def test_damaged_pickles(data: bytes, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        read(data)
    assert "\n" not in str(error.value)


@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    for data in (noise, GOOD[:at] + noise + GOOD[at:]):
        with suppress(InputError):
            read_pickle(io.BytesIO(data), "here")
