"""Several sets as one, to train on: the identities, cameras and shards of each stay apart from those of the others.

Bytes are still read from each set by its own index (`datasets.loading.store`), so folders and buckets can be joined. Samples,
blocks, shards, identities and cameras stand in the order of the sets. M samples of all sets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import accumulate
from typing import NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from datasets.errors import InputError
from datasets.shards.index import Index, Int64s, Names


class Part(NamedTuple):
    """Those of several samples that are in one set: ``places`` among the several, and the ``samples``' numbers in the set."""

    number: int
    places: Int64s
    samples: Int64s


@dataclass(frozen=True, eq=False)
class Joined(Index):
    """The index of joined sets. Their labels, boxes and clips are not joined: it has none."""

    sets: tuple[Index, ...]

    @property
    def parts(self) -> tuple[Index, ...]:
        """The sets."""
        return self.sets

    @cached_property
    def first_samples(self) -> list[int]:
        """The number of each set's first sample."""
        return _firsts([len(part) for part in self.sets])

    @cached_property
    def first_shards(self) -> list[int]:
        """The number of each set's first shard."""
        return _firsts([len(part.shards) for part in self.sets])

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of every sample, [M]; samples of two sets may have the same."""
        return [key for part in self.sets for key in part.keys]

    @cached_property
    def checksum(self) -> int:
        """crc32c of the sets' checksums, in their order."""
        return reduce(google_crc32c.extend, (part.checksum.to_bytes(4, "big") for part in self.sets), 0)

    def table(self, name: str, rows: int) -> None:
        return None

    def where(self, sample: int) -> str:
        """Describe where a sample lies, for messages."""
        (part,) = self.divide(np.array([sample], np.int64))
        return self.sets[part.number].where(int(part.samples[0]))

    def divide(self, samples: Int64s) -> Iterator[Part]:
        """Divide samples among the sets that hold them."""
        of = np.searchsorted(self.first_samples, samples, side="right") - 1
        for number in np.unique(of).tolist():
            places = np.flatnonzero(of == number)
            yield Part(number, places, samples[places] - self.first_samples[number])


def join(sets: Sequence[Index]) -> Index:
    """Join sets; one alone is returned as it is. Images have the first set's size, and are mirrored if those of all sets may be.

    Raises:
        InputError: a set is given twice.
    """
    if len(sets) == 1:
        return sets[0]
    urls = [part.url for part in sets]
    if twice := [url for url in urls if urls.count(url) > 1]:
        raise InputError("the set is given twice", twice[0], "give each set once: its identities would count as different ones")
    names = [url.rpartition("/")[2] for url in urls]
    titles = names if len(set(names)) == len(names) else urls
    splits = tuple(dict.fromkeys(split for part in sets for split in part.splits))
    cameras = tuple(f"{title}/{camera}" for title, part in zip(titles, sets, strict=True) for camera in part.cameras)
    identities = [pa.array([f"{title}/{name}" for name in part.identities]) for title, part in zip(titles, sets, strict=True)]
    first = {
        "sample": _firsts([len(part) for part in sets]), "block": _firsts([len(part.blocks["first"]) for part in sets]),
        "shard": _firsts([len(part.shards) for part in sets]), "camera": _firsts([len(part.cameras) for part in sets]),
        "identity": _firsts([len(part.identities) for part in sets]),
    }  # fmt: skip
    numbers = np.min_scalar_type(len(cameras))
    samples, blocks = [], []
    for place, part in enumerate(sets):
        samples.append({
            **part.samples, "block": part.samples["block"] + first["block"][place],
            "camera": part.samples["camera"].astype(numbers) + first["camera"][place],
        })  # fmt: skip
        blocks.append({
            **part.blocks, "shard": part.blocks["shard"] + first["shard"][place],
            "identity": part.blocks["identity"] + first["identity"][place],
            "split": np.array([splits.index(split) for split in part.splits], np.int8)[part.blocks["split"]],
            "first": part.blocks["first"] + first["sample"][place],
        })  # fmt: skip
    return Joined(
        url=", ".join(urls),
        shards=tuple(replace(shard, name=part.shard_url(i)) for part in sets for i, shard in enumerate(part.shards)),
        splits=splits,
        cameras=cameras,
        identities=Names(pa.chunked_array(identities)),
        samples={name: np.concatenate([columns[name] for columns in samples]) for name in samples[0]},
        blocks={name: np.concatenate([columns[name] for columns in blocks]) for name in blocks[0]},
        about={**sets[0].about, "mirror": all(part.about["mirror"] for part in sets)},
        sets=tuple(sets),
    )


def _firsts(counts: Sequence[int]) -> list[int]:
    """The number of the first item of each set, by the sets' numbers of items."""
    return [0, *accumulate(counts[:-1])]
