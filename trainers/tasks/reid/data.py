"""The shard sets that a re-identification run reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.errors import InputError
from datasets.example_set import shipped_set
from datasets.loading.store import shard_etags
from datasets.shards.index import Index, Split, read_index, split_of
from datasets.shards.joined import join


@dataclass(frozen=True)
class Data:
    """An opened shard set, or several of them joined."""

    index: Index
    train: Split
    etags: dict[str, str]
    size: tuple[int, int]
    """Height and width of the images trained on."""


def open_index(url: str) -> Index:
    """The index of a shard set; of the shipped one, if ``url`` is empty. Raises InputError."""
    return read_index(url or shipped_set())


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
