"""What the reports of all jobs share: a run's figures before and after, its evaluations, its curves, its settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainers.engine.config import flat
from trainers.engine.run import CONFIG, HISTORY, METRICS, REPORT, Run
from trainers.reports.curves import curves
from trainers.reports.page import Page


class RunReport(Page):
    """The report of a run that has ended: a job adds its sections in the order in which they are to be read."""

    def __init__(self, run: Run, about: Callable[["RunReport"], str]) -> None:
        """``about``: the line under the title, made of what the run left."""
        self.run = run
        self.config: dict[str, Any] = json.loads(run.read_text(CONFIG))
        self.metrics, self.history = run.read_json(METRICS), run.read_json(HISTORY)
        self.notes: dict[str, Any] = self.history["notes"]
        super().__init__(run.name, f"{about(self)}, {self.metrics['step']:,} steps")

    def before_and_after(self, title: str, names: Mapping[str, str], text: Callable[[str, float], str]) -> None:
        """The main figures at the end, in large type, and before training. ``names``: the figures with their words;
        ``text``: formats a figure, given its name and value."""
        if evaluations := self.history["evaluations"]:
            first, last = evaluations[0], evaluations[-1]
            both = [(n, words) for n, words in names.items() if n in first and n in last]
            self.numbers(title, [(words, text(n, last[n]), f"before: {text(n, first[n])}") for n, words in both])

    def evaluations(self, names: Mapping[str, str], text: Callable[[str, float], str]) -> None:
        """A table of these figures, with a row for each evaluation."""
        if evaluations := self.history["evaluations"]:
            rows = [[e["step"], *(text(name, e[name]) if name in e else "" for name in names)] for e in evaluations]
            self.table("Evaluations", ["step", *names.values()], rows)

    def training(self, first: Sequence[str], last: Sequence[str], hard_from: int | None = None) -> None:
        """Curves of the records: the figures ``first``, the parts of the loss if there are any, the figures ``last``."""
        records = self.history["records"]
        losses = sorted({name for record in records for name in record if name.startswith("loss_")})
        names = (*first, *losses, *last)
        self.picture("Training", "Means between records.", lambda dark: curves(records, names, hard_from, dark))

    def picture(self, title: str, caption: str, draw: Callable[[bool], bytes]) -> None:
        """A picture; ``draw(dark)`` makes it for a light and a dark page."""
        self.figure(title, draw(False), caption, draw(True))

    def write(self) -> None:
        """Add the settings, put ``report.html`` into the run's folder, and print where it is."""
        self.table("Settings", ["setting", "value"], [[name, str(value)] for name, value in flat(self.config)])
        self.run.write_text(REPORT, self.html())
        print(f"report: {self.run.url}/{REPORT}")
