"""Configs to JSON and back."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.cache import CacheConfig
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.config import changed, from_json, to_json


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    flip: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"inner.share is {self.share}")


@dataclass(frozen=True)
class Outer:
    name: str = ""
    kind: Literal["a", "b"] = "a"
    size: tuple[int, int] | None = None
    place: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@pytest.mark.parametrize(
    "config",
    [
        Outer(),
        Outer(name="ä 'quoted' \"so\"", kind="b", size=(64, 32), place=("x", "y"), inner=Inner(0.1 + 0.2, False)),
        Outer(other=Inner(1.0, True), loader=LoaderConfig(size=(128, 64)), sampler=SamplerConfig(kind="pairs", batch=32)),
    ],
)
def test_round_trip(config: Outer) -> None:
    found = from_json(Outer, to_json(config), "here")
    assert found == config
    assert hash(found) == hash(config)
    assert type(found.size) is type(config.size)


def test_what_is_missing_is_the_default() -> None:
    assert from_json(Outer, '{"inner": {"share": 0.25}}', "here") == replace(Outer(), inner=Inner(0.25))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"nmae": "x", "b": 1}', "unknown settings: b, nmae"),
        ('{"inner": {"shear": 1}}', "unknown settings: shear"),
        ("", "not the config of a Outer run"),
        ("{", "not the config of a Outer run"),
        ("[" * 100_000, "not the config of a Outer run"),
        ("[]", "not the config of a Outer run"),
        ("null", "not the config of a Outer run"),
        ('"name"', "not the config of a Outer run"),
        ('{"inner": []}', "not the config of a Outer run"),
        ('{"inner": 3}', "not the config of a Outer run"),
        ('{"inner": null}', "not the config of a Outer run"),
        ('{"size": 3}', "not the config of a Outer run"),
        ('{"inner": {"share": "much"}}', "not the config of a Outer run"),
        ('{"inner": {"share": 2}}', "inner.share is 2"),
    ],
)
def test_what_is_not_such_a_config(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(Outer, text, "runs/x/config.json")
    assert told in str(error.value)
    if "inner.share" not in told:
        assert "runs/x/config.json" in str(error.value)


def test_json_is_plain() -> None:
    stored: dict[str, Any] = json.loads(to_json(Outer(size=(2, 1))))
    assert stored["size"] == [2, 1]
    assert stored["inner"] == {"share": 0.5, "flip": None}


def test_settings_changed_by_dotted_names() -> None:
    found = changed(Outer(), {"name": "y", "inner.share": 0.1, "sampler.batch": 128})
    assert found == replace(Outer(), name="y", inner=Inner(0.1), sampler=SamplerConfig(batch=128))
    with pytest.raises(InputError, match="no setting 'shear': Inner"):
        changed(Outer(), {"inner.shear": 1})
    with pytest.raises(InputError, match=r"inner\.share is 2"):
        changed(Outer(), {"inner.share": 2})


@dataclass(frozen=True)
class Twins:
    inner1: Inner = field(default_factory=Inner)
    inner2: Inner = field(default_factory=Inner)


def test_a_star_stands_for_several() -> None:
    assert changed(Twins(), {"inner*.share": 0.2, "inner2.flip": True}) == Twins(Inner(0.2), Inner(0.2, True))
