"""Configs to JSON and back: the resolved config is stored with the run, and a resumed run starts from it.

What a resumed run may change is written at the field itself, in its metadata under "change": "harmless" if no weight, batch or
figure depends on it, "allowed" if the run may go on with another value although they do. Every other setting must stay.
"""

import dataclasses
import fnmatch
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from datasets.errors import InputError

T = TypeVar("T")

HARMLESS, ALLOWED = {"change": "harmless"}, {"change": "allowed"}  # at a field that holds a config: for all of its settings
ADDRESS = {"address": True}  # at a field that holds one address of data or several


def allowed(*names: str) -> dict[str, Any]:
    """Metadata of a field that holds a config: a resumed run may change these of its settings, besides those that say so."""
    return {"change": dict.fromkeys(names, "allowed")}


def addresses(config: Any) -> list[str]:
    """Where a run's data lie: the values of all `ADDRESS` fields, without empty ones."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config) if field.metadata.get("address")]
    return [url for value in values for url in ([value] if isinstance(value, str) else value) if url]


def settings_of(config: Any, prefix: str = "", parent: Any = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting: its dotted name, its value, and "harmless", "allowed", or "" where a resumed run may not change it.

    ``parent``: the metadata of the field that holds the config.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        change = (parent.get(field.name, "") if isinstance(parent, dict) else parent) or field.metadata.get("change", "")
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.", change)
        else:
            yield f"{prefix}{field.name}", value, change


def to_json(config: Any) -> str:
    """A config, and the configs in its fields, as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(kind: type[T], text: str, where: str) -> T:
    """The config that `to_json` wrote; settings that are missing in the text get the defaults of ``kind()``.

    Raises:
        InputError: the text is not such a config; or a value in it is out of range.
    """
    try:
        return typing.cast(T, _build(kind, json.loads(text), kind()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"not the config of a {kind.__name__} run ({error})", where, "was it written by another version?"
        ) from error


def changed(config: T, settings: Mapping[str, Any]) -> T:
    """A copy of a config with some settings changed. They have dotted names; a ``*`` in a name matches several fields.

    Raises:
        InputError: there is no such setting, or a value is out of range.
    """
    for path, value in settings.items():
        head, _, rest = path.partition(".")
        names = fnmatch.filter((f.name for f in dataclasses.fields(config)), head)  # type: ignore[arg-type]
        if not names:
            raise InputError(f"no setting '{head}'", type(config).__name__, "name settings as on the command line")
        for name in names:
            new = changed(getattr(config, name), {rest: value}) if rest else value
            config = dataclasses.replace(config, **{name: new})  # type: ignore[type-var]
    return config


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as rows of dotted name and value, for a table."""
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        rows += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows


def _build(kind: Any, value: Any, default: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        if upgraded := getattr(kind, "upgraded", None):  # from the settings of an earlier version
            value = upgraded(value)
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise KeyError(f"unknown settings: {', '.join(sorted(unknown))}")
        base = kind() if default is None else default  # type: ignore[operator]
        return dataclasses.replace(base, **{name: _build(hints[name], item, getattr(base, name)) for name, item in value.items()})
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        return _build(next(k for k in typing.get_args(kind) if k is not type(None)), value, default)
    return tuple(value) if typing.get_origin(kind) is tuple else value
