"""Writes planned shards: reads and checks each image, stores each shard completely or not at all, shows progress."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import google_crc32c
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.media.decode import MAX_BYTES, decode_sample, quiet_decoders
from datasets.object_storage import Bucket, Folder
from datasets.packing.destination import note_name
from datasets.packing.plan import ShardPlan, Written
from datasets.shards.tar import END, header, padded

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str) -> int:
    """Parse a number of bytes: 65536, 64MiB, 1GB. Raises ValueError."""
    number = text.strip().rstrip("KMGiBkmgb")
    return round(float(number) * UNITS[text.strip()[len(number) :].upper()])


Bytes = Annotated[int, "bytes, such as 64MiB", bytes_of]  # an option (`datasets.command_line`)


def write_shards(
    shards: Sequence[ShardPlan], archive: Archive, objects: Folder | Bucket, fingerprint: str, allowed: int, console: Console
) -> list[Written]:
    """Write every shard that is not there yet, each followed by its note."""
    there = objects.sizes()
    written: list[Written] = []
    unreadable: dict[str, str] = {}
    with progress(console, sum(len(block) for shard in shards for block in shard.blocks)) as advance:
        for shard in shards:
            note = note_name(fingerprint, shard.name)
            result = Written(**json.loads(objects.get(note))) if note in there else None
            if result is None or there.get(shard.name) != result.size:
                with tempfile.NamedTemporaryFile(prefix="hardshard-", suffix=".tar") as file:
                    result = _write(shard, archive, Path(file.name), unreadable, allowed, advance)
                    objects.put_file(shard.name, Path(file.name))
                objects.put(note, json.dumps(asdict(result)).encode())
            else:
                advance(sum(len(block) for block in shard.blocks))
            unreadable |= result.unreadable
            refuse_unreadable(unreadable, allowed, archive)
            written.append(result)
    return written


def _write(
    shard: ShardPlan, archive: Archive, path: Path, unreadable: dict[str, str], allowed: int, advance: Callable[[int], None]
) -> Written:
    """Write one shard to a local file. ``unreadable``: images of earlier shards that could not be decoded."""
    bad: dict[str, str] = {}
    crcs: list[int] = []
    with path.open("wb") as file:
        for planned in shard.blocks:
            block = bytearray()
            for member in planned:
                data = archive.read(member.source, MAX_BYTES)
                try:
                    with quiet_decoders():
                        decode_sample(data)
                except ValueError as error:
                    bad[member.source] = str(error)
                    refuse_unreadable(unreadable | bad, allowed, archive)
                else:
                    block += header(member.name, member.size) + data + bytes(padded(member.size) - member.size)
                advance(1)
            if block:
                crcs.append(google_crc32c.value(bytes(block)))
                file.write(block)
        file.write(END)
        size = file.tell()
    return Written(size, crcs, bad)


def refuse_unreadable(
    unreadable: dict[str, str], allowed: int, archive: Archive, what: str = "an image that cannot be decoded"
) -> None:
    """Raise InputError if more files (name: reason) are unreadable than ``allowed``."""
    if len(unreadable) > allowed:
        named = ", ".join(f"{name} ({reason})" for name, reason in unreadable.items())
        remedy = f"repair or remove it, or leave out up to N by --allow-unreadable N (now {allowed})"
        raise InputError(what, f"{named} in {archive.where}", remedy)


@contextmanager
def progress(console: Console, total: int, verb: str = "packing", what: str = "images") -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yields the function that advances it."""
    numbers = (MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn(verb), BarColumn(), *numbers)
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as bar:
        task = bar.add_task(verb, total=total)
        yield lambda count: bar.advance(task, count)
