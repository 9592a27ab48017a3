"""A training step that does not end is noticed, with the place where it waits."""

import time
from collections.abc import Iterator

import pytest

from trainers.engine.watch import watched


def slow(seconds: float) -> Iterator[int]:
    yield 1
    time.sleep(seconds)
    yield 2


def test_a_step_that_takes_too_long_is_reported_once_with_its_place() -> None:
    said = list[str]()
    assert list(watched(slow(0.6), 0.2, said.append)) == [1, 2]
    assert len(said) == 1
    assert said[0].startswith("no step for 0 s, ")
    assert said[0].endswith(f"in test_watch.py:{slow.__code__.co_firstlineno + 2} slow, from tests/trainers/engine/test_watch.py:"
                            f"{slow.__code__.co_firstlineno + 2}")  # fmt: skip


def test_what_the_caller_does_between_two_steps_does_not_count() -> None:
    said = list[str]()
    for _ in watched(slow(0.0), 0.2, said.append):
        time.sleep(0.5)
    assert said == []


def test_an_error_of_a_step_is_raised_and_ends_the_watch() -> None:
    def torn() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    said = list[str]()
    with pytest.raises(ValueError, match="torn"):
        list(watched(torn(), 0.05, said.append))
    time.sleep(0.2)
    assert said == []
