"""Training states and models as files. They are read as tensors and plain values; no object is ever unpickled."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch import nn

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
        with zipfile.ZipFile(path) as archive:  # torch would read others as an older format, and checks no checksums
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)  # without the path, which may be temporary
        what = f"the checkpoint cannot be read ({reason.splitlines()[0][:100]})"
        raise InputError(what, where or str(path), "it is damaged or was not written by Hardshard") from error
    return state


def crc32c_of(task: nn.Module) -> int:
    """A checksum of all weights and buffers: equal for runs that are equal to the bit."""
    checksum = 0
    for tensor in task.state_dict().values():
        checksum = google_crc32c.extend(checksum, tensor.cpu().contiguous().numpy().tobytes())
    return checksum
