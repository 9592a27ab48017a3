"""The shard set that a re-identification run reads."""

from dataclasses import dataclass

from datasets.errors import InputError
from datasets.example_set import shipped_set
from datasets.loading.store import shard_etags
from datasets.shards.index import Index, Split, read_index, split_of


@dataclass(frozen=True)
class Data:
    """An opened shard set."""

    index: Index
    train: Split
    etags: dict[str, str]
    size: tuple[int, int]
    """Height and width of the images trained on."""


def open_index(url: str) -> Index:
    """The index of a shard set; of the shipped one, if ``url`` is empty. Raises InputError."""
    return read_index(url or shipped_set())


def open_data(url: str, size: tuple[int, int] | None) -> Data:
    """Open a shard set; an empty ``url`` is the shipped one. ``size``: as in `Data`; None: as the set was packed.

    Raises:
        InputError: the set is incomplete, or has fewer than two identities to train on.
    """
    index = open_index(url)
    height, width = size or index.about["size"]
    train = split_of(index, "train")
    if len(train.counts) < 2:
        raise InputError(f"only {len(train.counts)} identity to train on", index.url, "re-identification needs two or more")
    return Data(index, train, shard_etags(index), (height, width))
