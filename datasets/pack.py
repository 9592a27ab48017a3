"""``python -m datasets.pack LAYOUT SOURCE DESTINATION``: pack a downloaded data set into shards with an index.

The plan (`datasets.packing.plan`) depends only on names, sizes and options, so the same command finishes an interrupted pack.
A shard is stored completely or not at all, then a note about it in ``_packing/``; the index is written last.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, printable, run_main
from datasets.layouts.archive import Archive, name_of_source, open_archive, refuse_inside
from datasets.layouts.boxes import BOX_LAYOUTS, BoxName, renamed
from datasets.layouts.degrade import Degradation, degraded
from datasets.layouts.faces import FACE_LAYOUTS, FaceName
from datasets.layouts.identities import LAYOUTS, Name
from datasets.layouts.listing import Listing
from datasets.layouts.pairs import PAIR_LAYOUTS, PairName
from datasets.object_storage import open_objects
from datasets.packing.destination import claim, forget
from datasets.packing.plan import boxes_of, index_of, labels_of, plan_shards
from datasets.packing.summary import summary_lines
from datasets.packing.write import Bytes, write_shards
from datasets.shards.boxes import BoxTable, table_of_boxes
from datasets.shards.index import Index, write_index
from datasets.splits import HeldOut

VERSION = 1  # of the bytes that a plan produces; part of a pack's fingerprint
_SELDOM = ("rename", "degrade", "degrade_strength")  # options that most packs do not use
Layout = Literal[Name, PairName, FaceName, BoxName]
KINDS = (
    f"Layout of the data. Images of identities: {', '.join(LAYOUTS)}; pairs to verify: {', '.join(PAIR_LAYOUTS)}; "
    f"faces with labels: {', '.join(FACE_LAYOUTS)}; images with boxes: {', '.join(BOX_LAYOUTS)}."
)


class Part(NamedTuple):
    """Part ``number`` of ``parts`` of a pack, from 1 on."""

    number: int
    parts: int


def part_of(text: str) -> Part:
    """Parse a part such as 3/8. Raises ValueError."""
    number, _, parts = text.partition("/")
    part = Part(int(number), int(parts))
    if not 1 <= part.number <= part.parts:
        raise ValueError
    return part


@dataclass(frozen=True)
class Options:
    """Options that, with the images, decide how a set is packed."""

    shard_size: Bytes = 64 << 20
    """Largest shard in bytes, e.g. 64MiB."""
    max_block: Bytes = 256 << 10
    """Largest block in bytes: images of an identity that are read together."""
    seed: int = 0
    """Seed of the order of the images, and of the draw of held-out identities."""
    held_out: float = 0.25
    """Fraction held out for testing if the set defines no splits: of identities (folders, omniglot, rec) or images (others)."""
    min_samples: int = 1
    """Training identities with fewer images are left out."""
    rename: tuple[str, ...] = ()
    """New names for classes of boxes, e.g. rbc=RBC wbc=WBC."""
    degrade: Degradation | None = None
    """Turn the images into another domain, by the seed: fog, night, blur or stain. The index records it."""
    degrade_strength: float = 1.0
    """How much --degrade changes the images: 1 is moderate, 2 twice as much."""

    def __post_init__(self) -> None:
        for name in ("shard_size", "max_block", "min_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1", str(getattr(self, name)))
        if not 0 < self.degrade_strength < math.inf:
            raise InputError("--degrade-strength must be above 0", str(self.degrade_strength))
        if self.degrade_strength != 1 and not self.degrade:
            raise InputError("nothing is degraded", f"--degrade-strength {self.degrade_strength:g}", "give --degrade, too")


@dataclass(frozen=True)
class Pack(Options):
    """Pack a data set into shards that store an identity's images side by side."""

    layout: Layout = field(kw_only=True, metadata={**POSITIONAL, "help": KINDS})
    source: str = field(kw_only=True, metadata=POSITIONAL)
    """The folder, zip, tar, .rec, .bin or .mat that was downloaded, or its s3:// address."""
    destination: str = field(kw_only=True, metadata=POSITIONAL)
    """A folder or s3://bucket/prefix."""
    allow_unreadable: int = 0
    """How many images may fail to decode; they are left out and listed."""
    overwrite: bool = False
    """Replace the shards at the destination."""
    part: str = ""
    """K/N: write only part K of N of the shards, and no index. When all parts are done, run without --part to finish."""
    quiet: bool = False
    """No progress bar, no summary."""


def pack(
    layout: Layout, source: Path | str, destination: str, options: Options | None = None, *,
    allow_unreadable: int = 0, overwrite: bool = False, quiet: bool = True,
) -> Index:  # fmt: skip
    """Pack a data set, or finish an interrupted pack; a complete one is not packed again. Returns the index.

    Raises:
        InputError: the source has another layout, an image cannot be read, or the destination holds something else.
    """
    options = options or Options()
    with _listed(layout, source, destination, options) as (opened, listing):
        return pack_listing(
            layout, name_of_source(source), opened, listing, destination, options,
            allow_unreadable=allow_unreadable, overwrite=overwrite, quiet=quiet,
        )  # fmt: skip


def pack_listing(
    layout: str, source: str, archive: Archive, listing: Listing, destination: str, options: Options | None = None, *,
    allow_unreadable: int = 0, overwrite: bool = False, quiet: bool = True,
) -> Index:  # fmt: skip
    """Pack the samples of a listing, as `pack` does. ``layout``, ``source``: the names that the index records.

    Raises:
        InputError: an image cannot be read, or the destination holds something else.
    """
    options = options or Options()
    console = Console(stderr=True, quiet=quiet)
    objects = open_objects(destination)
    fingerprint = _fingerprint(listing, archive, layout, options)
    if (done := claim(objects, fingerprint, overwrite)) is not None:
        console.print(f"already whole: {objects.url}", markup=False, highlight=False, soft_wrap=True)
        return done
    shards = plan_shards(listing.samples, archive.sizes, options.shard_size, options.max_block, options.seed)
    written = write_shards(shards, archive, objects, fingerprint, allow_unreadable, console)
    unreadable = {name: reason for result in written for name, reason in result.unreadable.items()}
    about: dict[str, Any] = {
        "layout": layout, "size": list(listing.size), "mirror": listing.mirror, "source": source,
        **_set(options), "splits_by": printable(listing.splits_by), "fingerprint": fingerprint,
        "unreadable": {printable(name): reason for name, reason in unreadable.items()},
    }  # fmt: skip
    if listing.classes is not None:
        about |= {"classes": list(listing.classes), "dropped": [printable(what) for what in listing.dropped]}
    index, keys = index_of(objects.url, shards, written, about)
    boxes = None if listing.classes is None else table_of_boxes(boxes_of(shards, written), listing.classes)
    write_index(objects, index, keys, labels_of(shards, written), boxes)
    forget(objects)
    for line in (*_details(listing, unreadable), *summary_lines(archive, listing, unreadable), _summary(index, listing)):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return index


def _details(listing: Listing, unreadable: dict[str, str]) -> Iterator[str]:
    """Yield the summary's lines about single images and boxes."""
    yield from (f"left out {name}: {reason}" for name, reason in unreadable.items())
    yield from (f"left out {what}" for what in listing.dropped)
    if listing.dropped:
        yield f"left out {len(listing.dropped)} boxes in all"
    yield from listing.notes


def _summary(index: Index, listing: Listing) -> str:
    total = sum(shard.size for shard in index.shards) / 2**20
    what = f"of {len(index.identities):,} identities" if not index.labels else f"with labels of {', '.join(index.labels)}"
    what = what if index.boxes is None else _box_counts(index.boxes, listing.classes or ())
    return f"packed {len(index):,} images {what} into {len(index.shards)} shards, {total:.1f} MiB, at {index.url}"


def pack_part(
    layout: Layout, source: Path | str, destination: str, options: Options, part: Part, *,
    allow_unreadable: int = 0, quiet: bool = True,
) -> int:  # fmt: skip
    """Write every ``part.parts``-th shard of a set, without an index; returns their number.

    So several processes or machines that see the same source can pack it together. `pack` then writes what is missing, and the
    index.

    Raises:
        InputError: as for `pack`.
    """
    console = Console(stderr=True, quiet=quiet)
    objects = open_objects(destination)
    with _listed(layout, source, destination, options) as (opened, listing):
        fingerprint = _fingerprint(listing, opened, layout, options)
        if claim(objects, fingerprint, overwrite=False, alone=False) is not None:
            return 0
        shards = plan_shards(listing.samples, opened.sizes, options.shard_size, options.max_block, options.seed)
        own = shards[part.number - 1 :: part.parts]
        write_shards(own, opened, objects, fingerprint, allow_unreadable, console)
    line = f"packed part {part.number} of {part.parts}: {len(own)} of {len(shards)} shards, at {objects.url}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    return len(own)


@contextmanager
def _listed(layout: Layout, source: Path | str, destination: str, options: Options) -> Iterator[tuple[Archive, Listing]]:
    """Open the source; yields what is read from, and the listing to be packed."""
    objects = open_objects(destination)
    refuse_inside(objects, source)
    with open_archive(source) as opened:
        found = (LAYOUTS | PAIR_LAYOUTS | FACE_LAYOUTS | BOX_LAYOUTS)[layout](opened, HeldOut(options.held_out, options.seed))
        listing = _trained_on(renamed(found, options.rename), opened.where, options)
        images, inside = [sample.name for sample in listing.samples], listing.archive or opened
        kind, seed, strength = options.degrade, options.seed, options.degrade_strength
        with degraded(inside, images, kind, seed, strength) if kind else nullcontext(inside) as packed:
            yield packed, listing


def _box_counts(boxes: BoxTable, classes: Sequence[str]) -> str:
    """Describe the number of boxes of each class, and of images that nobody annotated."""
    counts = np.bincount(boxes.classes, minlength=len(classes)).tolist()
    named = ", ".join(f"{count:,} {name}" for name, count in zip(classes, counts, strict=True) if count) or "no boxes"
    bare = int((~boxes.annotated).sum())
    return f"with {named}" + (f" ({bare:,} not annotated)" if bare else "")


def _set(options: Options) -> dict[str, object]:
    """Return the options that the index records; rename and how images are degraded only where they are not the default."""
    values, default = asdict(options), asdict(Options())
    return {name: value for name, value in values.items() if value != default[name] or name not in _SELDOM}


def _trained_on(listing: Listing, where: str, options: Options) -> Listing:
    """Return the listing without training identities that have too few images."""
    counts = Counter(sample.identity for sample in listing.samples if sample.split == "train")
    few = {identity for identity, count in counts.items() if count < options.min_samples}
    samples = [sample for sample in listing.samples if sample.split != "train" or sample.identity not in few]
    rule = f"of training identities with fewer than {options.min_samples} images"
    rules = {s.name: rule for s in listing.samples if s.split == "train" and s.identity in few}
    identities = {sample.identity for sample in samples}
    if len(identities) < 2 and listing.classes is None and not any(sample.labels for sample in samples):
        found = f"only '{next(iter(identities))}'" if identities else "none"
        remedy = "training needs at least two: are the layout and --min-samples right?"
        raise InputError(f"fewer than two identities ({found})", where, remedy)
    return replace(listing, samples=samples, left_out={**listing.left_out, **rules})


def _fingerprint(listing: Listing, source: Archive, layout: str, options: Options) -> str:
    """Return a hash of the names, sizes, labels and options that determine the shards."""
    digest = hashlib.sha256(json.dumps([VERSION, layout, _set(options)], sort_keys=True).encode())
    for sample in sorted(listing.samples, key=lambda s: s.name):
        facts: list[object] = [sample.name, source.sizes[sample.name], sample.split, sample.identity, sample.camera]
        facts += [sorted(sample.labels.items())] if sample.labels else []
        facts += [sample.boxes] if sample.boxes is not None else []
        facts += [["position", sample.position]] if sample.position is not None else []
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:16]


def main() -> None:
    """The command."""
    args = parse(Pack, "python -m datasets.pack")
    options = Options(**{each.name: getattr(args, each.name) for each in fields(Options)})
    if args.part:
        if args.overwrite:
            raise InputError("--overwrite with --part", "parts would remove each other's shards", "empty the destination first")
        try:
            part = part_of(args.part)
        except ValueError as error:
            raise InputError(f"'{args.part}' is no part of a pack", "--part", "give K/N, K from 1 to N") from error
        pack_part(
            args.layout, args.source, args.destination, options, part, allow_unreadable=args.allow_unreadable, quiet=args.quiet
        )
        return
    pack(
        args.layout, args.source, args.destination, options,
        allow_unreadable=args.allow_unreadable, overwrite=args.overwrite, quiet=args.quiet,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
