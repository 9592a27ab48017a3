"""Tables, comparisons and reports of runs on clips. A figure is a metric's value, a fraction unless said otherwise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from trainers.engine.report import RunReport
from trainers.engine.run import HISTORY, Run
from trainers.reports.confidence_intervals import interval
from trainers.reports.console import summary_table
from trainers.tasks.video.pictures import confusion_picture

NAMES = {
    "top1": "top 1", "top5": "top 5", "mean_class": "mean of classes", "edit": "edit distance, greedy", "exact": "exact, greedy",
    "beam_edit": "edit distance, beam", "beam_exact": "exact, beam",
    "viterbi_edit": "edit distance, Viterbi", "viterbi_exact": "exact, Viterbi", "frame_f1": "frame F1", "delay": "delay",
}  # fmt: skip
SECONDS = ("delay",)  # the figures that are no fractions
Picture = tuple[str, str, Callable[[bool], bytes]]  # title, caption, and a function that draws it as PNG, given whether dark


def figure_rows(figures: Mapping[str, float]) -> list[list[object]]:
    """Rows of a table: a figure's name and its value, in percent or in seconds."""
    shown = {name: f"{value:.2f} s" if name in SECONDS else f"{value:.1%}" for name, value in figures.items()}
    return [[words, shown[name]] for name, words in NAMES.items() if name in figures]


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """Print the table of a run's figures."""
    summary_table(f"{title}: {int(figures['n']):,} clips", ["figure", "value"], figure_rows(figures))


def print_comparison(title: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print each arm's figures in percent or seconds: means over seeds ± 95% t intervals."""
    names = [name for name in NAMES if any(name in run for runs in figures.values() for run in runs)]
    rows = []
    for arm, runs in figures.items():
        found = {name: _mean(name, [run[name] for run in runs]) for name in names if all(name in run for run in runs)}
        rows.append([arm, *(found.get(name) for name in names)])
    seeds = len(next(iter(figures.values())))
    summary_table(f"{title}: {seeds} seeds, mean ± 95% interval", ["arm", *(NAMES[name] for name in names)], rows)


def _mean(name: str, values: Sequence[float]) -> str:
    factor, unit, places = (1, "s", 2) if name in SECONDS else (100, "%", 1)
    mean, half = interval([value * factor for value in values])
    return f"{mean:.{places}f} ± {half:.{places}f} {unit}"


def write_report(run: Run, pictures: Iterable[Picture]) -> None:
    """Write ``report.html`` into the run's folder: figures, curves, pictures, settings."""
    page = RunReport(run, lambda page: str(page.config["data"]))
    after = page.metrics.get("after", {})
    main = {name: NAMES[name] for name in ("top1", "edit", "exact") if name in after}
    page.before_and_after("Test clips", main, lambda _, value: f"{value:.1%}")
    if after:
        page.table("Figures", ["figure", "value"], figure_rows(after))
    page.evaluations(main, lambda _, value: f"{value:.1%}")
    accuracy = any("accuracy" in record for record in page.history["records"])
    page.training(("loss", *(["accuracy"] if accuracy else [])), ("lr", "samples_per_s", "wait"))
    for title, caption, draw in pictures:
        page.picture(title, caption, draw)
    page.write()


def confused_classes(run: Run, class_names: Sequence[str]) -> list[Picture]:
    """The picture of a run's last confusion matrix; none if it was not evaluated."""
    matrix = run.read_json(HISTORY)["notes"].get("confusion")
    if matrix is None:
        return []
    draw = partial(confusion_picture, np.array(matrix), class_names)
    return [("Which classes are mixed up", "Each row's fractions of test clips.", draw)]
