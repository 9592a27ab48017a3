"""Arrays are read as numpy reads them, and malicious ones are refused before memory is allocated."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datasets.errors import InputError
from datasets.numpy_files import array_of, arrays_of, texts_of


def npy(array: np.ndarray, **options: bool) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


def headed(shape: str, descr: str = "'<f8'", payload: bytes = bytes(8)) -> bytes:
    """An npy file with this header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def read(data: bytes, *names: str) -> dict[str, np.ndarray]:
    return arrays_of(io.BytesIO(data), "x.npz", names)


@given(
    array=arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.unicode_string_dtypes()), arrays.array_shapes(min_dims=0, min_side=0)
    )
)
@settings(max_examples=60)
def test_arrays_come_as_numpy_reads_them(array: np.ndarray) -> None:
    for stored in (array, np.asfortranarray(array)):
        got, expected = array_of(npy(stored)), np.load(io.BytesIO(npy(stored)))
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("data", [
    b"", b"\x93NUMPY", npy(np.zeros(3))[:-1], npy(np.zeros(3)) + b"x", npy(np.array([{}], object), allow_pickle=True),
    headed("(1000000000000,)"), headed("(-1,)"), headed("(0, -1)"), headed("(0, 99999999999999999999999)"), headed("(True,)"),
    headed("('a',)"), headed("(" + "1," * 70 + ")"), headed("(1,)", "'O'"), headed("(1,)", "'<U0'"),
    headed("(1,)", "[('a', '<f8'"),
    headed("(1,)", "(" * 400 + ")" * 400), headed("(1,)", "'V" + "9" * 30 + "'"), b"\x93NUMPY\x09\x00" + bytes(9),
])  # fmt: skip
def test_a_crafted_array_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"an array|an npy file"):
        array_of(data)
    with pytest.raises(InputError, match=r"x\.npz"):
        read(zipped({"a.npy": data}), "a")


def test_a_bomb_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"a.npy": npy(np.zeros(9)), "b.npy": npy(np.zeros(9_000))}
    monkeypatch.setattr("datasets.numpy_files.MAX_BYTES", 1_000)
    assert list(read(zipped(good), "a")) == ["a"]  # what is not asked for is not read
    with pytest.raises(InputError, match="arrays of 72,128 bytes; at most 1,000"):
        read(zipped(good), "b")
    lying = bytearray(zipped(good))
    for at in (lying.find(b"PK\1\2", lying.find(b"PK\1\2") + 1) + 24, lying.find(b"PK\3\4", 4) + 22):
        lying[at : at + 4] = (500).to_bytes(4, "little")  # it says to be small
    with pytest.raises(InputError, match="not an npz file of plain arrays"):
        read(bytes(lying), "b")


def test_other_faults_of_npz_files_are_reported() -> None:
    good = zipped({"a.npy": npy(np.zeros(9))})
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[good.find(b"PK\1\2") + 8] |= 1
    damaged = bytearray(good)
    damaged[good.find(b"a.npy") + 20] ^= 255
    for bad, message in (
        (b"nothing", "not a zip"), (good[:-30], "not a zip"), (bytes(encrypted), "not an npz"), (bytes(damaged), "not an npz"),
        (zipped({"b": b""}), "no array a: x.npz; it has: b"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read(bad, "a")


def test_texts() -> None:
    assert texts_of(np.array(["a", "ü"])) == ["a", "ü"]
    assert texts_of(np.array([b"a", b"\xff"])) == ["a", "\\xff"]
    assert texts_of(np.array([3, 4])) == ["3", "4"]
    no_unicode = np.frombuffer(b"\xff\xff\xff\xff", "<U1")
    for bad in (no_unicode, np.zeros((2, 2), "U1"), np.zeros(2)):
        with pytest.raises(ValueError):
            texts_of(bad)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_fuzzed_files_are_read_or_refused(data: st.DataObject) -> None:
    inner = data.draw(st.sampled_from([npy(np.zeros((2, 3), np.float32)), npy(np.array(["a", "b"])), headed("(1,)")]))
    file = bytearray(
        zipped({"a.npy": inner}, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])))
    )
    target = data.draw(st.sampled_from(["inner", "zip"]))
    spoilt = bytearray(inner) if target == "inner" else file
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        spoilt = spoilt or bytearray(1)
    try:
        if target == "inner":
            array_of(bytes(spoilt))
        else:
            texts_of(read(bytes(spoilt), "a")["a"])
    except (ValueError, InputError):
        pass
