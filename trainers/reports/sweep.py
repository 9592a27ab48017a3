"""How each setting of a sweep relates to the result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from trainers.reports.drawing import Theme, blank_figure, drawing, elide, message, png_bytes

WIDTH, COLUMNS, FEW = 960, 4, 6
LABEL, BESIDE = 90, 24  # widest label of a value, in pixels; letters of a panel's labels from which they would touch
WIDE = 3  # an axis is logarithmic if the greatest value is this many times the least, or more
Scored = tuple[Mapping[str, Any], float, bool]  # settings, score, whether it ran to its end


def relations(trials: Sequence[Scored], dark: bool = False) -> bytes:
    """A panel for each setting, with a dot for each trial and a ring around the best. Trials without a score are left out."""
    scored = [trial for trial in trials if math.isfinite(trial[1])]
    with drawing(dark) as theme:
        if not scored:
            return message("no trial with a result yet", theme)
        names = sorted({name for settings, _, _ in scored for name in settings})
        rows = math.ceil(len(names) / COLUMNS)
        columns = math.ceil(len(names) / rows)
        figure = blank_figure(WIDTH, 70 + 220 * rows, theme)
        figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.08)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel, name in zip(panels.ravel(), names, strict=False):
            relation(panel, [trial for trial in scored if name in trial[0]], name, theme)
            panel.set_title(elide(name, WIDTH / columns - 60, 12))
        for panel in panels.ravel()[len(names) :]:
            panel.set_axis_off()
        figure.supylabel("score", color=theme.muted, fontsize=9)
        handles = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return png_bytes(figure)


def relation(panel: Axes, scored: Sequence[Scored], name: str, theme: Theme) -> None:
    """One setting's dots: side by side where it has no numbers or few, on a logarithmic axis where they are far apart."""
    values = [settings[name] for settings, _, _ in scored]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    levels = sorted(set(values), key=None if numbers else str)
    apart = not numbers or (len(levels) <= FEW and not isinstance(values[0], float))
    places = [levels.index(value) if apart else value for value in values]
    for ended, colour, marker, label in (
        (True, theme.accent, "o", "ran to its end"), (False, theme.muted, "x", "stopped early"),
    ):  # fmt: skip
        some = [(place, score) for place, (_, score, whole) in zip(places, scored, strict=True) if whole == ended]
        panel.plot([x for x, _ in some], [y for _, y in some], marker, color=colour, markersize=5, label=label)
    best = max(range(len(scored)), key=lambda trial: (scored[trial][2], scored[trial][1]))
    panel.plot(
        places[best],
        scored[best][1],
        "o",
        markerfacecolor="none",
        markeredgecolor=theme.mark,
        markersize=11,
        label="best",
        clip_on=False,
    )
    if apart:
        labels = [elide(_level(level), LABEL, 9) for level in levels]
        panel.set_xticks(range(len(levels)), labels)
        if sum(map(len, labels)) > BESIDE:
            for text in panel.get_xticklabels():
                text.set(rotation=30, ha="right", rotation_mode="anchor")
        panel.set_xlim(-0.5, len(levels) - 0.5)
    elif levels[0] > 0 and levels[-1] >= WIDE * levels[0]:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if levels[-1] < 20 * levels[0] else (1, 3)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4))


def _level(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
