"""Reads the WebDataset samples of a shard in one forward pass, from a folder or from S3."""

import io
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Literal, NamedTuple, cast

from datasets.errors import InputError, printable
from datasets.media.decode import IMAGES
from datasets.object_storage import Bucket, Folder
from datasets.shards.tar import key_and_ending, member_path, members, padded
from datasets.skipped_files import LITTER, NAMED, is_litter, left_out_line

CHUNK = 8 << 20  # bytes of a read
MAX_SAMPLE = 256 << 20  # bytes of a sample's members and of what lies between them, as a loader reads them at once
MAX_KEPT = 1 << 30  # bytes in memory: a block, a sample, and left-out files between them
SORTED = "write the tar sorted by name: tar --sort=name -cf"


@dataclass
class LeftOut:
    """Counts the files in shards, and those that are left out of the index, by rule in words."""

    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, rule: str, name: str) -> None:
        """Count a file that is left out."""
        self.counts[rule] += 1
        if len(self.first[rule]) < NAMED:
            self.first[rule].append(name)

    def lines(self) -> Iterator[str]:
        """Return a line for each rule: how many files, and the first names."""
        return (left_out_line(rule, count, self.first[rule]) for rule, count in self.counts.items())


@dataclass
class Group:
    """The members of one sample: its bytes ``start`` to ``end`` in the shard, and by ending the (offset, size) of each member."""

    key: str
    start: int
    end: int
    members: dict[str, tuple[int, int]]

    @property
    def endings(self) -> list[str]:
        """The endings of its images; only the first image is indexed."""
        return [ending for ending in self.members if f".{ending}" in IMAGES]

    @property
    def image(self) -> tuple[int, int] | None:
        """Offset and size of the image's bytes."""
        return self.members[self.endings[0]] if self.endings else None

    @property
    def name(self) -> str:
        """The name of its image, or of its first member."""
        return f"{self.key}.{(self.endings or list(self.members))[0]}"


class TarReader(io.RawIOBase):
    """An object as a forward-only stream that keeps the bytes read since the last `cut`; with ``keep`` False, none."""

    def __init__(
        self, objects: Folder | Bucket, name: str, size: int, advance: Callable[[int], None], *, keep: bool = True
    ) -> None:  # fmt: skip
        self.objects, self.name, self.size, self.advance, self.keep = objects, name, size, advance, keep
        self.position = self.kept_from = 0
        self.kept = bytearray()
        self.chunk = memoryview(b"")

    @property
    def where(self) -> str:
        """The object's URL."""
        return f"{self.objects.url}/{self.name}"

    def fetch(self, start: int) -> bytes:
        """Get up to ``CHUNK`` bytes from ``start`` on."""
        return self.objects.get_range(self.name, start, min(CHUNK, self.size - start))

    def read(self, size: int = -1) -> bytes:
        if not self.chunk and self.position < self.size:
            self.chunk = memoryview(self.fetch(self.position))
            self.advance(len(self.chunk))
        data = bytes(self.chunk[: size if size >= 0 else None])
        self.chunk = self.chunk[len(data) :]
        self.position += len(data)
        if self.keep:
            self.kept += data
        if len(self.kept) > MAX_KEPT:
            what = f"{MAX_KEPT >> 20} MiB without a sample, after byte {self.kept_from}"
            raise InputError(what, self.where, "is this a tar of samples?")
        return data

    def look(self, start: int, end: int) -> bytes:
        """Return bytes that were read and are still kept."""
        return bytes(self.kept[start - self.kept_from : end - self.kept_from])

    def cut(self, at: int) -> None:
        """Drop the kept bytes before byte ``at``."""
        del self.kept[: max(at - self.kept_from, 0)]
        self.kept_from = max(at, self.kept_from)


def no_part_of_a_sample(member: tarfile.TarInfo, path: str) -> str:
    """Return why a member that is no folder belongs to no sample, in words; "" if it does. ``path``: its `member_path`."""
    file = path.rpartition("/")[2]
    if is_litter(path):
        return LITTER
    if member.issym() or member.islnk():
        return "links"
    if member.issparse():
        return "sparse files"
    if not member.isreg():
        return "neither files nor folders"
    if file.startswith("__"):
        return "notes of WebDataset (__*)"
    return "" if "." in file else "files without an ending"


class Part(NamedTuple):
    """A member of a tar; ``start`` and ``offset``: where its header and its data begin; ``size``: bytes of the data."""

    key: str
    ending: str
    start: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The member's name in the tar."""
        return f"{self.key}.{self.ending}"

    @property
    def end(self) -> int:
        """Where the next member may begin."""
        return self.offset + padded(self.size)


Samples = list[list[Part]]  # the samples of a tar, in its order


def samples_of(stream: IO[bytes], where: str, mode: Literal["r|", "r:"], size: int | None = None) -> Samples:
    """Return the samples of an indexed tar: runs of members whose names are equal up to the first dot after the last slash.

    Arguments and errors are those of `datasets.shards.tar.members`.
    """
    return [list(sample) for _, sample in groupby(_parts(stream, where, mode, size), lambda part: part.key)]


def _parts(stream: IO[bytes], where: str, mode: Literal["r|", "r:"], size: int | None) -> Iterator[Part]:
    for member in members(stream, where, mode, size):
        if not member.isdir() and not no_part_of_a_sample(member, member_path(member.name)):
            folder, slash, file = member.name.rpartition("/")
            stem, _, ending = file.partition(".")
            yield Part(printable(folder + slash + stem), printable(ending), member.offset, member.offset_data, member.size)


def files_of(reader: TarReader, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of each member that belongs to a sample and whose ending, in lower case, is ``wanted``, in order.

    Raises:
        InputError: the shard is truncated, damaged or no uncompressed tar; or a wanted member is larger than ``MAX_SAMPLE``.
    """
    held: tuple[str, int, int] | None = None  # a member lies in the reader only when the next one is found
    for member in members(cast(IO[bytes], reader), reader.where, "r|", reader.size):
        if held:
            yield held[0], reader.look(*held[1:])
        reader.cut(member.offset)
        path, held = member_path(member.name), None
        if not member.isdir() and not no_part_of_a_sample(member, path) and wanted(key_and_ending(path)[1].lower()):
            if member.size > MAX_SAMPLE:
                raise InputError(f"a member of more than {MAX_SAMPLE >> 20} MiB", f"{path} in {reader.where}", "is it an image?")
            held = path, member.offset_data, member.offset_data + member.size
    if held:
        yield held[0], reader.look(*held[1:])


def groups(reader: TarReader, left_out: LeftOut) -> Iterator[Group]:
    """Yield the samples of a shard, each as soon as it is read completely.

    A sample is a run of members with the same key: the name up to the first dot after the last slash. Members that belong to no
    sample are noted as left out; they may lie between a sample's members.

    Raises:
        InputError: the shard is truncated, damaged or no uncompressed tar; a sample's members are not side by side; two members
            have the same name; or a sample is larger than ``MAX_SAMPLE``.
    """
    group: Group | None = None
    begun: dict[str, str] = {}  # the first ending of every key
    at = 0
    for member in members(cast(IO[bytes], reader), reader.where, "r|", reader.size):
        if member.isdir():
            continue
        left_out.seen += 1
        path = member_path(member.name)
        key, ending = key_and_ending(path)
        rule, end = no_part_of_a_sample(member, path), member.offset_data + padded(member.size)
        if not rule and group is not None and key != group.key:
            yield group
            at, group = group.end, None
        if end - (group.start if group else at) > MAX_SAMPLE and not member.issparse():
            what = f"a sample, or what lies before one, has more than {MAX_SAMPLE >> 20} MiB"
            raise InputError(what, f"{key}.{ending} in {reader.where}", "take out what is no image or label")
        if rule:
            left_out.note(rule, path)
            continue
        _check_key(key, ending, group, begun, reader.where)
        group = group or Group(key, member.offset, 0, {})
        group.members[ending.lower()] = (member.offset_data, member.size)
        group.end = end
    if group is not None:
        yield group


def _check_key(key: str, ending: str, group: Group | None, begun: dict[str, str], where: str) -> None:
    """Raise InputError if the sample already has a member of this name, or has members elsewhere in the shard."""
    if group is not None:
        if ending.lower() in group.members:
            raise InputError("two members of one name", f"{key}.{ending} in {where}", "rename one of them, or take it out")
    elif key in begun:
        if begun[key].lower() == ending.lower():
            raise InputError("two samples of one name", f"{key}.{ending} in {where}", "rename one of them, or take it out")
        what = f"members of one sample do not lie side by side: {key}.{begun[key]} and {key}.{ending}"
        raise InputError(what, where, SORTED)
    else:
        begun[key] = sys.intern(ending)
