"""What a re-identification run trains on: shard sets with their index, or tar files that are streamed without one."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from datasets.errors import InputError
from datasets.example_set import shipped_set
from datasets.loading.store import shard_etags
from datasets.loading.streamed import SIZE, ShardList, StreamConfig, list_shards
from datasets.shards.index import Index, Split, read_index, split_of
from datasets.shards.joined import join
from datasets.shards.tar import names_tars


@dataclass(frozen=True)
class Data:
    """An opened shard set, or several of them joined."""

    index: Index
    train: Split
    etags: dict[str, str]
    size: tuple[int, int]
    """Height and width of the images trained on."""

    @property
    def url(self) -> str:
        """Where the sets are."""
        return self.index.url

    @property
    def identities(self) -> int:
        """Number of identities."""
        return len(self.train.counts)

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def checksum(self) -> int:
        """It changes with the data."""
        return self.index.checksum

    @property
    def parts(self) -> tuple[Index, ...]:
        """The indexes of the sets."""
        return self.index.parts

    def __str__(self) -> str:
        return f"{self.samples:,} images of {self.identities:,} identities"


@dataclass(frozen=True)
class StreamedData:
    """Tar files without an index, to train on; there is nothing to evaluate on. It has the attributes of `Data`."""

    shards: ShardList
    identities: int
    size: tuple[int, int]
    samples: ClassVar = sys.maxsize  # not known
    parts: ClassVar[tuple[Index, ...]] = ()
    etags: ClassVar[dict[str, str]] = {}

    @property
    def url(self) -> str:
        """What names the files."""
        return self.shards.url

    @property
    def checksum(self) -> int:
        """It changes with the list of shards."""
        return self.shards.checksum

    def __str__(self) -> str:
        return f"{len(self.shards):,} shards, streamed, of {self.identities:,} identities"


def open_index(url: str) -> Index:
    """The index of a shard set; of the shipped one, if ``url`` is empty. Raises InputError."""
    return read_index(url or shipped_set())


def stream_data(urls: Sequence[str], size: tuple[int, int] | None, config: StreamConfig) -> StreamedData:
    """Find the tar files to stream; no shard is read. ``size``: as in `Data`.

    Raises:
        InputError: a file is missing, or a set with an index is among them.
    """
    if indexed := [url for url in urls if not names_tars(url)]:
        remedy = "index all shards with `python -m datasets.index`, or name tar files alone"
        raise InputError("a shard set and streamed tar files cannot be joined", indexed[0], remedy)
    return StreamedData(list_shards(urls), config.identities, size or SIZE)


def open_data(urls: Sequence[str], size: tuple[int, int] | None) -> Data:
    """Open shard sets and join them; without ``urls`` it is the shipped one. ``size``: as in `Data`; None: as the first set was
    packed.

    Raises:
        InputError: a set is incomplete or has no images to train on, or there are fewer than two identities in all.
    """
    sets = [open_index(url) for url in urls or ("",)]
    for each in sets:
        if "train" not in each.splits:
            raise InputError("no split 'train'", each.url, f"it has: {', '.join(each.splits)}")
    index = join(sets)
    height, width = size or index.about["size"]
    train = split_of(index, "train")
    if len(train.counts) < 2:
        raise InputError(f"only {len(train.counts)} identity to train on", index.url, "re-identification needs two or more")
    return Data(index, train, shard_etags(index), (height, width))
