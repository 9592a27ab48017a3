"""How each setting of a sweep relates to the result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from trainers.engine.canvas import blank_figure, drawing, elide, message, png_bytes

WIDTH, COLUMNS = 960, 4


def relations(trials: Sequence[tuple[Mapping[str, Any], float, bool]], dark: bool = False) -> bytes:
    """A panel a setting, a dot a trial: (settings, score, whether it ran to its end). Trials without a score are left out."""
    scored = [trial for trial in trials if math.isfinite(trial[1])]
    with drawing(dark) as theme:
        if not scored:
            return message("no trial with a result yet", theme)
        names = sorted({name for settings, _, _ in scored for name in settings})
        rows = math.ceil(len(names) / COLUMNS)
        figure = blank_figure(WIDTH, 40 + 190 * rows, theme)
        figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.06)
        panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).ravel()
        for panel, name in zip(panels, names, strict=False):
            for ended, colour, marker in ((True, theme.accent, "o"), (False, theme.muted, "x")):
                some = [(settings[name], score) for settings, score, whole in scored if whole == ended and name in settings]
                if some:
                    panel.plot(*zip(*some, strict=True), marker, color=colour, markersize=4)
            panel.set_title(elide(name, 200, 12))
            panel.xaxis.set_major_locator(MaxNLocator(4))
        for panel in panels[len(names) :]:
            panel.set_axis_off()
        panels[0].set_ylabel("score (× stopped early)")
        return png_bytes(figure)
