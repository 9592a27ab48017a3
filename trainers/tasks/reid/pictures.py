"""The pictures of re-ID's report and predictions, as PNG: difficulty over time, confusable pairs, ranked galleries."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator

from trainers.reports.curves import EDGE, ROUND, WIDTH, Floats
from trainers.reports.drawing import Box, Image, Sheet, Theme, blank_figure, common_aspect, drawing, elide, message, png_bytes

Pair = tuple[str, str, float, Sequence[Image], Sequence[Image]]  # name a, name b, cosine, images of a, images of b
Ranked = tuple[Image, float, bool | None]  # gallery image, cosine, whether it is right (None: not known)
Gallery = tuple[Image, str, Sequence[Ranked]]  # query, its name, the gallery, the most similar first
SHOWN = 4  # images of either identity of a pair
RANKS = 10  # gallery images on a line
_SPREAD: Mapping[str, Callable[[Floats], float]] = {"min": np.min, "median": np.median, "max": np.max}


def difficulty_over_time(
    versions: Sequence[tuple[int, npt.ArrayLike]], identities: int | None = None, dark: bool = False
) -> bytes:
    """Draw the distribution of the difficulty c [N] of each version (step, c), from its step to the next version's.

    The shade is the fraction of identities with that difficulty; lines are minimum, median and maximum. Evenly spaced quantiles
    may be passed instead of c, then with the number of ``identities``. Of two versions of one step the later is drawn. Values
    that are not finite are left out.
    """
    kept = {step: np.asarray(c, dtype=np.float64).ravel() for step, c in versions}
    kept = {step: c[np.isfinite(c)] for step, c in sorted(kept.items())}
    kept = {step: c for step, c in kept.items() if len(c)}
    with drawing(dark) as theme:
        if not kept:
            return message("no difficulty vector yet", theme)
        steps = list(kept)
        edges = np.array([*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)], dtype=np.float64)
        low, high = min(c.min() for c in kept.values()), max(c.max() for c in kept.values())
        margin = 0.04 * (high - low) or 0.05
        count = int(np.clip(3 * np.cbrt(max(len(c) for c in kept.values())), 12, 60))  # Rice's rule is 2; finer, as c is uneven
        bins = np.linspace(low - margin, high + margin, count + 1)
        fractions = np.stack([np.histogram(c, bins)[0] / len(c) for c in kept.values()], axis=1)
        figure = blank_figure(WIDTH, 340, theme)
        panel = figure.add_axes((0.065, 0.145, 0.815, 0.76))
        shades = LinearSegmentedColormap.from_list("shade", [theme.paper, theme.accent, theme.ink])
        panel.pcolormesh(edges, bins, fractions, cmap=shades, vmin=0)
        panel.grid(False)
        panel.set(xlabel="step", ylabel="cosine to the nearest identity", xlim=edges[[0, -1]], ylim=bins[[0, -1]])
        panel.set_title(f"difficulty of {identities or len(kept[steps[-1]]):,} identities")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND) if len(steps) > 1 else FixedLocator(steps))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        _spread_lines(panel, edges, list(kept.values()), theme)
        _shade_key(figure, shades, float(fractions.max()), theme)
        return png_bytes(figure)


def _spread_lines(panel: Axes, edges: Floats, vectors: Sequence[Floats], theme: Theme) -> None:
    low, high = panel.get_ylim()
    rim = [withStroke(linewidth=3.2, foreground=theme.paper)]
    spread = {name: np.array([of(c) for c in vectors]) for name, of in _SPREAD.items()}
    places = _apart([(float(values[-1]) - low) / (high - low) for values in spread.values()], 0.065)
    for (name, values), place in zip(spread.items(), places, strict=True):
        colour = theme.mark if name == "median" else theme.muted
        above = 4 if name == "median" else 3
        panel.stairs(values, edges, baseline=None, color=colour, linewidth=1.6, path_effects=rim, zorder=above)
        panel.text(1.01, place, f"{name} {values[-1]:.3f}", color=colour, va="center", transform=panel.transAxes)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending ``heights`` at least ``gap`` apart within 0..1, so that the labels of close lines do not overlap."""
    up = list(itertools.accumulate(heights, lambda below, height: max(height, below + gap)))
    return list(itertools.accumulate([1.0, *reversed(up)], lambda above, height: min(height, above - gap)))[:0:-1]


def _shade_key(figure: Figure, shades: LinearSegmentedColormap, most: float, theme: Theme) -> None:
    key = figure.add_axes((0.7, 0.935, 0.1, 0.03))
    key.imshow(np.linspace(0, 1, 256)[None], cmap=shades, aspect="auto", extent=(0, most, 0, 1))
    key.set_axis_off()
    figure.text(0.69, 0.95, "fraction of the identities  0", ha="right", va="center_baseline", color=theme.muted)
    figure.text(0.81, 0.95, f"{most:.1%}", va="center_baseline", color=theme.muted)


def confusable_pairs(pairs: Sequence[Pair], dark: bool = False) -> bytes:
    """A sheet of pairs of identities: up to four images of each, and their cosine in the middle."""
    with drawing(dark) as theme:
        if not pairs:
            return message("no pair of identities to show", theme)
        aspect = common_aspect([image for pair in pairs for side in pair[3:5] for image in side])
        columns = min(2 if aspect < 0.75 else 1, len(pairs))
        middle, gap, between = 76.0, 6.0, 32.0
        block = (WIDTH - 2 * EDGE - between * (columns - 1)) / columns
        cell = math.floor((block - middle) / (2 * SHOWN) - gap)
        tall = round(cell / aspect)
        height = tall + 44
        sheet = Sheet(WIDTH, EDGE + height * math.ceil(len(pairs) / columns), theme)
        for place, pair in enumerate(pairs):
            left, top = EDGE + (place % columns) * (block + between), EDGE + (place // columns) * height
            _pair(sheet, pair, (left, top, cell, tall), gap, middle)
        return sheet.png()


def _pair(sheet: Sheet, pair: Pair, cell: Box, gap: float, middle: float) -> None:
    """Draw one pair; ``cell`` is the box of its first image and of the line with the names above it."""
    left, top, width, tall = cell
    side = SHOWN * (width + gap)
    for name, images, start in ((pair[0], pair[3], left), (pair[1], pair[4], left + side + middle)):
        sheet.text(start, top + 10, elide(name, side - gap, 12), 12)
        for place, image in enumerate(images[:SHOWN]):
            box = (start + place * (width + gap), top + 20, width, tall)
            sheet.image(image, box)
            sheet.frame(box, sheet.theme.line, 0.5)
        if not images:
            sheet.text(start, top + 20 + tall / 2, "no image", 12, sheet.theme.muted)
    centre = left + side + (middle - gap) / 2
    sheet.text(centre, top + 20 + tall / 2, _cosine(pair[2]), 17, sheet.theme.accent, ha="center", weight="bold")
    sheet.text(centre, top + 36 + tall / 2, "cosine", 11, sheet.theme.muted, ha="center")


def _cosine(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def ranked_galleries(rows: Sequence[Gallery], dark: bool = False) -> bytes:
    """Each query with its gallery, the most similar first: right ones framed green with ✓, wrong ones red with ✗.

    The frame is neutral where it is not known whether an image is right. More than ten images wrap to a further line.
    """
    with drawing(dark) as theme:
        if not rows:
            return message("no query to show", theme)
        ranks = min(RANKS, max(1, *(len(ranked) for _, _, ranked in rows)))
        aspect = common_aspect([image for query, _, ranked in rows for image in (query, *(one[0] for one in ranked))])
        gap, break_ = 12.0, 30.0
        cell = min(150, math.floor((WIDTH - 2 * EDGE - break_ + gap) / (RANKS + 1) - gap) * (RANKS + 1) // (ranks + 1))
        tall = round(cell / aspect)
        lines = [max(1, math.ceil(len(ranked) / RANKS)) for _, _, ranked in rows]
        width = max(480, 2 * EDGE + break_ + (ranks + 1) * (cell + gap) - gap)
        sheet = Sheet(width, EDGE + sum(lines) * (tall + 28) + len(rows) * 34, theme)
        top = float(EDGE)
        for row, count in zip(rows, lines, strict=True):
            _ranking(sheet, row, (EDGE, top, cell, tall), gap, break_)
            top += 34 + count * (tall + 28)
        return sheet.png()


def _ranking(sheet: Sheet, row: Gallery, cell: Box, gap: float, break_: float) -> None:
    """Draw one query and its gallery; ``cell`` is the box of the query and of the line with its name above it."""
    query, name, ranked = row
    left, top, width, tall = cell
    theme = sheet.theme
    marks = {True: ("✓ ", theme.right, 3.0), False: ("✗ ", theme.wrong, 3.0), None: ("", theme.muted, 1.0)}
    edge = sheet.pixels.shape[1] / 2 - EDGE  # of the text; SCALE is 2
    known = [right for _, _, right in ranked if right is not None]
    sheet.text(left - 3, top + 10, elide(name, edge - left - 130, 12), 12, weight="bold")
    if known:
        sheet.text(edge + 3, top + 10, f"{sum(known)} of {len(known)} right", 11, theme.muted, ha="right")
    box = (left, top + 22, width, tall)
    sheet.image(query, box)
    sheet.frame(box, theme.accent, 3)
    sheet.text(left + width / 2, top + 40 + tall, "query", 11, theme.accent, ha="center")
    if not ranked:
        sheet.text(left + break_ + width + gap, top + 22 + tall / 2, "the gallery is empty", 12, theme.muted)
    for rank, (image, cosine, right) in enumerate(ranked):
        sign, colour, thickness = marks[right]
        x = left + break_ + (rank % RANKS + 1) * (width + gap)
        y = top + 22 + (rank // RANKS) * (tall + 28)
        sheet.image(image, (x, y, width, tall))
        sheet.frame((x, y, width, tall), colour, thickness)
        sheet.text(x + width / 2, y + tall + 18, sign + _cosine(cosine), 11, colour, ha="center")


def two_images(a: Image, b: Image, cosine: float, threshold: float, same: bool, dark: bool = False) -> bytes:
    """Two images side by side, the verdict, and cosine and threshold on a scale from -1 to 1."""
    with drawing(dark) as theme:
        aspect = common_aspect([a, b])
        cell = min(256.0, round(320 * aspect))
        tall = round(cell / aspect)
        sheet = Sheet(600, tall + 150, theme)
        colour = theme.accent if same else theme.mark  # a verdict, neither right nor wrong
        for image, left in ((a, 288 - cell), (b, 312.0)):
            sheet.image(image, (left, 24, cell, tall))
            sheet.frame((left, 24, cell, tall), colour, 3)
        verdict = "= same identity" if same else "≠ different identities"
        sheet.text(300, tall + 62, verdict, 18, colour, ha="center", weight="bold")
        text = f"cosine {cosine:.4f} {'≥' if same else '<'} threshold {threshold:.4f}"
        sheet.text(300, tall + 84, text, 12, theme.muted, ha="center")
        _scale(sheet, tall + 104, cosine, threshold, colour)
        return sheet.png()


def _scale(sheet: Sheet, top: float, cosine: float, threshold: float, colour: str) -> None:
    def place(value: float) -> float:
        return 300 + 240 * min(1.0, max(-1.0, value))

    sheet.fill((60, top + 4, 480, 4), sheet.theme.line)
    if math.isfinite(threshold):
        sheet.fill((place(threshold) - 1, top - 2, 2, 16), sheet.theme.ink)
    if math.isfinite(cosine):
        sheet.fill((place(cosine) - 4, top, 8, 12), colour)
    for value in (-1, 0, 1):
        sheet.text(place(value), top + 28, f"{value}".replace("-", "−"), 11, sheet.theme.muted, ha="center")
