"""Notices a training step that does not end, such as one that waits for a rank or for data that never come."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


def watched(items: Iterable[T], limit_s: float, stuck: Callable[[str], None]) -> Iterator[T]:
    """Yield the items; when one takes longer than ``limit_s`` seconds, a thread calls ``stuck``, once.

    Time that the caller spends between two items does not count. ``stuck`` gets how long the item has taken, and the place in the
    code where the calling thread is.
    """
    began: list[float] = []  # when the item was asked for that is being made; empty between two items
    ended, caller = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(min(limit_s / 10, 5.0)):
            took = max((time.monotonic() - since for since in list(began)), default=0.0)
            if took > limit_s:
                stuck(f"no step for {took:.0f} s, in {_place(caller)}")
                return

    threading.Thread(target=watch, name="step watch", daemon=True).start()
    iterator = iter(items)
    try:
        while True:
            began.append(time.monotonic())
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                began.clear()
            yield item
    finally:
        ended.set()


def _place(thread: int) -> str:
    """Where a thread is: the innermost call, and the innermost line of this project that led there."""
    frame = sys._current_frames().get(thread)
    innermost = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "an unknown place"
    while frame and not Path(frame.f_code.co_filename).is_relative_to(ROOT):
        frame = frame.f_back
    return innermost + (f", from {Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "")
