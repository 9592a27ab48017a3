"""Where a run's checkpoints lie, for workers that store them by themselves and for those that do so through Ray Train.

A folder ``step-00000200`` each, in the run's folder. Which one is the latest stands in a file beside them that is written last:
Ray Train's own for its runs, `LATEST` for local ones. A run that went on elsewhere has both; the one of more steps counts.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs

from cluster.storage import storage_uri

LATEST = "local_checkpoints.json"
RAY_LATEST = "checkpoint_manager_snapshot.json"  # Ray Train's (2.60); there is no public way to learn it outside of a run


class RunFolder:
    """A run's folder, local or in S3."""

    def __init__(self, runs: str, name: str) -> None:
        self.filesystem, path = pyarrow.fs.FileSystem.from_uri(storage_uri(runs))
        self.path = f"{path.rstrip('/')}/{name}"

    def latest_local(self) -> str:
        """The name of the latest checkpoint that a local run stored; empty for none."""
        return str(self._read(LATEST).get("checkpoint", ""))

    def latest(self) -> str:
        """The name of the latest checkpoint, whoever stored it; empty for none."""
        by_ray = self._read(RAY_LATEST).get("latest_checkpoint_result") or {}
        return max(self.latest_local(), str(by_ray.get("checkpoint_dir_name", "")), key=step_of)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                state: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            return {}
        return state

    def put(self, folder: Path, name: str, keep: int) -> None:
        """Store a folder's files as the checkpoint of that name; of older local ones ``keep`` stay, this one included."""
        self.filesystem.create_dir(f"{self.path}/{name}")
        pyarrow.fs.copy_files(str(folder), f"{self.path}/{name}", destination_filesystem=self.filesystem)
        before: list[str] = self._read(LATEST).get("kept", [])
        kept = [*(other for other in before if other != name), name][-keep:]
        with self.filesystem.open_output_stream(f"{self.path}/{LATEST}.new") as file:
            file.write(json.dumps({"checkpoint": name, "kept": kept}).encode())
        self.filesystem.move(f"{self.path}/{LATEST}.new", f"{self.path}/{LATEST}")
        for old in set(before) - set(kept):
            self.filesystem.delete_dir(f"{self.path}/{old}")


def step_of(name: str) -> int:
    """The step of a checkpoint's name, ``step-00000200`` or ``step-00000200-of-8``; -1 for an empty one."""
    found = re.match(r"step-(\d+)", name)
    return int(found[1]) if found else -1


def fetch(
    filesystem: pyarrow.fs.FileSystem, path: str, folder: Path, wanted: Callable[[list[str]], Sequence[str]] | None
) -> None:
    """Copy a checkpoint's files into a folder: those that ``wanted`` picks of their names, or all."""
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    names = [file.base_name for file in found if file.type == pyarrow.fs.FileType.File]
    for name in names if wanted is None else wanted(names):
        pyarrow.fs.copy_files(f"{path}/{name}", f"{folder}/{name}", source_filesystem=filesystem)
