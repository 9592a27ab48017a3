"""Checkpoints of a head whose rows the ranks share: each writes its own, and reads those that are its own now, whoever had them.

What rank 0 writes of the run besides holds its own rows, too; every rank puts its own in their place.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.engine.checkpoint import read_state, write_state
from trainers.tasks.reid.sharded_head import ShardedHead


class ShardedRows(NamedTuple):
    """One rank's files of the checkpoints of a run with a sharded head (`trainers.engine.training.OwnFiles`)."""

    head: ShardedHead
    optimiser: torch.optim.Optimizer

    def write(self, folder: Path) -> None:
        """Write this rank's rows [n, D] into a checkpoint's folder, and what the optimiser keeps of them."""
        state = {"rows": self.head.weight.detach(), **self.optimiser.state[self.head.weight]}
        write_state(folder / f"share-{self.head.first:012d}.pt", state)

    def read(self, folder: Path, state: dict[str, Any]) -> dict[str, Any]:
        """The state that rank 0 wrote, with the rows that are this rank's now; the number of ranks may have changed since.

        Raises:
            InputError: not all of the rows are there, or a file is damaged.
        """
        own = _read_rows(folder, self.head.first, self.head.end)
        numbered = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        number = next(i for i, parameter in enumerate(numbered) if parameter is self.head.weight)
        state["task"]["head.weight"] = own.pop("rows")
        state["optimiser"]["state"][number] = own
        return state

    def wanted(self, names: list[str]) -> list[str]:
        """Of a checkpoint's files those that this rank reads: files of others' rows are left out."""
        return files_of_rows(self.head.first, self.head.end, names)


def files_of_rows(first: int, end: int, names: list[str]) -> list[str]:
    """Of the names of a checkpoint's files those that a rank with these rows reads: files of others' rows are left out."""
    files = sorted(name for name in names if name.startswith("share-"))
    begins = [_begin_of(name) for name in files]
    spans = zip(files, begins, [*begins[1:], math.inf], strict=True)
    others = {name for name, begin, stop in spans if begin >= end or stop <= first}
    return [name for name in names if name not in others]


def _begin_of(name: str) -> int:
    """The first of the rows that a file of this name holds."""
    return int(name.removeprefix("share-").removesuffix(".pt"))


def _read_rows(folder: Path, first: int, end: int) -> dict[str, Any]:
    """Rows ``first`` .. ``end`` as "rows", and what the optimiser keeps of them by its own names."""
    parts: list[dict[str, Any]] = []
    for path in sorted(folder.glob("share-*.pt")):
        begin = _begin_of(path.name)
        if begin < end:
            state = read_state(path)
            rows = slice(max(first - begin, 0), max(end - begin, 0))
            parts.append({name: value[rows] if _by_row(value) else value for name, value in state.items()})
    found = sum(len(part["rows"]) for part in parts)
    if found != end - first:
        what = f"the checkpoint holds {found} of the {end - first} rows {first} to {end - 1} of the head"
        raise InputError(what, str(folder), "take another checkpoint")
    return {name: torch.cat([part[name] for part in parts]) if _by_row(value) else value for name, value in parts[0].items()}


def _by_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2  # a step count is of no row
