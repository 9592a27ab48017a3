"""Checkpoints of a `ShardedHead`: each rank writes its rows to a file of its own, and reads them from the files that hold them.

The number of ranks may change in between. The state that rank 0 writes contains rank 0's rows; the other ranks replace them.
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
    """Writes and reads one rank's own file of a checkpoint: its rows of a sharded head, and the optimiser's state of these rows.

    An `OwnFiles` of `trainers.engine.training`.
    """

    head: ShardedHead
    optimiser: torch.optim.Optimizer

    def write(self, folder: Path) -> None:
        """Write this rank's rows [n, D], or centres [n, K, D], and their optimiser state into a checkpoint's folder."""
        state = {"rows": self.head.weight.detach(), **self.optimiser.state[self.head.weight]}
        write_state(folder / f"share-{self.head.first:012d}.pt", state)

    def read(self, folder: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Put this rank's rows and their optimiser state into ``state``, which rank 0 wrote, and return it.

        Raises:
            InputError: the files do not hold all of the rows, or one is damaged.
        """
        own = _read_rows(folder, self.head.first, self.head.end)
        numbered = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        number = next(i for i, parameter in enumerate(numbered) if parameter is self.head.weight)
        state["task"]["head.weight"] = own.pop("rows")
        state["optimiser"]["state"][number] = own
        return state

    def wanted(self, names: list[str]) -> list[str]:
        """The files of a checkpoint that this rank needs (`files_of_rows`)."""
        return files_of_rows(self.head.first, self.head.end, names)


def files_of_rows(first: int, end: int, names: list[str]) -> list[str]:
    """The names of a checkpoint's files without those that hold no row of ``first`` .. ``end`` - 1."""
    files = sorted(name for name in names if name.startswith("share-"))
    begins = [_begin_of(name) for name in files]
    spans = zip(files, begins, [*begins[1:], math.inf], strict=True)
    others = {name for name, begin, stop in spans if begin >= end or stop <= first}
    return [name for name in names if name not in others]


def _begin_of(name: str) -> int:
    """The first row in a file of this name."""
    return int(name.removeprefix("share-").removesuffix(".pt"))


def _read_rows(folder: Path, first: int, end: int) -> dict[str, Any]:
    """Rows ``first`` .. ``end`` - 1 as "rows", and their optimiser state by the optimiser's names."""
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
    return isinstance(value, Tensor) and value.ndim >= 2  # the optimiser's step count is not per row
