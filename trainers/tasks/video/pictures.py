"""Pictures of predictions on clips: the confusion matrix, timelines of actions, and film strips."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, to_rgba

from trainers.reports.drawing import Image, Sheet, blank_figure, drawing, elide, message, png_bytes

Floats = npt.NDArray[np.floating[Any]]
WIDTH, EDGE, LINE = 960, 20, 34
NAMED = 60  # most classes whose names fit beside a confusion matrix
FILM = 10  # frames of a film strip
SHOWN = 9  # actions whose probability a timeline draws


def confusion_picture(matrix: npt.NDArray[np.int64], classes: Sequence[str], dark: bool = False) -> bytes:
    """PNG of a confusion matrix [C, C] (rows true, columns predicted); shades are fractions of the row."""
    with drawing(dark) as theme:
        if not matrix.sum():
            return message("no clip was evaluated", theme)
        fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        figure = blank_figure(WIDTH, 760, theme)
        figure.set_layout_engine("constrained")
        panel = figure.subplots()
        panel.grid(False)
        panel.imshow(fractions, cmap=LinearSegmentedColormap.from_list("fractions", [theme.blank, theme.accent]), vmin=0, vmax=1)
        panel.set(xlabel="predicted", ylabel="true")
        if len(classes) <= NAMED:
            names = [elide(name, 110, 9) for name in classes]
            panel.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            panel.set_yticks(range(len(names)), names, fontsize=7)
        return png_bytes(figure)


def timeline(
    log_probs: Floats, times: npt.NDArray[np.float64], found: Sequence[tuple[str, float]], classes: Sequence[str],
    film: Sequence[Image] = (), true: Sequence[str] = (), dark: bool = False,
) -> bytes:  # fmt: skip
    """PNG of the actions' probabilities over time: log-probabilities [T, C + 1] (0: none) at ``times`` [T] in seconds.

    ``found``: the predicted actions and their times; ``film``: frames evenly spread over the video; ``true``: the true actions in
    order, where they are known.
    """
    with drawing(dark) as theme:
        if not len(times):
            return message("the stream had no frames", theme)
        figure = blank_figure(WIDTH, 360 if film else 260, theme)
        figure.set_layout_engine("constrained")
        panels = figure.subplots(2 if film else 1, squeeze=False, height_ratios=[1, 2.4] if film else [1])[:, 0]
        if film:
            panels[0].imshow(np.concatenate(list(film), axis=1), aspect="auto")
            panels[0].set_axis_off()
        panel = panels[-1]
        p = np.exp(log_probs)
        greatest = np.argsort(-p[:, 1:].max(axis=0))[:SHOWN]
        colours = [theme.accent, theme.mark, theme.right, theme.wrong, theme.ink, theme.muted]
        for place, action in enumerate(sorted(greatest.tolist())):
            style = "-" if place < len(colours) else "--"
            name = elide(classes[action], 120, 11)
            panel.plot(times, p[:, action + 1], style, color=colours[place % len(colours)], linewidth=1.2, label=name)
        panel.plot(times, p[:, 0], color=to_rgba(theme.muted, 0.5), linewidth=0.8, label="none")
        for name, time in found:
            panel.axvline(time, color=theme.line, linewidth=1)
            panel.text(time, 1.03, elide(name, 70, 11), color=theme.ink, ha="center", fontsize=8)
        panel.set(xlabel="seconds", ylabel="probability", ylim=(0, 1.15), xlim=(times[0], max(times[-1], times[0] + 1e-3)))
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
        if true:
            names = " ".join(name for name, _ in found) or "nothing"
            panel.set_title(elide(f"true: {' '.join(true)}    predicted: {names}", WIDTH - 160, 12))
        return png_bytes(figure)


def films_picture(films: Sequence[tuple[Sequence[Image], str]], dark: bool = False) -> bytes:
    """PNG with a strip for each video: some of its frames, and a text below them."""
    with drawing(dark) as theme:
        if not films:
            return message("no video to show", theme)
        cell = (WIDTH - 2 * EDGE) / FILM
        heights = [cell * images[0].shape[0] / images[0].shape[1] for images, _ in films]
        sheet = Sheet(WIDTH, EDGE + sum(height + LINE for height in heights), theme)
        top = float(EDGE)
        for (images, text), height in zip(films, heights, strict=True):
            for place, image in enumerate(images):
                sheet.image(image, (EDGE + place * cell, top, cell - 2, height))
            sheet.text(EDGE, top + height + 18, elide(text, WIDTH - 2 * EDGE, 12), 12)
            top += height + LINE
        return sheet.png()


class Film:
    """Keeps some of a stream's images, evenly spread, however long the stream is."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self._every, self._count = 1, 0

    def add(self, image: Image) -> None:
        """Add the next image of the stream."""
        if self._count % self._every == 0:
            self.images.append(image)
        self._count += 1
        if len(self.images) > 2 * FILM:
            self.images, self._every = self.images[::2], 2 * self._every


def film_of(images: Sequence[Image]) -> list[Image]:
    """At most FILM of the images, evenly spread."""
    return [images[place] for place in np.unique(np.linspace(0, len(images) - 1, FILM).astype(int))] if images else []
