"""Models that a user brings: ``package.module:function`` names what builds one, wherever one of ours or torchvision's may stand.

The module is imported where the model is built: on the workers, and on the driver to try it before a run starts. docs/models.md
tells what the function is given and what its model must do.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import InputError

SIDE = 128  # pixels of the image that a backbone is asked by what it gives
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # of a model that inputs do not suit
DOCS = "docs/models.md tells what it must be"


def is_users(name: str) -> bool:
    """Whether a model's name stands for a function of the user's."""
    return ":" in name


def check_users(name: str) -> None:
    """Raise InputError unless the name has the form ``package.module:function``; nothing is imported."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InputError("not a function of a module", name, "give package.module:function, not a path")


def build_users(name: str, weights: str = "", **options: Any) -> nn.Module:
    """The model that the function returns for these options, and for ``weights`` unless they are empty.

    Raises:
        InputError: the module cannot be imported, has no such function, or the function does not take that or gives no module.
    """
    check_users(name)
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        remedy = "put its folder on PYTHONPATH, or install it, on every node"
        raise InputError(f"the module {module_name} cannot be imported ({error})", name, remedy) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{module_name} has no function {function_name}", str(module.__file__), "is the name right?")
    options |= {"weights": weights} if weights else {}
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise InputError(f"it does not take {', '.join(options) or 'no arguments'} ({error})", name, DOCS) from error
    model = function(**options)
    if not isinstance(model, nn.Module):
        raise InputError(f"it returns a {type(model).__name__}, not a torch.nn.Module", name, DOCS)
    return model


def ask(model: nn.Module, inputs: Tensor) -> Any:
    """What a model gives for inputs, as in evaluation, or the error of `REFUSALS` that it raises; its mode stays."""
    training = model.training
    try:
        with torch.no_grad():
            return model.eval()(inputs)
    except REFUSALS as error:
        return error
    finally:
        model.train(training)


def features_of(model: nn.Module, name: str) -> int:
    """F of a backbone that maps images [B, 3, H, W] to features [B, F]: found by an image of `SIDE` pixels a side; one that takes
    no image of that size says it by an attribute ``num_features``.

    Raises:
        InputError: there is no telling, or it gives something else.
    """
    found = ask(model, torch.zeros(1, 3, SIDE, SIDE))
    if isinstance(found, Exception) and isinstance(getattr(model, "num_features", None), int):
        return int(model.num_features)  # type: ignore[arg-type]
    if isinstance(found, Exception):
        what = f"it cannot take an image of {SIDE}x{SIDE} ({first_line(found)})"
        raise InputError(what, name, "give the module an attribute num_features if it takes other sizes alone")
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(f"for an image it gives {described(found)}, not features [1, F]", name, DOCS)
    return found.shape[1]


def try_users(name: str, build: Callable[[], nn.Module], inputs: Tensor) -> Any:
    """What the job's model, built around a user's, gives for inputs as training hands them over; None for another name, of which
    nothing is built.

    Raises:
        InputError: as `build_users`, or it cannot take them.
    """
    if not is_users(name):
        return None
    model = build()
    try:
        with torch.no_grad():
            return model.train()(inputs)
    except REFUSALS as error:
        what = f"it cannot be trained on inputs of {list(inputs.shape)} ({first_line(error)})"
        raise InputError(what, name, DOCS) from error


def first_line(error: Exception) -> str:
    """What an error says, short enough for a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def described(found: object) -> str:
    """A model's output in words."""
    return f"a tensor of {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
