"""Runs a stream of batches in forked loader processes, which pass the batches through shared memory."""

import multiprocessing
import signal
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.errors import InputError
from datasets.loading.batches import Batch, Stream
from datasets.loading.shared_memory import ArrayRef, Slots
from datasets.parent_death import signal_at_parents_death

PREFETCH = 2  # batches that a loader process prepares before the first is taken
GRACE_S = 30  # from SIGTERM to the end of a loader process, unless its training process ends it before
LENT = 3  # batches of a loader process that the training process may hold without copies: the current, the last, one between


def load_in_workers(stream: Stream, workers: int, *, pin: bool = False) -> Generator[Batch, None, None]:
    """Yield the batches of a stream, in order, prepared by ``workers`` forked processes; 0: in this process.

    Arrays become tensors, images [b, 3, H, W]. ``pin``: copy batches to page-locked memory, for a GPU. An InputError of the
    stream is raised unchanged. The processes are forked so that they share the memory of the difficulty table.
    """
    if workers < 0:
        raise InputError(f"{workers} loader processes", "--workers", "give 0 or more")
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": PREFETCH, "multiprocessing_context": multiprocessing.get_context("fork")}
        options["worker_init_fn"] = _end_with_parent
        stream.slots = Slots(workers, PREFETCH + 1, LENT)
    for item in DataLoader(_ErrorsAsItems(stream), batch_size=None, collate_fn=_as_it_is, num_workers=workers, **options):
        if isinstance(item, InputError):
            raise item
        yield _tensors(item, stream.slots, pin)


def _tensors(sent: "_Sent", slots: Slots | None, pin: bool) -> Batch:
    """Return a batch with its arrays as tensors, those in shared memory in place; images as [b, 3, H, W]."""
    batch = dict(sent.batch)
    if slots:
        placed = {name: value for name, value in batch.items() if isinstance(value, ArrayRef)}
        batch |= zip(placed, slots.get(sent.slot, placed.values()), strict=True)
    for name, value in batch.items():
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(value)
            batch[name] = tensor.pin_memory() if pin else tensor
    return batch | {name: batch[name].permute(0, 3, 1, 2) for name in batch if name.endswith("images")}


def _end_with_parent(_: int) -> None:
    """End this loader with its training process: it would wait for ever, and keep the dead one's sockets open, so that Ray would
    not notice the death. At SIGTERM, which all processes of a command may get, it goes on for as long as that may need to stop.
    """
    signal_at_parents_death(signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


def _as_it_is(item: Any) -> Any:
    return item


class _Sent(NamedTuple):
    """A batch from a loader process; its large arrays may be references to a slot."""

    slot: int
    batch: Batch


class _ErrorsAsItems(IterableDataset[_Sent | InputError]):
    """Yields an InputError like a batch: DataLoader would raise one whose text is the worker's traceback.

    Large arrays stay in the slots. Torch would send a file descriptor per tensor through a server in the loader process, where a
    run with a killed worker once hung.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[_Sent | InputError]:
        slots, info, batches = self.stream.slots, get_worker_info(), iter(self.stream)
        try:
            while True:
                slot = slots.begin(info.id) if slots and info else 0
                batch = next(batches, None)
                if batch is None:
                    return
                yield _Sent(slot, {k: slots.put(v) if slots and isinstance(v, np.ndarray) else v for k, v in batch.items()})
        except InputError as error:
            yield error
