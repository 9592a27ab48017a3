"""A small shard set of known bytes, for tests of its readers."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pictures import jpeg, put

from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index

IDENTITIES, EACH = 12, 8
OPTIONS = Options(held_out=0, shard_size=40 << 10, max_block=8 << 10)  # several blocks an identity, several shards


def pictures_in(folder: Path) -> Path:
    """One folder per identity, pictures of about 1 to 3 KB."""
    names = [f"p{identity:02d}/{number:02d}.jpg" for identity in range(IDENTITIES) for number in range(EACH)]
    return put(folder, {name: jpeg(seed, 32, 16 + seed % 32) for seed, name in enumerate(names)})


def packed(source: Path, url: str, options: Options = OPTIONS) -> Index:
    """Pack the pictures to a place, and read the index from there."""
    pack("folders", source, url, options, overwrite=True)
    return read_index(url)


def truth(source: Path, index: Index) -> list[bytes]:
    """What every sample must give, by its key alone: an identity's pictures are counted in the order of their names."""
    pictures = {folder.name: sorted(folder.iterdir()) for folder in source.iterdir()}
    places = [key.split("/") for key in index.keys]
    return [pictures[identity][int(number)].read_bytes() for identity, number in places]


def ranges_of(index: Index, blocks: Iterable[int]) -> list[tuple[str, str]]:
    """The path and Range header of the GET of each block."""
    rows = zip(*(index.blocks[name] for name in ("shard", "offset", "size")), strict=True)
    ranges = [(index.shards[shard].name, f"bytes={offset}-{offset + size - 1}") for shard, offset, size in rows]
    return [(f"{index.url.removeprefix('s3:/')}/{ranges[block][0]}", ranges[block][1]) for block in blocks]


def open_files(folder: Path) -> list[str]:
    """The files below a folder that this process has open; those that were removed since end in "(deleted)"."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(f"{folder}/")]


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true: a store's thread may hold a copy for a moment after its answer was given."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
