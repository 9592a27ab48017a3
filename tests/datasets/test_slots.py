"""What a loader process writes is what the training process reads; a slot is not written again before its item was copied."""

import multiprocessing
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from datasets import slots as slots_module
from datasets.loader import Batch, Stream, behind_workers
from datasets.slots import SMALLEST, Placed, Slots


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a megabyte."""
    monkeypatch.setattr(slots_module, "SIZE", 1 << 20)


def test_an_array_made_in_the_slot_is_told_and_not_copied() -> None:
    slots = Slots(2, 3)
    slots.begin(1, 2)
    room = slots.room((100, 200, 3))
    room[...] = 7
    placed = slots.put(room)
    assert placed == Placed((3 + 2) << 20, (100, 200, 3), "|u1")
    assert isinstance(placed, Placed)
    assert np.shares_memory(slots.get(placed), room)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.bool_])
def test_any_array_crosses(dtype: type) -> None:
    slots = Slots(1, 1)
    slots.begin(0, 0)
    arrays = [(np.arange(SMALLEST * k + 3) % 100).astype(dtype).reshape(-1, 1) for k in (1, 2)]
    arrays.append(arrays[0][::-2])  # not contiguous
    for array, placed in zip(arrays, [slots.put(array) for array in arrays], strict=True):
        got = slots.get(placed) if isinstance(placed, Placed) else placed
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
    assert isinstance(slots.put(arrays[0]), Placed)


def test_what_is_small_or_does_not_fit_is_sent() -> None:
    slots = Slots(1, 1)
    slots.begin(0, 0)
    for array in (np.zeros(SMALLEST - 1, np.uint8), np.zeros(0), np.zeros((1 << 20) + 1, np.uint8), np.array([None] * SMALLEST)):
        assert slots.put(array) is array
    assert isinstance(slots.put(np.zeros(1 << 20, np.uint8)), Placed)
    full = slots.room((SMALLEST,))
    assert slots.put(full) is full


def test_a_slot_waits_for_its_item_to_be_released() -> None:
    slots = Slots(1, 2)

    def fill() -> None:
        for item in range(6):
            slots.begin(0, item)
            slots.room((1,))[0] = item

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    for item in range(6):
        until = time.monotonic() + 30
        while slots.memory[item % 2 * slots_module.SIZE] != item and item:
            assert time.monotonic() < until
        time.sleep(0.02)
        assert slots.memory[item % 2 * slots_module.SIZE] == item
        slots.release(0)
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
def test_batches_are_whole_whoever_ends_first(counts: list[int], in_room: bool) -> None:
    """DataLoader asks those that are left for more when a process has ended: they must not write over what is not copied."""
    batches = []
    for batch in behind_workers(Numbers(counts, in_room=in_room), len(counts)):
        time.sleep(0.01)  # the loaders run ahead as far as they may
        batches.append(batch)
    assert sorted((b["worker"], b["item"]) for b in batches) == [(w, i) for w, n in enumerate(counts) for i in range(n)]
    for batch in batches:
        assert batch["images"].shape == (1 + batch["item"] % 2, 3, 100, 100)
        assert (batch["images"] == batch["worker"] * 100 + batch["item"]).all()
        assert batch["small"].tolist() == [batch["item"]]
