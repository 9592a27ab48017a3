"""``python -m datasets.inspect URL``: print what a shard set holds, and check that the index and the shards agree.

The sizes of shards are always compared. Sets below 1 GiB, and all with ``--verify``, are read completely: checksums of blocks
and tar headers are compared with the index, and every image is decoded.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.media.decode import decode_sample
from datasets.object_storage import open_objects
from datasets.shards.index import Index, read_index, split_of
from datasets.shards.locality import MAX_BLOCK, locality_of
from datasets.shards.tar import key_and_ending, member_path

SMALL = 1 << 30  # bytes; smaller sets are always verified completely
WINDOW = 8 << 20  # bytes of neighbouring blocks that are read at once


@dataclass(frozen=True)
class Inspect:
    """Print what a shard set holds, and verify it."""

    url: str = field(kw_only=True, metadata=POSITIONAL)
    """A folder or s3://bucket/prefix."""
    verify: bool = False
    """Read and decode everything, also in a set of 1 GiB or more."""
    json: bool = False
    """Print one JSON object instead of tables."""


def facts(index: Index) -> dict[str, Any]:
    """Return the contents of the index, ready for JSON; sizes in bytes."""
    splits = {}
    for name in index.splits:
        split = split_of(index, name)
        counts = split.counts
        cameras = np.unique(index.samples["camera"][split.samples(np.arange(len(split)))])
        shards = [shard for shard in index.shards if shard.split == name]
        splits[name] = {
            "identities": len(split.identities), "samples": len(split), "cameras": len(cameras), "blocks": len(split.blocks),
            "shards": len(shards), "bytes": sum(shard.size for shard in shards),
            "samples_per_identity": [int(counts.min()), float(np.median(counts)), int(counts.max())] if len(counts) else [],
        }  # fmt: skip
    total, images = sum(shard.size for shard in index.shards), int(index.samples["size"].sum(dtype=np.int64))
    sizes = index.blocks["size"]
    return {
        "url": index.url, "shards_at": index.shards_url, "about": index.about,
        "samples": len(index), "identities": len(index.identities),
        "cameras": len(index.cameras), "bytes": total, "splits": splits,
        "boxes": _boxes(index),
        "labels": {name: int((~np.isnan(values)).sum()) for name, values in index.labels.items()},
        "block_bytes": [int(sizes.min()), float(np.median(sizes)), int(sizes.max())] if len(sizes) else [],
        "tar_overhead": 1 - images / total if total else 0.0,
        "quality": asdict(locality_of(index, index.about.get("max_block", MAX_BLOCK))) if len(index) else {},
    }  # fmt: skip


def _boxes(index: Index) -> dict[str, int]:
    """Return the number of boxes of each class, and of images that nobody annotated; empty for a set without boxes."""
    if index.boxes is None:
        return {}
    names = index.about.get("classes", [])
    counts = np.bincount(index.boxes.classes, minlength=len(names))
    by_class = dict(zip(names, counts.tolist(), strict=True))
    return by_class | {"images not annotated": int((~index.boxes.annotated).sum())}


def faults(index: Index, read: bool, advance: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """Yield every difference between shards and index, in words; with ``read``, also those in the shards' content."""
    objects = open_objects(index.shards_url)
    there = objects.sizes()
    for number, shard in enumerate(index.shards):
        size = there.get(shard.name)
        if size is None:
            yield f"{shard.name}: missing"
        elif size != shard.size:
            yield f"{shard.name}: has {size} bytes and the index says {shard.size}: cut off or replaced"
        if not read or size is None:
            continue
        blocks = np.flatnonzero(index.blocks["shard"] == number)
        ends = index.blocks["offset"] + index.blocks["size"]
        for window in _windows(index, blocks[ends[blocks] <= size]):
            start = int(index.blocks["offset"][window[0]])
            data = memoryview(objects.get_range(shard.name, start, int(ends[window[-1]]) - start))
            for block in window:
                first = int(index.blocks["offset"][block]) - start
                size_of_block = int(index.blocks["size"][block])
                for fault in _block_faults(index, int(block), bytes(data[first : first + size_of_block])):
                    yield f"{shard.name} at byte {start + first}: {fault}"
                advance(size_of_block)


def _windows(index: Index, blocks: np.ndarray) -> Iterator[np.ndarray]:
    """Yield runs of one shard's blocks in the order of bytes, each at most ``WINDOW`` bytes, or a single block."""
    blocks = blocks[np.argsort(index.blocks["offset"][blocks], kind="stable")]
    starts, ends = index.blocks["offset"][blocks], (index.blocks["offset"] + index.blocks["size"])[blocks]
    at = 0
    while at < len(blocks):
        stop = max(int(np.searchsorted(ends, starts[at] + WINDOW, side="right")), at + 1)
        yield blocks[at:stop]
        at = stop


def _block_faults(index: Index, block: int, data: bytes) -> Iterator[str]:
    """Yield what is wrong with a block's bytes."""
    start, first = int(index.blocks["offset"][block]), int(index.blocks["first"][block])
    rows = range(first, first + int(index.blocks["count"][block]))
    who = f"identity {index.identities[index.blocks['identity'][block]]}"
    if google_crc32c.value(data) != index.blocks["crc32c"][block]:
        yield f"the checksum of {len(rows)} images of {who} is wrong ({index.keys[rows[0]]} to {index.keys[rows[-1]]})"
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            found = {start + member.offset_data: member for member in tar}
    except (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError, RecursionError) as error:
        yield f"no tar members where the index has {who} ({error})"
        return
    for row in rows:
        key, offset, size = index.keys[row], int(index.samples["offset"][row]), int(index.samples["size"][row])
        member = found.get(offset)
        if member is None or member.size != size or key_and_ending(member_path(member.name))[0] != key:
            has = "no member" if member is None else f"{member.name}, {member.size} bytes"
            yield f"the index has {key}, {size} bytes, at byte {offset}; the tar has {has}"
            continue
        try:
            decode_sample(data[offset - start : offset - start + size])
        except ValueError as error:
            yield f"{key} cannot be decoded: {error}"


def _bytes(count: float) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _print(contents: dict[str, Any], index: Index, console: Console) -> None:
    table = Table(title=contents["url"], title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("split", no_wrap=True)
    for heading in ("identities", "images", "per identity*", "cameras", "blocks", "shards", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, split in contents["splits"].items():
        spread = "/".join(f"{value:g}" for value in split["samples_per_identity"])
        numbers = [f"{split[key]:,}" for key in ("cameras", "blocks", "shards")]
        table.add_row(name, f"{split['identities']:,}", f"{split['samples']:,}", spread, *numbers, _bytes(split["bytes"]))
    console.print(table)
    about = index.about
    size = "x".join(str(side) for side in about.get("size", ["unknown"]))
    apart = contents["identities"] > 1  # else it is a set of labels or boxes, without identities
    of = f" of {contents['identities']:,} identities in {contents['cameras']:,} cameras" if apart else ""
    mirror = f"; a mirrored image shows {'the same' if about.get('mirror') else 'another'} identity" if apart else ""
    lines = [
        f"{contents['samples']:,} images{of}, {_bytes(contents['bytes'])}, of which tar takes {contents['tar_overhead']:.0%}",
        f"blocks of {'/'.join(_bytes(size) for size in contents['block_bytes'])}*",
        *([locality_of(index, about.get("max_block", MAX_BLOCK)).verdict] if apart else []),
        *([f"shards at {index.shards_url}"] if index.shards_at else []),
        f"layout {about.get('layout', 'unknown')}; train at {size}{mirror}",
        *(
            f"{what}: {', '.join(f'{name} {count:,}' for name, count in contents[what].items())}"
            for what in ("labels", "boxes")
            if contents[what]
        ),
        *([f"made from another domain: {about['degrade']}, seed {about['seed']}"] if about.get("degrade") else []),
        "* least/median/most",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """The command."""
    args = parse(Inspect, "python -m datasets.inspect")
    index = read_index(args.url)
    contents = facts(index)
    read = args.verify or contents["bytes"] < SMALL
    numbers = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    stderr = Console(stderr=True)
    disable = not (read and stderr.is_terminal)
    with Progress(TextColumn("verifying"), BarColumn(), *numbers, console=stderr, disable=disable) as progress:
        task = progress.add_task("verifying", total=int(index.blocks["size"].sum(dtype=np.int64)))
        found = list(faults(index, read, lambda length: progress.advance(task, length)))
    if args.json:
        print(json.dumps({**contents, "verified": "everything" if read else "sizes", "faults": found}))
    else:
        console = Console()
        _print(contents, index, console)
        for fault in found:
            console.print(f"FAULT {fault}", markup=False, highlight=False, soft_wrap=True)
        if not found:
            checked = "checksums, tar headers and images" if read else "sizes of shards (--verify reads everything)"
            console.print(f"whole and sound: {checked} agree with the index", markup=False, highlight=False)
    if found:
        remedy = "copy the shards and the index again, or pack again"
        what = found[0] if len(found) == 1 else f"{len(found)} faults, the first: {found[0]}"
        raise InputError(what, index.url, remedy)


if __name__ == "__main__":
    run_main(main)
