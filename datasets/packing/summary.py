"""The summary of a pack: every file is packed, or left out by a rule that the summary states with a count."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from datasets.layouts.archive import Archive
from datasets.layouts.listing import Listing
from datasets.media.decode import IMAGES
from datasets.skipped_files import left_out_line
from datasets.splits import counted


def left_out(archive: Archive, listing: Listing, unreadable: Collection[str]) -> dict[str, list[str]]:
    """Return the images that are not packed, and the files that the archive itself leaves out, by rule in words."""
    packed = {sample.name for sample in listing.samples}
    rules: dict[str, list[str]] = defaultdict(list, {rule: list(names) for rule, names in archive.left_out.items()})
    for name in archive.sizes:
        if name in unreadable:
            rules["cannot be decoded"].append(name)
        elif name not in packed and PurePosixPath(name).suffix.lower() in IMAGES:
            rules[listing.left_out.get(name, listing.others)].append(name)
    return rules


def summary_lines(archive: Archive, listing: Listing, unreadable: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines: files left out by each rule, how many were seen and packed, and how many images each split has."""
    rules = left_out(archive, listing, unreadable)
    splits = [sample.split for sample in listing.samples if sample.name not in unreadable]
    yield from lines_of(rules)
    seen = len(archive.sizes) + sum(map(len, archive.left_out.values()))
    gone = sum(map(len, rules.values()))
    texts = seen - gone - len({sample.name for sample in listing.samples} - set(unreadable))
    yield f"{seen:,} files seen: {len(splits):,} images packed, {gone:,} left out, {texts:,} lists and other texts"
    yield f"splits: {counted(splits)}; by {listing.splits_by}"


def lines_of(rules: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a line for each rule by which files were left out: how many, and the first names."""
    return (left_out_line(rule, len(names), names) for rule, names in rules.items())
