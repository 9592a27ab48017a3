"""A job's console: tables, notices, and one live line (in a log file: a line every few seconds)."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainers.reports.formatting import table_cells

_LOG_WIDTH = 200  # columns of a log, which is no terminal and has no width
_REDRAW = 0.1  # seconds
_SLOW = 0.25  # fraction of time spent waiting for data from which the line warns


def open_console(stream: TextIO | None = None) -> Console:
    """A console on ``stream`` (standard output if none is given) that writes to a log without folding its lines.

    A log stays a log where FORCE_COLOR or the like asks for colours: only a terminal is drawn on in place.
    """
    stream = stream or sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if terminal else _LOG_WIDTH,
        force_interactive=None if terminal else False,
    )


def summary_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], console: Console | None = None) -> None:
    """Print a table; columns of numbers are aligned right. Raises ValueError for a row that does not fit the columns."""
    console = console or open_console()
    texts, numeric = table_cells(columns, rows)
    table = Table(header_style="dim", box=SIMPLE_HEAD)
    for name, number in zip(columns, numeric, strict=True):
        table.add_column(_fit(name, console), justify="right" if number else "left", overflow="fold")
    for row in texts:
        table.add_row(*(_fit(text, console) for text in row))
    console.print(Text(_fit(title, console).plain, "bold"), soft_wrap=True)  # not as the table's title: that folds at its width
    console.print(table)


def _fit(text: str, console: Console) -> Text:
    """``text`` with everything replaced that the stream cannot encode, so that an odd name does not end a run."""
    return Text(text.encode(console.encoding, "replace").decode(console.encoding))


class LiveLine:
    """The state of a run on one line, as a context manager.

    On a terminal the line is redrawn in place. Elsewhere (a job's log, CI) it is printed: the first record, at most one
    every ``every`` seconds, and the last. ``clock`` gives seconds that never run backwards.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or open_console()
        self.every = every
        self.clock = clock
        self._record: Mapping[str, Any] = {}
        self._shown: Mapping[str, Any] | None = None  # the record that was drawn or printed last
        self._when = -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_interactive:
            self._live = Live(console=self.console, auto_refresh=False, get_renderable=self._drawn)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._record and self._record is not self._shown:
            self._show()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, record: Mapping[str, Any]) -> None:
        """Redraw the line from a record. It may hold: step, steps (of the run), stage, loss, accuracy, samples_per_s, eta_s,
        version (of the difficulty vector), wait (fraction of the time spent waiting for data), lr."""
        self._record = dict(record)
        if self.clock() - self._when >= (_REDRAW if self._live is not None else self.every):
            self._show()

    def say(self, text: str) -> None:
        """Print a notice; it stays, above the live line."""
        self.console.print(_fit(text, self.console), soft_wrap=True)

    def _show(self) -> None:
        self._shown, self._when = self._record, self.clock()
        if self._live is not None:
            self._live.refresh()
        else:
            parts = (_fit(text, self.console).plain for text, _ in state_parts(self._record))
            self.console.print(Text("  ".join(parts)), soft_wrap=True)

    def _drawn(self) -> Table | Text:
        parts = state_parts(self._record)
        if not parts:
            return Text("")
        line = Text("  ").join(Text(_fit(text, self.console).plain, style) for text, style in parts)
        line.no_wrap, line.overflow = True, "ellipsis"
        grid = Table.grid(padding=(0, 1))
        if self.console.width >= 110 and self._record.get("steps"):
            done, total = self._record.get("step", 0), self._record["steps"]
            grid.add_row(ProgressBar(total=total, completed=done, width=20, complete_style="cyan", finished_style="green"), line)
        else:
            grid.add_row(line)
        return grid


def state_parts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts of the line, the most important first: (text, rich style). Keys that the record lacks are left out."""
    record = {key: value for key, value in record.items() if value is not None or key == "version"}
    parts: list[tuple[str, str]] = []
    if "step" in record:
        total = f"/{record['steps']:,}" if record.get("steps") else ""
        parts.append((f"step {record['step']:,}{total}", "bold"))
    if "stage" in record:
        parts.append((f"stage {record['stage']}", ""))
    if "loss" in record:
        parts.append((f"loss {record['loss']:.4f}", "" if math.isfinite(record["loss"]) else "bold red"))
    if "accuracy" in record:
        parts.append((f"accuracy {record['accuracy']:.1%}", ""))
    if "samples_per_s" in record:
        parts.append((f"{record['samples_per_s']:,.0f} samples/s", ""))
    if "eta_s" in record:
        parts.append((f"ETA {duration(record['eta_s'])}", "cyan"))
    if "version" in record:
        version = record["version"]
        parts.append((f"vector {'none' if version is None else f'v{version}'}", ""))
    if "wait" in record:
        parts.append((f"data wait {record['wait']:.0%}", "yellow" if record["wait"] >= _SLOW else "dim"))
    if "lr" in record:
        parts.append((f"lr {record['lr']:.2e}", "dim"))
    return parts


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:34, 1:02:03 or 3d 04h; a question mark if they are unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = math.ceil(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600:02}h"
    hours, minutes = f"{whole // 3600}:" if whole >= 3600 else "", whole // 60 % 60
    return f"{hours}{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
