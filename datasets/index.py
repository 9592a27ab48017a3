"""``python -m datasets.index URL``: index WebDataset shards of other tools in one streaming pass, without packing them again."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.object_storage import open_objects
from datasets.shards.identity_rules import Rules
from datasets.shards.index import MANIFEST, PACKING, write_index
from datasets.shards.locality import DRAW, locality_of
from datasets.shards.scan import PROBE, scan, shards_of
from datasets.shards.tar_reader import LeftOut


@dataclass(frozen=True)
class Command(Rules):
    """Index WebDataset shards of other tools, and report how well their order suits drawing by identity."""

    url: str = field(kw_only=True, metadata=POSITIONAL)
    """The folder or s3://bucket/prefix that holds the shards."""
    overwrite: bool = False
    """Replace an existing index."""


def main() -> None:
    """The command."""
    args = parse(Command, "python -m datasets.index")
    console = Console(stderr=True)
    objects = open_objects(args.url)
    if objects.exists(MANIFEST) and not args.overwrite:
        raise InputError("an index is there already", f"{objects.url}/{MANIFEST}", "replace it by --overwrite")
    if objects.sizes(f"{PACKING}/"):
        raise InputError("an interrupted pack is there", objects.url, "run it again to finish it: its other shards are missing")
    total = sum(shards_of(objects, LeftOut()).values())
    numbers = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("indexing"), BarColumn(), *numbers, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=total)
        objects.put(PROBE, b"")  # find out before the scan whether the index can be written there
        objects.delete(PROBE)
        index, keys, found = scan(args.url, args, lambda length: progress.advance(task, length))
    objects.delete(MANIFEST)  # only now, so that the old index stays if the scan fails
    write_index(objects, index, keys)
    locality = locality_of(index, args.max_block)
    lines = [
        *found.lines(),
        f"indexed {len(index):,} images of {len(index.identities):,} identities in {len(index.shards)} shards at {index.url}",
        f"{locality.samples_per_block:.1f} images a block ({locality.ideal_samples_per_block:.1f} at best), "
        f"{locality.in_one_block:.0%} of identities in one block; a draw of {DRAW} reads "
        f"{locality.bytes_per_draw / 1024:.0f} KiB for {locality.bytes_wanted / 1024:.0f} KiB of images",
        locality.verdict,
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
