"""Weights of other trainings for a backbone: found on a disk, in S3 or on the web, and matched with the backbone's tensors.

A file holds a dict of tensors, or nested dicts with such a dict in them (``state_dict``, ``model``, ``teacher``, ...): PyTorch's
format, or safetensors. It is read as data; no object is ever unpickled.
"""

import hashlib
import math
import pickle
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from datasets.errors import InputError, UnreachableError
from datasets.home_folder import locked_home
from datasets.object_storage import Bucket, Folder, open_objects
from trainers.tasks.user_models import is_users

ENOUGH = 0.5  # fraction of the backbone's tensors that a file must hold
AVERAGED = {"teacher", "ema"}  # in the names of a file's dicts: a moving mean of the weights, which is the better one
SHOWN = 3  # names of tensors that a message lists
TIMEOUT = 60  # seconds without an answer of a web server
_COUNTS = "num_batches_tracked"  # a buffer of batch norm that no output depends on
_DAMAGED = (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


def is_file(weights: str) -> bool:
    """Whether ``weights`` names a file or a URL. No name of torchvision's or timm's weights has a dot or a slash in it."""
    return "." in weights or "/" in weights


def resolved_weights(weights: str, backbone: str) -> str:
    """``weights`` as a run's config keeps it: a user's backbone gets it as it is, else a path is made absolute."""
    return weights if is_users(backbone) else full_path(weights)


def full_path(weights: str) -> str:
    """``weights`` with an absolute path, if it is a path: workers have other working directories.

    Raises:
        InputError: a URL of another kind than s3, http and https.
    """
    scheme, separator, rest = weights.partition("://")
    if not is_file(weights) or (separator and scheme in ("s3", "http", "https") and "/" in rest.strip("/")):
        return weights
    if separator:
        raise InputError("not a file of weights", shown(weights), "give a path, s3://bucket/key or https://host/file")
    return str(Path(weights).expanduser().absolute())


def check_weights(weights: str, known: list[str], backbone: str) -> None:
    """Raise InputError unless ``weights`` is empty, one of the names ``known``, or names a file; nothing is read."""
    if is_file(weights):
        full_path(weights)
    elif weights and weights not in known:
        remedy = f"use one of {', '.join(known)}" if known else "leave the weights out: it has none"
        raise InputError(f"backbone {backbone} has no weights of this name", weights, f"{remedy}; or name a file")


def shown(weights: str) -> str:
    """A path, or a URL without what may be secret: a password, or a signature in its query."""
    if "://" not in weights:
        return weights
    parts = urlsplit(weights)
    return parts._replace(query="", netloc=parts.netloc.rpartition("@")[2]).geturl()


def load_weights(model: nn.Module, weights: str) -> None:
    """Load a file's tensors into a backbone. What was matched can be read with `report_of` afterwards.

    ``weights``: a path, s3://bucket/key or https://host/file.

    Raises:
        InputError: there is no such file, it is damaged or holds more than data, or fewer than half of the backbone's tensors
            are in it.
    """
    match = matched(model, read_weights(weights))
    wanted, found = names_of(model.state_dict()), names_of(match.tensors)
    missing = [name for name in wanted if name not in match.tensors]
    if len(found) < ENOUGH * len(wanted):
        what = f"only {len(found)} of the backbone's {len(wanted)} tensors are in the file"
        remedy = f"is it of this backbone? It lacks {some(missing)}, and has {some(match.unused)}"
        raise InputError(what, shown(weights), remedy)
    model.load_state_dict(match.tensors, strict=False)
    report = f"weights: {len(found)} of {len(wanted)} tensors, {match.how}, from {shown(weights)}"
    report += f"; not in the file: {some(missing)}" if missing else ""
    report += f"; not used: {some(match.unused)}" if match.unused else ""
    model.weights_report = report  # type: ignore[assignment]  # no parameter or buffer: it is stored with no model


def report_of(model: nn.Module) -> str:
    """What `load_weights` matched in this model or in a part of it; empty: nothing was loaded."""
    return next((str(part.weights_report) for part in model.modules() if getattr(part, "weights_report", "")), "")


def some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def names_of(tensors: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that outputs depend on."""
    return [name for name in tensors if not name.endswith(_COUNTS)]


# Reading


def read_weights(weights: str) -> dict[str, Any]:
    """What a file holds, on the CPU: tensors, numbers and texts in nested dicts and lists.

    Raises:
        InputError: as `load_weights`.
    """
    path = fetched(weights) if "://" in weights else Path(weights)
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # safetensors: the header's length in 8 bytes, then a JSON object
            return _read_safetensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError("no such file of weights", weights, "workers need it too, under the same path") from error
    except pickle.UnpicklingError as error:
        held = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the file holds a {held[1]}, and nothing is unpickled" if held else "not a file of PyTorch or safetensors"
        raise InputError(what, shown(weights), "save the model's state_dict() alone") from error
    except _DAMAGED as error:
        what = f"the weights cannot be read ({(str(error) or repr(error)).splitlines()[0][:100]})"
        raise InputError(what, shown(weights), "is it a file of PyTorch or safetensors, and whole?") from error
    if not isinstance(state, dict):
        raise InputError(f"the file holds a {type(state).__name__}, not a dict of tensors", shown(weights))
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError  # here: few runs need it
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:  # it has no other base than Exception
        raise ValueError(str(error)) from error


def fetched(url: str) -> Path:
    """The node's own copy of a remote file. It is fetched once on each node; from S3 again when its ETag has changed.

    Raises:
        InputError: there is no such file, access is refused, or the storage or server is unreachable.
    """
    bucket, name = _objects(url) if url.startswith("s3://") else (None, "")
    version = bucket.etags(name).get(name) if bucket else ""
    if version is None:
        raise InputError("no such file of weights", url, "correct the URL")
    key = hashlib.sha256(f"{url} {version}".encode()).hexdigest()[:16]
    with locked_home(f"weights-{key}", "the weights cannot be stored") as home:  # the workers of a node call this at once
        copies = Folder(home / "weights")
        if not copies.exists(key):
            copies.put(key, bucket.get(name) if bucket else _downloaded(url))
    return copies.path / key


def _objects(url: str) -> tuple[Bucket, str]:
    folder, _, name = url.rpartition("/")
    bucket = open_objects(folder)
    assert isinstance(bucket, Bucket)
    return bucket, name


def _downloaded(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 - `full_path` lets only http(s) pass
            data: bytes = answer.read()  # at once: only then is a shorter answer than announced an error
            return data
    except HTTPError as error:
        error.close()  # it is the answer, with an open connection
        raise InputError(f"the server answers {error.code} {error.reason}", shown(url), "correct the URL") from error
    except (OSError, HTTPException, ValueError) as error:
        what = f"the weights cannot be downloaded ({error or type(error).__name__})"
        raise UnreachableError(what, shown(url), "check the URL and the network") from error


# Matching


class Match(NamedTuple):
    """Tensors of a file by the names that they have in the model, the names of the others, and how they were found."""

    tensors: dict[str, Tensor]
    unused: list[str]
    how: str


def matched(model: nn.Module, state: Mapping[str, Any]) -> Match:
    """The tensors of a file that are the model's, as many as can be found.

    They are those with the model's names behind one common prefix, such as ``module.backbone.``. If names leave some out, but the
    file begins with tensors of the model's shapes in the model's order, these are taken, whatever their names.
    """
    groups = list(groups_of(state)) or [("", {})]
    by_name = max((_by_name(model, *group) for group in groups), key=lambda match: _rank(match))
    if len(names_of(by_name.tensors)) < len(names_of(model.state_dict())):
        by_order = [match for group in groups if (match := _by_order(model, *group))]
        if by_order:
            return max(by_order, key=_rank)
    return by_name


def _rank(match: Match) -> tuple[int, bool]:
    return len(match.tensors), not AVERAGED.isdisjoint(re.split(r"[ ._*]", match.how))


def groups_of(state: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each dict of a file that holds tensors, with the keys that lead to it."""
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from groups_of(value, f"{path}.{name}" if path else str(name))


def _by_name(model: nn.Module, path: str, group: dict[str, Tensor]) -> Match:
    wanted = model.state_dict()
    votes: Counter[str] = Counter()
    for name, tensor in group.items():
        parts = name.split(".")
        for start in range(len(parts)):
            own = ".".join(parts[start:])
            if own in wanted and _fitting(model, own, wanted[own], tensor) is not None:
                votes[name.removesuffix(own)] += 1
    prefix = votes.most_common(1)[0][0] if votes else ""
    tensors: dict[str, Tensor] = {}
    for own, target in wanted.items():
        fitting = _fitting(model, own, target, group[prefix + own]) if prefix + own in group else None
        if fitting is not None:
            tensors[own] = fitting
    unused = [name for name in group if not (name.startswith(prefix) and name.removeprefix(prefix) in tensors)]
    return Match(tensors, unused, f"named {'.'.join(filter(None, (path, prefix)))}*" if path or prefix else "by name")


def _by_order(model: nn.Module, path: str, group: dict[str, Tensor]) -> Match | None:
    wanted = model.state_dict()
    own, theirs = names_of(wanted), names_of(group)
    if len(theirs) < len(own) or any(wanted[a].shape != group[b].shape for a, b in zip(own, theirs, strict=False)):
        return None
    tensors = {a: group[b] for a, b in zip(own, theirs, strict=False)}
    return Match(tensors, theirs[len(own) :], "by order and shape" + (f" in {path}" if path else ""))


def _fitting(model: nn.Module, name: str, target: Tensor, tensor: Tensor) -> Tensor | None:
    """The tensor in the target's shape: as it is, or a positional embedding [1, tokens, F] resized; None: it does not fit."""
    if tensor.shape == target.shape:
        return tensor
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if name.rpartition(".")[2] != "pos_embed" or grid is None or tensor.ndim != 3 or tensor.shape[2] != target.shape[2]:
        return None
    prefix = target.shape[1] - grid[0] * grid[1]  # class and register tokens, which have no place
    if prefix < 0 or tensor.shape[1] <= prefix:
        return None
    from timm.layers import resample_abs_pos_embed  # here: a model with such a grid is timm's

    old = grid_of(tensor.shape[1] - prefix, grid[0] / grid[1])
    resized: Tensor = resample_abs_pos_embed(tensor, list(grid), list(old), num_prefix_tokens=prefix)
    return resized


def grid_of(tokens: int, ratio: float) -> tuple[int, int]:
    """Height and width of the grid that a positional embedding of so many tokens was trained on: a square if it can be one, as
    nearly all published ones are, else the grid whose height : width is closest to ``ratio``."""
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    heights = [height for height in range(1, tokens + 1) if tokens % height == 0]
    best = min(heights, key=lambda height: abs(math.log(height * height / tokens / ratio)))
    return best, tokens // best
