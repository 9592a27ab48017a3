"""Curves of a comparison, as PNG bytes: for each arm the mean of its runs over the steps, and the range of their values."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from trainers.reports.drawing import Theme, blank_figure, drawing, message, png_bytes

WIDTH, HEIGHT, LEGEND = 960, 260, 40
# Okabe and Ito's colours, which the colour-blind can distinguish, in an order in which neighbours differ most.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # for more arms than colours
Evaluations = Sequence[Mapping[str, float]]  # of a run, in order: "step" and figures


def arm_curves(arms: Mapping[str, Sequence[Evaluations]], names: Mapping[str, str], dark: bool = False) -> bytes:
    """A panel for each figure of ``names``, with its title. ``arms``: the evaluations of each arm's runs; some have none.

    A curve has the steps that all runs of its arm were evaluated at.
    """
    arms = {arm: runs for arm, runs in arms.items() if any(runs)}
    with drawing(dark) as theme:
        shown = [name for name in names if any(name in one for runs in arms.values() for run in runs for one in run)]
        if not shown:
            return message("no evaluations to draw", theme)
        columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
        rows = math.ceil(len(shown) / columns)
        figure = blank_figure(WIDTH, LEGEND + HEIGHT * rows, theme)
        figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.08)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, name in zip(panels, shown, strict=False):
            for number, (arm, runs) in enumerate(arms.items()):
                _curve(panel, runs, name, arm, number)
            _finish(panel, names[name], theme)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        lines, labels = panels[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper left", ncols=min(len(labels), 5), frameon=False, labelcolor=theme.ink)
        return png_bytes(figure)


def _curve(panel: Axes, runs: Sequence[Evaluations], name: str, arm: str, number: int) -> None:
    tables = [{one["step"]: one[name] for one in run if name in one} for run in runs]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    values = np.array([[table[step] for step in steps] for table in tables])  # [runs, steps]
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    panel.plot(steps, values.mean(axis=0), color=colour, linestyle=dash, label=arm)
    if len(runs) > 1:
        panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _finish(panel: Axes, title: str, theme: Theme) -> None:
    panel.set_title(title)
    panel.set_xlabel("step")
    panel.tick_params(colors=theme.muted)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
