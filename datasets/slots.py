"""Memory in which a loader's arrays cross to the training process: written there by the loader, told by place, never sent.

It is anonymous and shared by fork, so it needs no room in /dev/shm and is gone with its processes, however they end. Pages
that are not written cost nothing.
"""

import mmap
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SIZE = 1 << 30  # bytes of a slot, most of them never touched; what does not fit is sent through the pipe
SMALLEST = 1 << 14  # bytes; a smaller array is sent
ALIGNED = 64
MAP_NORESERVE = 0x4000  # of Linux; in the mmap module from Python 3.13 on

Array = npt.NDArray[Any]


class Placed(NamedTuple):
    """Where an array lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Slots:
    """``each`` slots for every loader process: item n of a process lies in its slot n mod ``each``.

    A slot is written again ``each`` items later, and not before the item in it was released.
    """

    def __init__(self, workers: int, each: int) -> None:
        self.each = each
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.memory = np.frombuffer(mmap.mmap(-1, workers * each * SIZE, flags), np.uint8)
        self.released = np.frombuffer(mmap.mmap(-1, 8 * workers), np.int64)  # items of each process
        self.start = self.used = 0

    def begin(self, worker: int, item: int) -> None:
        """In the loader process: the rooms given from now on are those of an item's slot, which is waited for."""
        while item - self.released[worker] >= self.each:
            time.sleep(0.001)
        self.start, self.used = (worker * self.each + item % self.each) * SIZE, 0

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Array:
        """An array in the slot, not initialised; an ordinary one when the slot is full."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if self.used + size > SIZE:
            return np.empty(shape, dtype)
        start = self.start + self.used
        self.used += -(-size // ALIGNED) * ALIGNED
        return self.memory[start : start + size].view(dtype).reshape(shape)

    def put(self, array: Array) -> Array | Placed:
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
        return Placed(offset, array.shape, array.dtype.str)

    def get(self, placed: Placed) -> Array:
        """In the training process: the array, until its item is released."""
        size = int(np.prod(placed.shape)) * np.dtype(placed.dtype).itemsize
        return self.memory[placed.offset : placed.offset + size].view(placed.dtype).reshape(placed.shape)

    def release(self, worker: int) -> None:
        """In the training process: the next item of a loader process was copied."""
        self.released[worker] += 1

    def _offset(self, array: Array) -> int | None:
        """Where a whole array begins in the memory, if it lies there."""
        offset: int = array.ctypes.data - self.memory.ctypes.data
        inside = offset >= 0 and offset + array.nbytes <= len(self.memory)
        return offset if inside and array.flags.c_contiguous else None
