"""Shows the runs on a cluster: python -m cluster.status [--address ray://head:10001], from any machine that reaches it.

python -m cluster.status --runs s3://bucket/runs shows who trains in a folder of runs, on whatever cluster.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cluster.connection import join
from cluster.errors import ClusterError, run_main
from cluster.lease import STALE_S, drivers
from cluster.progress import running
from datasets.command_line import parse

COLUMNS = (
    "run", "step", "stage", "ETA", "loss", "samples/s", "data wait", "mAP", "vector", "last report", "failures", "last error"
)  # fmt: skip


@dataclass(frozen=True)
class Watch:
    """Show the runs on a cluster: their progress, speed and failures."""

    address: str = ""
    """The cluster: host:port of its head, http://host:8265 of its dashboard, or ray://host:10001 from outside; empty:
    RAY_ADDRESS, or this machine's."""
    every: float = 2.0
    """Seconds between two updates."""
    runs: str = ""
    """A folder of runs or s3://bucket/prefix: show who trains there, on whatever cluster, and exit."""
    once: bool = False
    """Print the table once and exit; the default where the output is not a terminal."""

    def run(self) -> None:
        """Show the table until Ctrl-C; raises ClusterError when no cluster answers."""
        if not self.every > 0:
            raise ClusterError(f"every is {self.every}", "--every", "give seconds above 0")
        if self.runs:
            print_table(drivers_table(drivers(self.runs)))
            return
        join(self.address or os.environ.get("RAY_ADDRESS", "") or "auto")
        if self.once or not sys.stdout.isatty():
            print_table(table_of(running(), time.time()))
            return
        with Live(table_of(running(), time.time()), auto_refresh=False) as live:
            while True:
                time.sleep(self.every)
                live.update(table_of(running(), time.time()), refresh=True)


def print_table(table: Table) -> None:
    """Print a table; in a terminal, folded to its width."""
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def drivers_table(held: list[tuple[str, str, float]]) -> Table:
    """A table of what `cluster.lease.drivers` returns."""
    table = Table("run", "driver", "lease renewed", box=None, header_style="dim")
    for run, driver, age in held:
        left = " (dead or cut off: --resume takes the run over)" if age > STALE_S else ""
        table.add_row(run, driver, f"{span(age)} ago{left}")
    return table


def table_of(states: list[dict[str, Any]], now: float) -> Table:
    """A table of runs' states, as `cluster.progress.running` returns them; ``now``: seconds since 1970."""
    table = Table(box=None, header_style="dim", title=f"{len(states)} runs", title_justify="left", title_style="bold")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for state in states:
        table.add_row(*row_of(state, now))
    return table


def row_of(state: dict[str, Any], now: float) -> list[str]:
    """One run's cells; those of figures that it has not reported yet are empty."""
    record, reported = state.get("record", {}), state["reported"]

    def cell(key: str, form: str) -> str:
        value = record.get(key)
        return format(value, form) if value is not None else ""

    step = f"{record['step']:,}/{record['steps']:,}" if record else "starting"
    left = span(record["eta_s"] - (now - reported)) if reported and "eta_s" in record else ""
    vector = (
        f"v{record['version']}" + (f", {record['age']:,} steps old" if "age" in record else "") if record.get("version") else ""
    )
    when, error = state["errors"][-1] if state["errors"] else (None, "")
    failed = f"{span(now - when)} ago: {error}" if when else ""
    return [
        state["run"], step, cell("stage", ""), left, cell("loss", ".4f"), cell("samples_per_s", ",.0f"), cell("wait", ".0%"),
        cell("mAP", ".1%"), vector, f"{span(now - (reported or state['begun']))} ago", str(state["failures"] or ""), failed,
    ]  # fmt: skip


def span(seconds: float) -> str:
    """Seconds in the two largest units: 12 s, 3:05 min, 2:10 h, 3 d 4 h."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


if __name__ == "__main__":
    run_main(lambda: parse(Watch, "python -m cluster.status").run())
