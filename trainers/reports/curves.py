"""Curves of a run's records, as PNG bytes.

``dark`` asks for the same picture on a dark ground. Names may be of any length and any alphabet; lists may be empty.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from trainers.reports.drawing import Theme, blank_figure, drawing, elide, message, png_bytes

Floats = npt.NDArray[np.float64]

WIDTH = 960
EDGE = 20
_TITLES = {
    "lr": "learning rate",
    "samples_per_s": "samples/s",
    "wait": "waiting for data, share",
    "version": "version of the vector",
}
ROUND = [1, 2, 2.5, 5, 10]  # ticks are multiples of these, times a power of ten


def curves(
    history: Sequence[Mapping[str, float]], names: Sequence[str], hard_from: float | None = None, dark: bool = False
) -> bytes:
    """A panel for each of ``names``, over the key "step". A record may lack any of them; the last record of a step counts.

    ``hard_from`` marks the step from which draws go by difficulty. Values that are not finite leave a gap, are marked
    at the foot of the panel and counted. A jagged curve of many values stands behind its rolling mean.
    """
    with drawing(dark) as theme:
        if not names or not any("step" in record for record in history):
            return message("no step recorded yet", theme)
        columns = min(3, len(names))
        figure = blank_figure(WIDTH, 40 + 210 * math.ceil(len(names) / columns), theme)
        figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.08)
        panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            _curve(panel, history, name, theme)
        for panel in panels[len(names) :]:
            panel.set_axis_off()
        if hard_from is not None:
            for panel in panels[: len(names)]:
                panel.axvline(hard_from, color=theme.mark, linewidth=1.2, linestyle=(0, (4, 3)))
            _say_hard(panels[0], hard_from, theme)
        return png_bytes(figure)


def _curve(panel: Axes, history: Sequence[Mapping[str, float]], name: str, theme: Theme) -> None:
    last = {float(record["step"]): float(record[name]) for record in history if "step" in record and name in record}
    steps = np.array(sorted(last), dtype=np.float64)
    values = np.array([last[step] for step in steps], dtype=np.float64)
    finite = np.isfinite(values)
    values[~finite] = np.nan
    panel.set_title(elide(_TITLES.get(name, name.replace("_", " ")), 190, 13))
    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    foot = panel.get_xaxis_transform()
    if not finite.all():
        panel.plot(steps[~finite], np.full(int((~finite).sum()), 0.02), "|", color=theme.wrong, ms=8, transform=foot)
        ground = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1}
        said = f"not finite: {(~finite).sum():,}"
        panel.text(0.02, 0.06, said, color=theme.wrong, transform=panel.transAxes, bbox=ground)
    if not finite.any():
        panel.set(xticks=[], yticks=[])
        panel.text(0.5, 0.5, "no value yet", color=theme.muted, ha="center", transform=panel.transAxes)
        return
    panel.set_title(f"{values[finite][-1]:.4g}", loc="right", color=theme.accent)
    if len(values) >= 200 and _jagged(values[finite]):
        panel.plot(steps, values, color=theme.accent, linewidth=0.6, alpha=0.35)
        values = _rolling_mean(values, len(values) // 40)
    panel.plot(steps, values, color=theme.accent, marker="o" if len(values) < 30 else "", markersize=3)


def _jagged(values: Floats) -> bool:
    """Whether the curve goes up and down more often than a schedule does: a learning rate's curve must not be smoothed."""
    return bool(np.abs(np.diff(values)).sum() > 4 * np.ptp(values))


def _rolling_mean(values: Floats, window: int) -> Floats:
    """Mean over the ``window`` values around each, of those that are not NaN; NaN stays NaN."""
    kernel, finite = np.ones(window), np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite.astype(np.float64), kernel, "same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def _say_hard(panel: Axes, step: float, theme: Theme) -> None:
    low, high = panel.get_xlim()
    after = step < low + 0.55 * (high - low)
    panel.annotate(
        "draws by difficulty", (step, 1), (5 if after else -5, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="left" if after else "right", va="top", color=theme.mark,
    )  # fmt: skip
