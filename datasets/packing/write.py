"""Writes planned shards: reads and checks each image, stores each shard completely or not at all, shows progress."""

import json
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import google_crc32c
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.media.decode import MAX_BYTES, decode_sample, quiet_decoders
from datasets.object_storage import Bucket, Folder
from datasets.packing.destination import note_name
from datasets.packing.plan import ShardPlan, Written
from datasets.shards.tar import END

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
    sizes = list[int]()  # of the blocks that are not empty
    with path.open("w+b") as file:
        with _writer_to(file) as writer:
            tar = writer.tarstream
            for planned in shard.blocks:
                start, found = tar.offset, [archive.read(member.source, MAX_BYTES) for member in planned]
                with quiet_decoders():  # once a block: it costs as much as a small image
                    faults = [_fault(data) for data in found]
                for member, data, fault in zip(planned, found, faults, strict=True):
                    if fault:
                        bad[member.source] = fault
                        refuse_unreadable(unreadable | bad, allowed, archive)
                    else:
                        writer.write({"__key__": member.key, member.ending: data})
                advance(len(planned))
                tar.members.clear()  # or it keeps all of them
                if tar.offset > start:
                    sizes.append(tar.offset - start)
        size = sum(sizes) + len(END)
        file.truncate(size)  # of up to 10 KiB of zeros at the end, only the end mark
        file.seek(0)
        crcs = [google_crc32c.value(file.read(block)) for block in sizes]
    return Written(size, crcs, bad)


def _fault(data: bytes) -> str:
    """Why a sample cannot be decoded; "" if it can."""
    try:
        decode_sample(data)
    except ValueError as error:
        return str(error) or "damaged"
    return ""


@cache
def _tar_writer() -> Any:
    """webdataset's writer. It works without torch, but imports torch where it is installed: 1.4 s and 470 MB for nothing.

    So, unless torch is there already, it is imported as if torch were missing; a later import is a new one, with torch.
    """
    if hidden := "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from webdataset import TarWriter
    finally:
        if hidden:
            for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "webdataset")]:
                del sys.modules[name]
    return TarWriter


def _writer_to(file: BinaryIO) -> Any:
    """webdataset's writer; its bytes depend only on the samples' names and bytes, and where they lie is known beforehand."""
    writer = _tar_writer()(file, user="", group="", mode=0o644, mtime=0, encoder=False)
    # It takes a format and does not pass it on (1.0.2). In USTAR no member has an extended header.
    writer.tarstream.format, writer.tarstream.encoding, writer.tarstream.errors = tarfile.USTAR_FORMAT, "ascii", "strict"
    return writer


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
