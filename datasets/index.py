"""``python -m datasets.index URL``: index WebDataset shards that somebody else wrote, in one streaming pass, packing nothing."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.objects import open_objects
from datasets.shards.identity_rules import Rules
from datasets.shards.index import MANIFEST, PACKING, write_index
from datasets.shards.locality import DRAW, quality_of
from datasets.shards.scan import PROBE, scan, shards_of
from datasets.shards.tar_reader import LeftOut


@dataclass(frozen=True)
class Command(Rules):
    """Index WebDataset shards that somebody else wrote, and say how good their order is for drawing identities."""

    url: str = field(kw_only=True, metadata=POSITIONAL)
    """The folder or s3://bucket/prefix that holds the shards."""
    overwrite: bool = False
    """Replace an index that is there."""


def main() -> None:
    """The command."""
    args = parse(Command, "python -m datasets.index")
    console = Console(stderr=True)
    objects = open_objects(args.url)
    if objects.exists(MANIFEST) and not args.overwrite:
        raise InputError("an index is there already", f"{objects.url}/{MANIFEST}", "replace it by --overwrite")
    if objects.sizes(f"{PACKING}/"):
        raise InputError("an interrupted pack lies there", objects.url, "run it again: what it did not come to would be missing")
    total = sum(shards_of(objects, LeftOut()).values())
    numbers = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("indexing"), BarColumn(), *numbers, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=total)
        objects.put(PROBE, b"")  # learn now, not after the scan, whether anything can be written there
        objects.delete(PROBE)
        index, keys, found = scan(args.url, args, lambda length: progress.advance(task, length))
    objects.delete(MANIFEST)  # only now: an index that could not be replaced stays
    write_index(objects, index, keys)
    quality = quality_of(index, args.max_block)
    lines = [
        *found.lines(),
        f"indexed {len(index):,} images of {len(index.identities):,} identities in {len(index.shards)} shards at {index.url}",
        f"{quality.samples_per_block:.1f} images a block ({quality.ideal_samples_per_block:.1f} at best), "
        f"{quality.in_one_block:.0%} of identities in one block; a draw of {DRAW} reads {quality.bytes_per_draw / 1024:.0f} KiB "
        f"for {quality.bytes_wanted / 1024:.0f} KiB of images",
        quality.verdict,
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
