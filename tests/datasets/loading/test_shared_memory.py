"""The training process reads what a loader process wrote; a slot is not reused while its batch is in use."""

import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from datasets.loading import shared_memory as slots_module
from datasets.loading.batches import Batch, Stream
from datasets.loading.shared_memory import FREE, LENT, SMALLEST, ArrayRef, Slots
from datasets.loading.workers import load_in_workers
from datasets.media.decode import OFFSET


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a megabyte."""
    monkeypatch.setattr(slots_module, "SIZE", 1 << 20)


def test_an_array_created_in_the_slot_is_referenced_and_not_copied() -> None:
    slots = Slots(2, 2, 1)
    assert [slots.begin(1) for _ in range(3)] == [3, 4, 5]
    room = slots.room((100, 200, 3))
    room[...] = 7
    placed = slots.put(room)
    assert placed == ArrayRef((5 << 20) + OFFSET, (100, 200, 3), "|u1")
    assert isinstance(placed, ArrayRef)
    (got,) = slots.get(5, [placed])
    assert np.shares_memory(got, room)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.bool_])
def test_any_array_crosses(dtype: type) -> None:
    slots = Slots(1, 1, 1)
    slot = slots.begin(0)
    arrays = [(np.arange(SMALLEST * k + 3) % 100).astype(dtype).reshape(-1, 1) for k in (1, 2)]
    arrays.append(arrays[0][::-2])  # not contiguous
    places = [slots.put(array) for array in arrays]
    refs = [placed for placed in places if isinstance(placed, ArrayRef)]
    assert refs[:2] == places[:2]
    for array, got in zip(arrays, [*slots.get(slot, refs), *places[len(refs) :]], strict=True):
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype


def test_what_is_small_or_does_not_fit_is_sent() -> None:
    slots = Slots(1, 1, 1)
    slots.begin(0)
    for array in (np.zeros(SMALLEST - 1, np.uint8), np.zeros(0), np.zeros((1 << 20) + 1, np.uint8), np.array([None] * SMALLEST)):
        assert slots.put(array) is array
    assert isinstance(slots.put(np.zeros((1 << 20) - OFFSET, np.uint8)), ArrayRef)
    full = slots.room((SMALLEST,))
    assert slots.put(full) is full


def filled(slots: Slots, number: int) -> tuple[int, list[ArrayRef]]:
    """A slot begun, with two arrays of a number in it."""
    slot = slots.begin(0)
    places = [slots.put(np.full(SMALLEST, number, np.uint8)) for _ in range(2)]
    return slot, [placed for placed in places if isinstance(placed, ArrayRef)]


def test_a_slot_is_free_when_the_last_of_its_arrays_is_gone() -> None:
    slots = Slots(1, 1, 2)
    slot, places = filled(slots, 1)
    first, second = slots.get(slot, places)
    tensor = torch.from_numpy(first)[:, None].T  # what training holds is a view of a view
    assert slots.states.tolist() == [LENT, FREE, FREE]
    del first
    assert slots.states[slot] == LENT
    del second
    assert slots.states[slot] == LENT
    assert (tensor == 1).all()
    del tensor
    assert slots.states[slot] == FREE
    slots.begin(0)
    assert slots.get(0, []) == []
    assert slots.states[slot] == FREE


def test_holding_many_batches_gives_copies() -> None:
    slots = Slots(1, 1, 2)
    held = []
    for number in range(6):
        slot, places = filled(slots, number)
        held += slots.get(slot, places)
    assert [bool(np.shares_memory(array, slots.memory)) for array in held] == [True] * 4 + [False] * 8
    assert [int(array[0]) for array in held] == [number for number in range(6) for _ in range(2)]
    assert slots.states.tolist() == [LENT, LENT, FREE]


def test_a_fork_returns_nothing() -> None:
    slots = Slots(1, 1, 1)
    slot, places = filled(slots, 5)
    held = slots.get(slot, places)
    child = os.fork()
    if child == 0:
        held.clear()
        os._exit(0)
    os.waitpid(child, 0)
    assert slots.states[slot] == LENT
    held.clear()
    assert slots.states[slot] == FREE


def test_a_process_waits_for_a_free_slot() -> None:
    slots = Slots(1, 1, 1)

    def fill() -> None:
        for item in range(6):
            slot = slots.begin(0)
            slots.room((1,))[0] = item
            slots.states[slot] = LENT

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    for item in range(0, 6, 2):
        until = time.monotonic() + 30
        while slots.states.tolist() != [LENT, LENT]:
            assert time.monotonic() < until
        time.sleep(0.02)
        assert sorted(slots.memory[[OFFSET, (1 << 20) + OFFSET]]) == [item, item + 1]
        slots.states[:] = FREE
    process.join(30)
    assert process.exitcode == 0


class Numbers(Stream):
    """Worker w of W gives ``counts[w]`` items: the first large arrays of one number each, in its room or not."""

    def __init__(self, counts: list[int], *, in_room: bool) -> None:
        self.counts, self.in_room = counts, in_room

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        worker = info.id if info else 0
        for item in range(self.counts[worker]):
            images = self.room(2, 100, 100, 3) if self.in_room else np.empty((2, 100, 100, 3), np.uint8)
            images[...] = worker * 100 + item
            yield {"images": images[: 1 + item % 2], "worker": worker, "item": item, "small": np.array([item])}


@pytest.mark.parametrize("in_room", [True, False])
@pytest.mark.parametrize("counts", [[7], [5, 5], [2, 12], [12, 0]])
@pytest.mark.parametrize("held", [1, 2, 100])
def test_batches_are_complete_whichever_process_ends_first(counts: list[int], in_room: bool, held: int) -> None:
    """DataLoader asks those that are left for more when a process has ended: they must not write over what is still held."""
    batches: list[Batch] = []
    for batch in load_in_workers(Numbers(counts, in_room=in_room), len(counts)):
        time.sleep(0.01)  # the loaders run ahead as far as they may
        for old in batches[-held:]:
            assert (old["images"] == old["worker"] * 100 + old["item"]).all()
        for old in batches[:-held]:
            old["images"] = old["images"].clone()
        batches.append(batch)
    assert sorted((b["worker"], b["item"]) for b in batches) == [(w, i) for w, n in enumerate(counts) for i in range(n)]
    for batch in batches:
        assert batch["images"].shape == (1 + batch["item"] % 2, 3, 100, 100)
        assert (batch["images"] == batch["worker"] * 100 + batch["item"]).all()
        assert batch["small"].tolist() == [batch["item"]]
