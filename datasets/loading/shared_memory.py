"""Shared memory through which loader workers hand batches to the training process; only offsets go through the pipe.

The memory is anonymous and shared by fork, so it takes no space in /dev/shm and disappears with its processes. Pages that are
never written cost nothing. A batch lies in one slot. The training process reads the arrays in place, and the slot is free again
when the last of them is garbage-collected. If it keeps more batches than ``lent``, further ones are copied.
"""

import mmap
import os
import time
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datasets.media.decode import OFFSET

SIZE = 1 << 30  # bytes of a slot, most of them never written; arrays that do not fit are sent through the pipe
SMALLEST = 1 << 14  # bytes; smaller arrays are sent through the pipe
STRIDE = 64  # bytes; an array begins `datasets.media.decode.OFFSET` after a multiple of it
FREE, UNDER_WAY, LENT = 0, 1, 2
MAP_NORESERVE = 0x4000  # of Linux; in the mmap module from Python 3.13 on

Array = npt.NDArray[Any]


class ArrayRef(NamedTuple):
    """The place, shape and type of an array in the shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Slots:
    """``ahead`` + ``lent`` slots for each loader process: batches that it prepares ahead, and batches that are read in place."""

    def __init__(self, workers: int, ahead: int, lent: int) -> None:
        self.each, self.lent = ahead + lent, lent
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.memory = np.frombuffer(mmap.mmap(-1, workers * self.each * SIZE, flags), np.uint8)
        self.states = np.frombuffer(mmap.mmap(-1, workers * self.each), np.uint8)
        self.slot = self.used = 0

    def begin(self, worker: int) -> int:
        """In the loader process: wait for a free slot and use it for all following arrays. Returns its number."""
        while not len(free := np.flatnonzero(self._of(worker) == FREE)):
            time.sleep(0.001)
        self.slot, self.used = worker * self.each + int(free[0]), 0
        self.states[self.slot] = UNDER_WAY
        return self.slot

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Array:
        """Return an uninitialised array in the slot; an ordinary array if the slot is full."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        start = self.used + OFFSET
        if start + size > SIZE:
            return np.empty(shape, dtype)
        self.used = -(-(start + size) // STRIDE) * STRIDE
        start += self.slot * SIZE
        return self.memory[start : start + size].view(dtype).reshape(shape)

    def put(self, array: Array) -> Array | ArrayRef:
        """In the loader process: copy an array to the slot, unless it lies there, and return its reference.

        Small arrays, and those that do not fit, are returned unchanged, to be sent through the pipe.
        """
        if array.nbytes < SMALLEST or array.dtype.hasobject:
            return array
        offset = self._offset(array)
        if offset is None:
            room = self.room(array.shape, array.dtype)
            offset = self._offset(room)
            if offset is None:
                return array
            room[...] = array
        return ArrayRef(offset, array.shape, array.dtype.str)

    def get(self, slot: int, places: Iterable[ArrayRef]) -> list[Array]:
        """In the training process: return the arrays of a slot, in place, or as copies if too many slots are in use."""
        arrays = [self._array(placed) for placed in places]
        if not arrays or int(np.count_nonzero(self._of(slot // self.each) == LENT)) >= self.lent:
            arrays = [array.copy() for array in arrays]
            self.states[slot] = FREE
            return arrays
        self.states[slot] = LENT
        loan = _Loan(self.states, slot)
        for array in arrays:
            weakref.finalize(array, _return, loan).atexit = False
        return arrays

    def _of(self, worker: int) -> npt.NDArray[np.uint8]:
        return self.states[worker * self.each : (worker + 1) * self.each]

    def _array(self, placed: ArrayRef) -> Array:
        size = int(np.prod(placed.shape)) * np.dtype(placed.dtype).itemsize
        return self.memory[placed.offset : placed.offset + size].view(placed.dtype).reshape(placed.shape)

    def _offset(self, array: Array) -> int | None:
        """Return the offset of an array in the shared memory; None if it does not lie there."""
        offset: int = array.ctypes.data - self.memory.ctypes.data
        inside = offset >= 0 and offset + array.nbytes <= len(self.memory)
        return offset if inside and array.flags.c_contiguous else None


class _Loan:
    """Referenced by all arrays of a slot; frees the slot when the last of them is garbage-collected."""

    def __init__(self, states: npt.NDArray[np.uint8], slot: int) -> None:
        self.states, self.slot, self.process = states, slot, os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self.process:  # not in a loader that was forked while the array existed
            self.states[self.slot] = FREE


def _return(_: _Loan) -> None:
    pass
