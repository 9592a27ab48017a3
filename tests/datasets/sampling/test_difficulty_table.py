"""Versions of the difficulty vector in shared memory: none in use is overwritten, and other processes see them."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig

N = 5


def version(number: int) -> Difficulty:
    """A version whose contents show its number."""
    return Difficulty(number, np.full(N, number / 1000, np.float32), np.full((N, 1), number, np.int64))


def is_whole(found: Difficulty | None, number: int) -> bool:
    return found is not None and found.version == number and (found.nearest == number).all() and len(found.cosine) == N


PINNED = SamplerConfig(interval=4, lag=2, patience=0.05)


def test_put_and_get() -> None:
    table = DifficultyTable(N, PINNED)
    assert table.get(0) is None
    assert table.get(1) is None
    assert table.get(-1) is None
    assert table.latest() is None
    assert table.all() == []
    table.put(version(1))
    table.put(version(2))
    assert is_whole(table.get(1), 1)
    assert is_whole(table.get(2), 2)
    assert table.get(3) is None
    assert is_whole(table.latest(), 2)
    assert [v.version for v in table.all()] == [1, 2]


def test_what_is_there_stays_as_it_is() -> None:
    table = DifficultyTable(N, PINNED)
    table.put(version(1))
    table.put(Difficulty(1, np.zeros(N, np.float32), np.zeros((N, 1), np.int64)))
    assert is_whole(table.get(1), 1)


def test_a_version_holds_as_many_neighbours_as_the_draws_need() -> None:
    config = SamplerConfig("neighbours", batch=16, instances=1, skip=1)
    table, neighbours = DifficultyTable(20, config), np.arange(140, dtype=np.int32).reshape(20, 7)
    table.put(Difficulty(1, np.zeros(20, np.float32), neighbours))
    found = table.get(1)
    assert found is not None
    np.testing.assert_array_equal(found.neighbours, neighbours)
    np.testing.assert_array_equal(found.nearest, neighbours[:, 0])
    assert found.neighbours.dtype == np.int32


@pytest.mark.parametrize("identities", [N - 1, N, 1])
@pytest.mark.parametrize("shape", [(N, 1), (N, 2), (N,), (1, 3), (N, 1, 1)])
def test_a_version_of_another_shape_is_refused(identities: int, shape: tuple[int, ...]) -> None:
    """Also one that NumPy would broadcast. It leaves the table as it was."""
    if (identities, shape) == (N, (N, 1)):
        return
    table = DifficultyTable(N, PINNED)
    table.put(version(1))
    with pytest.raises(InputError) as error:
        table.put(Difficulty(2, np.zeros(identities, np.float32), np.zeros(shape, np.int32)))
    what = (
        f"version 2 of the difficulty vector has arrays [{identities}] and {list(shape)}, the draws need [5] and [5, 1]: sampler"
    )
    assert what in str(error.value)
    assert "\n" not in str(error.value)
    assert [v.version for v in table.all()] == [1]


def test_arrays_of_any_origin_are_copied() -> None:
    table = DifficultyTable(N, PINNED)
    cosine = np.full(N, 0.25, np.float32)
    cosine.flags.writeable = False  # as from Ray's object store
    table.put(Difficulty(1, cosine, np.arange(N)[:, None]))
    found = table.get(1)
    assert found is not None
    assert not np.shares_memory(found.cosine, cosine)
    assert found.cosine.dtype == np.float32
    assert found.nearest.dtype == np.int32


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 30), st.integers(0, 60), st.data())
def test_no_version_in_use_is_lost(interval: int, lag: int, begin: int, start: int, data: st.DataObject) -> None:
    """A run from its start or resumed at a checkpoint; the loader draws as far ahead as versions let it, or not at all."""
    options = SamplerConfig(interval=interval, lag=lag, begin=begin)
    table = DifficultyTable(N, options)
    newest = start // interval
    oldest = max(newest - options.versions_alive + 1, 1)  # what a checkpoint keeps
    for number in range(oldest, newest + 1):
        table.put(version(number))
    drawn = start
    for done in range(start, start + 80):  # steps that are done: all of them are drawn
        if done and done % interval == 0:
            table.put(version(done // interval))
        assert table.ready(done)
        ahead = data.draw(st.integers(0, 3), label="ahead")
        while drawn <= done + ahead and table.ready(drawn):
            found, number = table.at(drawn), options.version_at(drawn)
            assert is_whole(found, number) if number else found is None
            drawn += 1
        assert drawn > done


def test_pinned_waits_for_the_version_of_the_step() -> None:
    table = DifficultyTable(N, replace(PINNED, patience=30))
    assert table.ready(5)
    assert table.at(5) is None
    assert not table.ready(6)
    thread = threading.Timer(0.05, lambda: table.put(version(1)))
    thread.start()
    assert is_whole(table.at(6), 1)
    assert table.ready(6)
    assert not table.ready(10)
    thread.join()


def test_pinned_ends_by_name_when_patience_is_over() -> None:
    table = DifficultyTable(N, PINNED)
    table.put(version(1))
    table.note(1000)
    with pytest.raises(InputError, match=r"version 2 of the difficulty vector, for step 10, did not arrive in 0\.05 s"):
        table.at(10)


def test_freshest_goes_on_with_what_is_there() -> None:
    table = DifficultyTable(N, replace(PINNED, mode="freshest", lag=4))
    assert table.ready(50)
    assert table.at(50) is None
    table.put(version(1))
    assert is_whole(table.at(50), 1)
    table.put(version(2))
    assert is_whole(table.at(9), 2)
    assert table.at(3) is None  # but not before versions are used at all


def test_other_draws_need_no_version() -> None:
    table = DifficultyTable(N, replace(PINNED, kind="uniform"))
    assert table.ready(50)
    assert table.at(50) is None


def in_child(look: object) -> bool:
    """Whether a function is true in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if look() else 1  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_process_sees_what_comes_later() -> None:
    table, (begun, begin_now) = DifficultyTable(N, replace(PINNED, patience=30)), os.pipe()
    thread = threading.Thread(target=lambda: os.read(begun, 1) and table.put(version(1)))
    thread.start()
    assert in_child(lambda: table.get(1) is None and os.write(begin_now, b"!") and is_whole(table.at(6), 1))
    thread.join()
    os.close(begun)
    os.close(begin_now)


def test_a_waiting_process_ends_with_the_one_that_it_waits_for() -> None:
    table = DifficultyTable(N, replace(PINNED, patience=60))
    (out, signal), (begun, begin) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # the Train worker: forks a loader worker, then dies
        if os.fork() == 0:
            try:
                os.write(begin, b"!")
                table.at(6)
            except SystemExit:
                os.write(signal, b"ended")
            finally:
                os._exit(0)
        os.read(begun, 1)
        time.sleep(0.2)  # the other has taken down by now whose child it is
        os._exit(0)
    os.close(signal)
    os.waitpid(child, 0)
    assert os.read(out, 10) == b"ended"  # or b"" from a process that got its version, which nobody put
    for end in (out, begun, begin):
        os.close(end)
