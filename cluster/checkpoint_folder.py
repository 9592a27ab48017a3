"""A run's checkpoints: which is the latest, and how they are stored and fetched, by local runs and beside Ray Train.

Each is a folder ``step-00000200`` in the run's folder. A file beside them names the latest: Ray Train's own for its runs,
`LATEST` for local ones. It is written last, so that a checkpoint that was not stored whole is never restored. A run that was
trained both ways has both files; the checkpoint of more steps counts.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files

from cluster.errors import ClusterError
from cluster.storage import storage_uri

LATEST = "local_checkpoints.json"
RAY_LATEST = "checkpoint_manager_snapshot.json"  # Ray Train's (2.60); there is no public way to read it outside of a run


class RunFolder:
    """A run's folder, local or in S3."""

    def __init__(self, runs: str, name: str) -> None:
        self.filesystem, path = FileSystem.from_uri(storage_uri(runs))
        self.path = f"{path.rstrip('/')}/{name}"

    def latest_local(self) -> str:
        """The name of the latest checkpoint that was stored without Ray (``--cluster.local``); empty for none."""
        return str(self._read(LATEST).get("checkpoint", ""))

    def latest(self) -> str:
        """The name of the latest checkpoint, of local runs and of Ray Train's; empty for none."""
        by_ray = self._read(RAY_LATEST).get("latest_checkpoint_result") or {}
        return max(self.latest_local(), str(by_ray.get("checkpoint_dir_name", "")), key=step_of)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                state: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            remedy = "remove it to train from the start"
            raise ClusterError(
                f"the file that names the latest checkpoint is damaged ({error})", f"{self.path}/{name}", remedy
            ) from error
        return state

    def put(self, folder: Path, name: str, keep: int) -> None:
        """Store a folder's files as the checkpoint ``name``. Of the local checkpoints, only the last ``keep`` stay."""
        self.filesystem.create_dir(f"{self.path}/{name}")
        copy_files(str(folder), f"{self.path}/{name}", LocalFileSystem(), self.filesystem)
        before: list[str] = self._read(LATEST).get("kept", [])
        kept = [*(other for other in before if other != name), name][-keep:]
        with self.filesystem.open_output_stream(f"{self.path}/{LATEST}.new") as file:
            file.write(json.dumps({"checkpoint": name, "kept": kept}).encode())
        self.filesystem.move(f"{self.path}/{LATEST}.new", f"{self.path}/{LATEST}")
        for old in set(before) - set(kept):
            with suppress(FileNotFoundError):  # somebody else deleted it
                self.filesystem.delete_dir(f"{self.path}/{old}")


def step_of(name: str) -> int:
    """The step of a checkpoint's name, ``step-00000200`` or ``step-00000200-of-8``; -1 for an empty one."""
    found = re.match(r"step-(\d+)", name)
    return int(found[1]) if found else -1


def fetch(filesystem: FileSystem, path: str, folder: Path, wanted: Callable[[list[str]], Sequence[str]] | None) -> None:
    """Copy the files of the checkpoint at ``path`` into a folder: those that ``wanted`` picks by name, or all."""
    names = [file.base_name for file in filesystem.get_file_info(FileSelector(path)) if file.is_file]
    for name in names if wanted is None else wanted(names):
        copy_files(f"{path}/{name}", f"{folder}/{name}", filesystem, LocalFileSystem())
