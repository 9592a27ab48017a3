"""``python -m datasets.relabel SET DECISIONS.csv NEW_INDEX``: write an index of the same shards with corrected identities."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from datasets.errors import InputError
from datasets.object_storage import open_objects
from datasets.shards.index import BOXES, MANIFEST, PACKING, Index, link, read_index, write_index
from datasets.shards.relabelled import relabelled


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
