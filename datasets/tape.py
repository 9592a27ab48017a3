"""WebDataset samples from a shard that is read once, forwards, from a folder or from S3."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, cast

from datasets.decode import IMAGES
from datasets.objects import Bucket, Folder
from datasets.tar import members, padded

CHUNK = 8 << 20  # bytes of a read


@dataclass
class Group:
    """The members of one sample: bytes ``start`` to ``end`` of its shard, and (offset, size) of each by its ending."""

    key: str
    start: int
    end: int
    members: dict[str, tuple[int, int]]

    @property
    def image(self) -> tuple[int, int] | None:
        """Offset and size of the image's bytes."""
        return next((place for ending, place in self.members.items() if f".{ending}" in IMAGES), None)


class Tape(io.RawIOBase):
    """An object as a stream that is read once, forwards, and remembers what was not yet cut off."""

    def __init__(self, objects: Folder | Bucket, name: str, size: int, advance: Callable[[int], None]) -> None:
        self.objects, self.name, self.size, self.advance = objects, name, size, advance
        self.position = self.kept_from = 0
        self.kept = bytearray()
        self.chunk = memoryview(b"")

    @property
    def where(self) -> str:
        """The object's place in words."""
        return f"{self.objects.url}/{self.name}"

    def read(self, size: int = -1) -> bytes:
        if not self.chunk and self.position < self.size:
            length = min(CHUNK, self.size - self.position)
            self.chunk = memoryview(self.objects.get_range(self.name, self.position, length))
            self.advance(length)
        data = bytes(self.chunk[: size if size >= 0 else None])
        self.chunk = self.chunk[len(data) :]
        self.position += len(data)
        self.kept += data
        return data

    def look(self, start: int, end: int) -> bytes:
        """Bytes that were read and not cut off."""
        return bytes(self.kept[start - self.kept_from : end - self.kept_from])

    def cut(self, at: int) -> None:
        """Forget what lies before byte ``at``."""
        del self.kept[: max(at - self.kept_from, 0)]
        self.kept_from = max(at, self.kept_from)


def groups(tape: Tape) -> Iterator[Group]:
    """The samples of a shard; each is given when all of it has been read.

    A sample is a run of members with the same key: the name up to the first dot after the last slash.

    Raises:
        InputError: the shard is cut off, damaged or no uncompressed tar.
    """
    group: Group | None = None
    for member in members(cast(IO[bytes], tape), tape.where, "r|"):
        folder, _, file = member.name.removeprefix("./").rpartition("/")
        stem, dot, ending = file.partition(".")
        if not member.isreg() or not dot or stem.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if group is not None and (key != group.key or ending.lower() in group.members):
            yield group
            group = None
        group = group or Group(key, member.offset, 0, {})
        group.members[ending.lower()] = (member.offset_data, member.size)
        group.end = member.offset_data + padded(member.size)
    if group is not None:
        yield group
