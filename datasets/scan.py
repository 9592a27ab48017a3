"""``python -m datasets.index URL``: index WebDataset shards that somebody else wrote, in one streaming pass, packing nothing.

A sample's image is its first member with an image's ending. Samples of one identity that follow each other make a block, with
all that stands between them, so every image lies in exactly one block. No member is unpickled; only .cls and .json are read.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import google_crc32c
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from datasets.decode import IMAGES
from datasets.errors import InputError
from datasets.index import BLOCK_COLUMNS, MANIFEST, PACKING, SAMPLE_COLUMNS, Index, Shard, columns, write_index
from datasets.objects import open_objects
from datasets.quality import DRAW, MAX_BLOCK, quality_of
from datasets.tape import Group, Tape, groups

PROBE = "index/probe"
SPLIT_NAMES = ("train", "query", "gallery", "val", "test")


@dataclass(frozen=True)
class Rules:
    """Where foreign shards say who is on an image."""

    identity: Literal["auto", "key", "cls", "json"] = "auto"
    """What names the identity: the sample's key, its .cls, or a field of its .json. auto: .cls if there is one, else the key."""
    field: str = "pid"
    """The .json field that names the identity."""
    key_pattern: str = r"(?P<identity>.+)/[^/]+"
    """What of a key is the identity, and perhaps the camera: groups of a regular expression for the whole key."""
    camera_field: str = ""
    """The .json field that names the camera."""
    split: str = ""
    """The split of all shards; else a shard's name tells it (train, query, gallery, val, test), or it is train."""
    market_ids: bool = False
    """Identities -1 and 0 are Market-1501's junk and distractors, not people."""
    max_block: int = MAX_BLOCK
    """Bytes of an identity that are read at once, at most."""

    def __post_init__(self) -> None:
        try:
            if "identity" not in re.compile(self.key_pattern).groupindex:
                raise InputError("--key-pattern has no group (?P<identity>...)", self.key_pattern)
        except re.error as error:
            raise InputError(f"--key-pattern is no regular expression ({error})", self.key_pattern) from error


@dataclass
class Found:
    """What the scan gathers; identities and cameras are numbered as they come."""

    identities: dict[str, int] = field(default_factory=dict)
    cameras: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[int, ...]] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    without_image: int = 0


def scan(url: str, rules: Rules, advance: Callable[[int], None] = lambda _: None) -> tuple[Index, list[str], int]:
    """Index a set of shards without writing anything: the index, every sample's key, and how many samples had no image.

    Raises:
        InputError: no shards, one that is cut off or no plain tar, or a sample that does not say who is on it.
    """
    objects = open_objects(url)
    sizes = {name: size for name, size in objects.sizes().items() if name.endswith(".tar")}
    if not sizes:
        raise InputError("no .tar files", url, "give the folder or prefix that holds the WebDataset shards, uncompressed")
    split_of = {name: rules.split or _split(name) for name in sizes}
    splits = tuple(sorted(set(split_of.values()), key=[*SPLIT_NAMES, rules.split].index))
    found = Found()
    sizes = {name: sizes[name] for name in sorted(sizes, key=lambda name: (splits.index(split_of[name]), name))}
    for number, (name, size) in enumerate(sizes.items()):
        _scan_shard(Tape(objects, name, size, advance), number, split_of[name], splits, rules, found)
    if not found.samples:
        raise InputError("no images in the shards", url, f"members with the endings {', '.join(sorted(IMAGES))} are taken")
    index = _sorted(objects.url, sizes, split_of, splits, rules, found)
    return index, found.keys, found.without_image


def _split(shard: str) -> str:
    words = re.split(r"[^a-z]+", shard.lower())
    return next((word for word in words if word in SPLIT_NAMES), "train")


def _scan_shard(tape: Tape, number: int, split: str, splits: tuple[str, ...], rules: Rules, found: Found) -> None:
    run: list[tuple[Group, int]] = []  # one identity's samples, with their cameras
    running = ""

    def close() -> None:
        if run:
            start, end = run[0][0].start, run[-1][0].end
            crc = google_crc32c.value(tape.look(start, end))
            row = (number, found.identities[running], splits.index(split), start, end - start, len(found.keys), len(run), crc)
            for group, camera in run:
                offset, size = group.image or (0, 0)
                found.samples.append((len(found.blocks), offset, size, camera))
                found.keys.append(group.key)
            found.blocks.append(row)
            run.clear()

    for group in groups(tape):
        if group.image is None:
            found.without_image += 1
            close()
        else:
            identity, camera = _who(group, tape, rules, split)
            if run and (identity != running or group.end - run[0][0].start > rules.max_block):
                close()
            running = identity
            found.identities.setdefault(identity, len(found.identities))
            run.append((group, found.cameras.setdefault(camera, len(found.cameras))))
        tape.cut(run[0][0].start if run else group.end)
    close()


def _who(group: Group, tape: Tape, rules: Rules, split: str) -> tuple[str, str]:
    """Identity and camera. If unknown, each split is one camera, so that evaluation's same-camera rule takes nothing away."""
    at = f"{group.key} in {tape.where} at byte {group.start}"
    camera = split
    by = rules.identity if rules.identity != "auto" else "cls" if "cls" in group.members else "key"
    named = re.fullmatch(rules.key_pattern, group.key) if by == "key" else None
    if by == "key" and named is None:
        remedy = "give --key-pattern, or --identity cls or json"
        raise InputError(f"the key does not tell the identity by {rules.key_pattern}", at, remedy)
    if named is not None:
        identity = named["identity"]
        camera = named.groupdict().get("camera") or camera
    elif by == "cls":
        identity = _member(group, "cls", tape, at).decode("utf-8", "replace").strip()
    else:
        identity = _field(group, rules.field, tape, at)
    if rules.camera_field:
        camera = _field(group, rules.camera_field, tape, at)
    if not identity:
        raise InputError("the identity is empty", at, "leave the sample out, or name the identity otherwise (--identity)")
    return (f"id-{identity}" if identity in ("0", "-1") and not rules.market_ids else identity), camera


def _member(group: Group, ending: str, tape: Tape, at: str) -> bytes:
    if ending not in group.members:
        has = ", ".join(group.members)
        raise InputError(f"the sample has no .{ending}", at, f"it has: {has}; give --identity")
    offset, size = group.members[ending]
    return tape.look(offset, offset + size)


def _field(group: Group, name: str, tape: Tape, at: str) -> str:
    try:
        value = json.loads(_member(group, "json", tape, at))[name]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the sample's .json has no field '{name}'", at, "give --field or --camera-field") from error
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"the .json field '{name}' is neither a number nor a text", at, "give --field or --camera-field")
    return str(value)


def _sorted(
    url: str, sizes: dict[str, int], split_of: dict[str, str], splits: tuple[str, ...], rules: Rules, found: Found
) -> Index:
    """The index, its identities and cameras numbered in the order of names."""
    identities, cameras = sorted(found.identities), sorted(found.cameras)
    identity_id = {found.identities[name]: i for i, name in enumerate(identities)}
    camera_id = {found.cameras[name]: i for i, name in enumerate(cameras)}
    samples = [(*row[:3], camera_id[row[3]]) for row in found.samples]
    blocks = [(row[0], identity_id[row[1]], *row[2:]) for row in found.blocks]
    tables = columns(samples, SAMPLE_COLUMNS), columns(blocks, BLOCK_COLUMNS)
    about = {"layout": "webdataset", "size": [224, 224], "mirror": True, "max_block": rules.max_block}
    shards = tuple(Shard(name, size, split_of[name]) for name, size in sizes.items())
    return Index(url, shards, splits, tuple(cameras), tuple(identities), *tables, about)


@dataclass(frozen=True)
class Command(Rules):
    """Index WebDataset shards that somebody else wrote, and say how good their order is for drawing identities."""

    url: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="URL")] = tyro.MISSING
    """The folder or s3://bucket/prefix that holds the shards."""
    overwrite: bool = False
    """Replace an index that is there."""


def main() -> None:
    """The command."""
    args = tyro.cli(Command, prog="python -m datasets.index")
    console = Console(stderr=True)
    objects = open_objects(args.url)
    if objects.exists(MANIFEST) and not args.overwrite:
        raise InputError("an index is there already", f"{objects.url}/{MANIFEST}", "replace it by --overwrite")
    if objects.sizes(f"{PACKING}/"):
        raise InputError("an interrupted pack lies there", objects.url, "run it again: what it did not come to would be missing")
    total = sum(size for name, size in objects.sizes().items() if name.endswith(".tar"))
    numbers = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("indexing"), BarColumn(), *numbers, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=total)
        if total:  # learn now, not after the scan, whether anything can be written there
            objects.put(PROBE, b"")
            objects.delete(PROBE)
        index, keys, without_image = scan(args.url, args, lambda length: progress.advance(task, length))
    objects.delete(MANIFEST)  # only now: an index that could not be replaced stays
    write_index(objects, index, keys)
    quality = quality_of(index, args.max_block)
    lines = [
        f"indexed {len(index):,} images of {len(index.identities):,} identities in {len(index.shards)} shards at {index.url}",
        f"{quality.samples_per_block:.1f} images a block ({quality.ideal_samples_per_block:.1f} at best), "
        f"{quality.in_one_block:.0%} of identities in one block; a draw of {DRAW} reads {quality.bytes_per_draw / 1024:.0f} KiB "
        f"for {quality.bytes_wanted / 1024:.0f} KiB of images",
        quality.verdict,
    ]
    if without_image:
        lines.append(f"left out {without_image:,} samples without an image")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
