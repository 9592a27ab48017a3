"""``python -m datasets.relabel SET DECISIONS DESTINATION``: write an index of the same shards with corrected identities.

The shards and the set's own index do not change. All commands take the new index as they take a set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from datasets.command_line import POSITIONAL, parse
from datasets.decisions import KINDS, decisions_of, renamed
from datasets.errors import InputError, printable, run_main
from datasets.object_storage import open_objects, read_file
from datasets.shards.index import BOXES, MANIFEST, PACKING, Index, link, read_index, write_index
from datasets.shards.relabelled import relabelled
from datasets.text_files import text_of


@dataclass(frozen=True)
class Relabel:
    """Write an index of the same shards with corrected identities."""

    set: str = field(kw_only=True, metadata=POSITIONAL)
    """The shard set or index to correct: a folder or s3://bucket/prefix."""
    decisions: str = field(kw_only=True, metadata=POSITIONAL)
    """The csv of decisions: a file or s3://bucket/file. Lines with accept yes are applied."""
    destination: str = field(kw_only=True, metadata=POSITIONAL)
    """Where to write the index: a folder or s3://bucket/prefix that holds no set."""


def write_relabelled(index: Index, names_of_samples: Sequence[str | None], destination: str) -> Index:
    """Write an index of a set's shards with these identities, and return it. Labels and boxes of the samples are kept.

    The destination is a folder or s3://bucket/prefix. Its index names the place of the shards by the whole URL; or, as a folder
    inside or beside theirs, by a relative path, so that both can be moved together. After an error there is no new set.

    Args:
        index: One set whose identities are no video clips.
        names_of_samples: The identity of each sample, in the order of the index [M]; None leaves it out.
        destination: A folder or s3://bucket/prefix.

    Raises:
        InputError: the set holds clips, a set is at the destination, no sample is left, or a shard does not match the index.
    """
    objects, shards = open_objects(destination), open_objects(index.shards_url)
    if index.clips.num_columns:
        raise InputError("its identities are video clips", index.url, "correct the clips' labels, and pack again")
    if objects.exists(MANIFEST) or objects.sizes(f"{PACKING}/"):
        raise InputError("a shard set is at the destination", objects.url, "give another folder or prefix for the new index")
    link(objects, shards.url)  # refuses before shards are read

    def read(block: int) -> bytes:
        row = {name: int(values[block]) for name, values in index.blocks.items()}
        return shards.get_range(index.shards[row["shard"]].name, row["offset"], row["size"])

    changed, kept = relabelled(index, names_of_samples, read)
    keys, boxes = index.keys, index.table(BOXES, len(index))
    labels = {name: values[kept] for name, values in index.labels.items()}
    about = {name: value for name, value in index.about.items() if name != "fingerprint"}  # by it, `pack` knows its own sets
    write_index(
        objects, replace(changed, about=about, shards_at=shards.url), [keys[sample] for sample in kept],
        labels, None if boxes is None else boxes.take(pa.array(kept)),
    )  # fmt: skip
    return read_index(objects.url)


def relabel(url: str, decisions: str, destination: str) -> list[str]:
    """Write the index with the accepted decisions of a csv (`datasets.decisions`); returns a summary.

    Raises:
        InputError: the csv has a fault, or as for `write_relabelled`. Then nothing is written.
    """
    index = read_index(url)
    text = text_of(read_file(decisions), decisions)
    accepted, refused = decisions_of(text, decisions, index)
    identities = list(index.identities)
    names = [identities[number] for number in index.identity_of(np.arange(len(index)))]
    found = write_relabelled(index, renamed(accepted, names), destination)
    counts = Counter[str](decision.kind for decision in accepted)
    return [
        f"applied {', '.join(f'{counts[kind]:,} {kind}' for kind in KINDS)}; {refused:,} not accepted",
        f"identities: {len(identities):,} before, {len(found.identities):,} after",
        f"images: {len(index):,} before, {len(found):,} after",
        f"the new index is at {found.url}, its shards at {found.shards_url}",
    ]


def main() -> None:
    """The command."""
    args = parse(Relabel, "python -m datasets.relabel")
    for line in relabel(args.set, args.decisions, args.destination):
        print(printable(line))


if __name__ == "__main__":
    run_main(main)
