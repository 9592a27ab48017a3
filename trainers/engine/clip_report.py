"""What runs on clips leave for people: tables, comparisons, reports. A figure is a share unless said otherwise."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.engine.config import flat
from trainers.engine.console import summary_table
from trainers.engine.pictures import curves
from trainers.engine.report import Page
from trainers.engine.run import REPORT, Run
from trainers.metrics.intervals import interval

NAMES = {
    "top1": "top 1", "top5": "top 5", "mean_class": "mean of classes", "edit": "edit distance, greedy", "exact": "exact, greedy",
    "beam_edit": "edit distance, beam", "beam_exact": "exact, beam", "frame_f1": "frame F1",
}  # fmt: skip
Pictures = Sequence[tuple[str, str, bytes, bytes]]  # title, caption, light, dark


def figure_rows(figures: Mapping[str, float]) -> list[list[object]]:
    """A row a figure: its name, its value in percent."""
    return [[words, f"{figures[name]:.1%}"] for name, words in NAMES.items() if name in figures]


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """The table of a run's figures."""
    summary_table(f"{title}: {int(figures['n']):,} clips", ["figure", "value"], figure_rows(figures))


def print_comparison(title: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Each arm's figures over seeds in percent, mean ± 95% interval by Student's t."""
    names = [name for name in NAMES if any(name in run for runs in figures.values() for run in runs)]
    rows = []
    for arm, runs in figures.items():
        told = {name: interval([run[name] * 100 for run in runs]) for name in names if all(name in run for run in runs)}
        rows.append([arm, *(f"{told[name][0]:.1f} ± {told[name][1]:.1f} %" if name in told else None for name in names)])
    seeds = len(next(iter(figures.values())))
    summary_table(f"{title}: {seeds} seeds, mean ± 95% interval", ["arm", *(NAMES[name] for name in names)], rows)


def write_report(run: Run, config: str, metrics: Mapping[str, Any], history: Mapping[str, Any], pictures: Pictures) -> None:
    """Put ``report.html`` into the run's folder: figures, curves, pictures, settings."""
    settings = json.loads(config)
    page = Page(run.name, f"{settings['data']}, {metrics['step']:,} steps")
    if "after" in metrics:
        after, before = metrics["after"], metrics["before"]
        tiles = [
            (NAMES[name], f"{after[name]:.1%}", f"before: {before[name]:.1%}")
            for name in ("top1", "edit", "exact")
            if name in after
        ]
        page.numbers("Test clips", tiles)
        page.table("Figures", ["figure", "value"], figure_rows(after))
    names = [name for name in ("loss", "accuracy", "lr", "samples_per_s", "wait") if any(name in r for r in history["records"])]
    page.figure(
        "Training", curves(history["records"], names), "Means between records.", curves(history["records"], names, dark=True)
    )
    for title, caption, light, dark in pictures:
        page.figure(title, light, caption, dark)
    page.table("Settings", ["setting", "value"], [[name, str(value)] for name, value in flat(settings)])
    run.write_text(REPORT, page.html())
