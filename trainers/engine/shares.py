"""Checkpoints of a head whose rows the ranks share: each writes its own, and reads those that are its own now, whoever had them.

What rank 0 writes of the run besides holds its own rows, too; every rank puts its own in their place.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.engine.checkpoint import read_state, write_state
from trainers.engine.journal import read_checkpoint
from trainers.losses.class_parallel import ClassParallel


def write_share(head: ClassParallel, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Write this rank's rows [n, D] into a checkpoint's folder, and what the optimiser keeps of them."""
    write_state(folder / f"share-{head.first:012d}.pt", {"rows": head.weight.detach(), **optimiser.state[head.weight]})


def read_with_share(head: ClassParallel, optimiser: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    """What `read_checkpoint` gives, with the rows that are this rank's now. The number of ranks may be another than when it was
    written.

    Raises:
        InputError: not all of the rows are there, or a file is damaged.
    """
    state, share = read_checkpoint(folder), _read_share(folder, head.first, head.end)
    numbered = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    number = next(i for i, parameter in enumerate(numbered) if parameter is head.weight)
    state["task"]["head.weight"] = share.pop("rows")
    state["optimiser"]["state"][number] = share
    return state


def files_of_rows(first: int, end: int, names: list[str]) -> list[str]:
    """Of the names of a checkpoint's files those that a rank with these rows reads: files of others' rows are left out."""
    shares = sorted(name for name in names if name.startswith("share-"))
    begins = [_begin_of(name) for name in shares]
    spans = zip(shares, begins, [*begins[1:], math.inf], strict=True)
    others = {name for name, begin, stop in spans if begin >= end or stop <= first}
    return [name for name in names if name not in others]


def _begin_of(name: str) -> int:
    """The first of the rows that a file of this name holds."""
    return int(name.removeprefix("share-").removesuffix(".pt"))


def _read_share(folder: Path, first: int, end: int) -> dict[str, Any]:
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
