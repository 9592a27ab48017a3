"""Batches from several shard sets: each set has its own stream, which provides a fixed part of every global batch.

The parts are multiples of ``unit`` samples. They depend only on batch and weights, not on the number of workers, so a run that
resumes on another number of workers sees the same samples.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from datasets.errors import InputError
from datasets.loading.batches import Batch, BatchStream, Stream
from datasets.loading.store import COUNTS


def parts_of(batch: int, weights: Sequence[float], unit: int) -> list[int]:
    """Return the number of samples of each set in a global batch, by weight, in whole units (largest remainder method).

    Raises:
        InputError: a weight is not above 0, the batch is no multiple of the unit, or a set would get no samples.
    """
    if not weights or not all(0 < weight < np.inf for weight in weights):
        raise InputError(f"the sets' weights are {', '.join(f'{weight:g}' for weight in weights)}", "mix", "give numbers above 0")
    if unit < 1 or batch % unit:
        raise InputError(f"the batch of {batch} is no multiple of {unit}", "mix.unit", "choose another batch or unit")
    exact = np.array(weights, np.float64) / sum(weights) * (batch // unit)
    units = np.floor(exact).astype(np.int64)
    largest = np.argsort(units - exact, kind="stable")[: batch // unit - units.sum()]
    units[largest] += 1
    if not units.all():
        what = f"a batch of {batch} in parts of {unit} leaves nothing for a set of weight {weights[int(units.argmin())]:g}"
        raise InputError(what, "mix", "raise the batch or that weight, or lower mix.unit")
    return [int(count) * unit for count in units]


class MixedStream(Stream):
    """Concatenates the batches of several sets; ``set`` int64 [b] is the number of each sample's set.

    ``first``: the step of the run at which the streams' step 0 is.
    """

    def __init__(self, streams: Sequence[BatchStream], first: int = 0) -> None:
        self.streams, self.first = streams, first

    def __iter__(self) -> Iterator[Batch]:
        for batches in zip(*self.streams, strict=True):
            images = [b["images"] for b in batches]
            room = self.room(sum(map(len, images)), *images[0].shape[1:])
            yield {
                "images": np.concatenate(images, out=room),
                **{name: np.concatenate([b[name] for b in batches]) for name in ("labels", "positions", "moves")},
                "set": np.repeat(np.arange(len(batches)), [len(b["labels"]) for b in batches]),
                "step": self.first + batches[0]["step"],
                "bad": [failure for b in batches for failure in b["bad"]],
                "storage": {name: sum(b["storage"][name] for b in batches) for name in COUNTS},
            }


class PairedStream(Stream):
    """Pairs the batches of two domains: ``images`` of the first and ``target_images``, each in the size of its domain.

    ``labels`` and ``positions`` are those of the first domain, then of the target; ``moves`` of the first only. A smaller domain
    starts its next epoch earlier: both have a batch for every step, on every rank.
    """

    def __init__(self, first: BatchStream, target: BatchStream) -> None:
        self.first, self.target = first, target

    def __iter__(self) -> Iterator[Batch]:
        for one, other in zip(self.first, self.target, strict=True):
            yield {
                "images": one["images"],
                "moves": one["moves"],
                "target_images": other["images"],
                **{name: np.concatenate([one[name], other[name]]) for name in ("labels", "positions")},
                "step": one["step"],
                "bad": [*one["bad"], *other["bad"]],
                "storage": {name: one["storage"][name] + other["storage"][name] for name in COUNTS},
            }
