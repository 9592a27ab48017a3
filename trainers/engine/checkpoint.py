"""Training states and models as files; read as plain tensors and numbers, never unpickled."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from datasets.errors import InputError


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Store nested dicts and lists of tensors, numbers and strings."""
    torch.save(state, path)


def read_state(path: Path, where: str = "") -> dict[str, Any]:
    """What `write_state` stored, on the CPU.

    Raises:
        InputError: the file is damaged, or holds more than data. ``where``: the address to name.
    """
    try:
        if not zipfile.is_zipfile(path):  # torch would take it for one of its older forms, and stumble somewhere
            raise ValueError("not a whole zip file")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        what = f"the checkpoint cannot be read ({(str(error) or repr(error)).splitlines()[0][:100]})"
        raise InputError(what, where or str(path), "it is damaged or was not written by Hardshard") from error
    return state
