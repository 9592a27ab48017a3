"""Runs in another Python that has the tools: prints the bytes of every image that a tool finds, by key, as hex in JSON.

python export_readers.py wids|energon FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any


def by_wids(folder: Path) -> dict[str, bytes]:
    """Every sample by its number."""
    import wids  # type: ignore[import-not-found]

    found = wids.ShardListDataset(str(folder / "shardindex.json"), base=str(folder), keep=True, transformations=[])
    samples: list[Any] = [found[number] for number in range(len(found))]
    return {sample["__key__"]: sample[".jpg"].read() for sample in samples}


def by_energon(folder: Path) -> dict[str, bytes]:
    """Every sample of the split train, by its loader, and each again by its key."""
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset, stateless  # type: ignore[import-not-found]
    from megatron.energon.epathlib import EPath  # type: ignore[import-not-found]
    from megatron.energon.flavors.webdataset.itar_reader import SqliteITarEntryReader  # type: ignore[import-not-found]

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (Cooker(stateless(lambda sample: sample)),)
        decoder = None

    one = WorkerConfig(rank=0, world_size=1, num_workers=0)
    read = get_val_dataset(folder, split_part="train", worker_config=one, batch_size=None, task_encoder=Encoder())
    found: dict[str, bytes] = {sample["__key__"]: sample["jpg"] for sample in get_loader(read)}
    by_name: Any = SqliteITarEntryReader(base_path=EPath(folder), key_is_full_entryname=True)
    assert all(by_name[f"{key}.jpg"][0] == data for key, data in found.items())
    return found


if __name__ == "__main__":
    read = {"wids": by_wids, "energon": by_energon}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({key: data.hex() for key, data in read.items()}))
