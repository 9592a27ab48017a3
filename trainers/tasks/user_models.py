"""User models: ``package.module:function`` names a function that builds one, wherever the name of a model or backbone is taken.

The module is imported where the model is built: on the workers, and on the driver, which tries the model before a run starts.
docs/models.md describes the function's arguments and what its model must do.
"""

import importlib
import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import InputError

SIDE = 128  # height and width of the image by which a backbone's outputs are found
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # errors of a model that cannot process its inputs
DOCS = "see docs/models.md"


def is_users(name: str) -> bool:
    """Whether a model's name is that of a user's function."""
    return ":" in name


def check_users(name: str) -> None:
    """Raise InputError unless the name has the form ``package.module:function``; nothing is imported."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InputError("not a function of a module", name, "give package.module:function, not a path")


def build_users(name: str, weights: str = "", **options: Any) -> nn.Module:
    """Call the user's function with these options, and with ``weights`` unless empty; returns its model.

    Raises:
        InputError: the module cannot be imported or has no such function, or the function does not take these arguments or does
            not return a module.
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
        raise InputError(f"the function does not take {', '.join(options) or 'no arguments'} ({error})", name, DOCS) from error
    model = function(**options)
    if not isinstance(model, nn.Module):
        raise InputError(f"the function returns a {type(model).__name__}, not a torch.nn.Module", name, DOCS)
    return model


def ask(model: nn.Module, inputs: Tensor) -> Any:
    """A model's output for inputs in evaluation mode, or the error of `REFUSALS` that it raises. The model's mode is restored."""
    training = model.training
    try:
        with torch.no_grad():
            return model.eval()(inputs)
    except REFUSALS as error:
        return error
    finally:
        model.train(training)


def features_of(model: nn.Module, name: str, size: tuple[int, int] = (SIDE, SIDE)) -> int:
    """F of a backbone that maps images [B, 3, H, W] to features [B, F].

    Found by an image of this size. A user's backbone that does not take `SIDE` x `SIDE` must have an attribute ``num_features``.

    Raises:
        InputError: F cannot be found, or the output has another shape.
    """
    found = ask(model, torch.zeros(1, 3, *size))
    if isinstance(found, Exception) and isinstance(getattr(model, "num_features", None), int):
        return int(model.num_features)  # type: ignore[arg-type]
    if isinstance(found, Exception):
        what = f"the model cannot take an image of {size[0]}x{size[1]} ({first_line(found)})"
        raise InputError(what, name, "give the module an attribute num_features if it takes only other sizes")
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(f"for an image the model returns {described(found)}, not features [1, F]", name, DOCS)
    return found.shape[1]


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 160 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def described(found: object) -> str:
    """A model's output in words, for an error message."""
    return f"a tensor of {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
