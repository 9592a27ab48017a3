"""Memory in which a loader's arrays cross to the training process: written there by the loader, told by place, never sent.

It is anonymous and shared by fork, so it needs no room in /dev/shm and is gone with its processes, however they end. Pages
that are not written cost nothing. The training process reads arrays where they lie: a slot is free again when the last of its
arrays is gone. Only who holds many items gets copies.
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

SIZE = 1 << 30  # bytes of a slot, most of them never touched; what does not fit is sent through the pipe
SMALLEST = 1 << 14  # bytes; a smaller array is sent
STRIDE = 64  # bytes; an array begins `datasets.media.decode.OFFSET` after a multiple of it
FREE, UNDER_WAY, LENT = 0, 1, 2
MAP_NORESERVE = 0x4000  # of Linux; in the mmap module from Python 3.13 on

Array = npt.NDArray[Any]


class ArrayRef(NamedTuple):
    """Where an array lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Slots:
    """``ahead`` + ``lent`` slots for every loader process: as many items as it may run ahead, and as are read where they lie."""

    def __init__(self, workers: int, ahead: int, lent: int) -> None:
        self.each, self.lent = ahead + lent, lent
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.memory = np.frombuffer(mmap.mmap(-1, workers * self.each * SIZE, flags), np.uint8)
        self.states = np.frombuffer(mmap.mmap(-1, workers * self.each), np.uint8)
        self.slot = self.used = 0

    def begin(self, worker: int) -> int:
        """In the loader process: the rooms given from now on are those of a free slot, which is waited for. Gives its number."""
        while not len(free := np.flatnonzero(self._of(worker) == FREE)):
            time.sleep(0.001)
        self.slot, self.used = worker * self.each + int(free[0]), 0
        self.states[self.slot] = UNDER_WAY
        return self.slot

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Array:
        """An array in the slot, not initialised; an ordinary one when the slot is full."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        start = self.used + OFFSET
        if start + size > SIZE:
            return np.empty(shape, dtype)
        self.used = -(-(start + size) // STRIDE) * STRIDE
        start += self.slot * SIZE
        return self.memory[start : start + size].view(dtype).reshape(shape)

    def put(self, array: Array) -> Array | ArrayRef:
        """In the loader process: where an array lies in the slot, copied there unless it is there; or itself, to be sent."""
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
        """In the training process: the arrays of a slot, which is free when they are gone, or as soon as they are copied."""
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
        """Where a whole array begins in the memory, if it lies there."""
        offset: int = array.ctypes.data - self.memory.ctypes.data
        inside = offset >= 0 and offset + array.nbytes <= len(self.memory)
        return offset if inside and array.flags.c_contiguous else None


class _Loan:
    """Held by all arrays of a slot: with the last of them it goes, and the slot is free."""

    def __init__(self, states: npt.NDArray[np.uint8], slot: int) -> None:
        self.states, self.slot, self.process = states, slot, os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self.process:  # not in a loader that was forked while the array was held
            self.states[self.slot] = FREE


def _return(_: _Loan) -> None:
    pass
