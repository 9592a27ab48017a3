"""What all pictures share: colours for light and dark, type, PNG bytes, and sheets of images laid out pixel by pixel.

Lengths are CSS pixels (96 an inch); a PNG has SCALE pixels for each, so that it is sharp on a dense screen.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

Image = npt.NDArray[np.uint8]  # [H, W, 3] RGB, H and W at least 1
Box = tuple[float, float, float, float]  # left, top, width, height
SCALE = 2
FONT = "DejaVu Sans"  # ships with matplotlib
POINTS = 0.75  # points in a CSS pixel


@dataclass(frozen=True)
class Theme:
    """Colours that the colour-blind can distinguish: Okabe and Ito's, darkened or lightened until text in them is legible."""

    paper: str
    ink: str
    muted: str
    line: str
    blank: str
    accent: str
    mark: str
    right: str
    wrong: str


LIGHT = Theme("#ffffff", "#1b1f24", "#5f6771", "#d9dde2", "#f1f3f5", "#0072b2", "#b86e00", "#00805e", "#c8321a")
DARK = Theme("#161a20", "#e6e8eb", "#98a0aa", "#323943", "#222831", "#56b4e9", "#f0a830", "#2bc196", "#ff7452")


@contextmanager
def drawing(dark: bool) -> Iterator[Theme]:
    """Within, Matplotlib draws in the one style of all pictures, whatever the machine's matplotlibrc says."""
    theme = DARK if dark else LIGHT
    style: dict[str, Any] = {
        "font.family": FONT, "font.size": 11 * POINTS, "text.color": theme.ink, "text.parse_math": False,
        "axes.facecolor": theme.paper, "axes.edgecolor": theme.line, "axes.linewidth": 0.8, "axes.unicode_minus": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "axes.titlesize": 12 * POINTS, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
        "axes.labelcolor": theme.muted, "axes.labelsize": 11 * POINTS, "grid.color": theme.line, "grid.linewidth": 0.5,
        "xtick.color": theme.line, "ytick.color": theme.line, "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted, "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
    }  # fmt: skip
    with matplotlib.style.context(["default", style]):
        yield theme


def blank_figure(width: float, height: float, theme: Theme) -> Figure:
    return Figure(figsize=(width / 96, height / 96), dpi=96 * SCALE, facecolor=theme.paper)


def png_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=96 * SCALE, facecolor=figure.get_facecolor())
    return buffer.getvalue()


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def drawable(text: str) -> str:
    """``text`` on one line, with a box for every character that the font lacks (matplotlib would warn of each)."""
    return "".join(letter if ord(letter) in _glyphs() else "□" for letter in " ".join(text.split()))


def elide(text: str, width: float, size: float) -> str:
    """``text`` as drawable, shortened in its middle to at most ``width`` at ``size``, as names often differ at their ends."""
    text = drawable(text)
    font = get_font(findfont(FontProperties(family=FONT)))
    font.set_size(size, 72)
    keep = min(len(text), int(4 * width / size) + 1)  # only a few of the narrowest letters are under a quarter of the size
    shown = text
    while keep >= 0:
        shown = text if keep == len(text) else f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        font.set_text(shown)
        if font.get_width_height()[0] / 64 <= width:
            break
        keep -= 1
    return shown


def common_aspect(images: Sequence[Image]) -> float:
    """Width over height of the cells of a sheet: the median of the images, so that one odd image does not decide it."""
    return float(np.clip(np.median([image.shape[1] / image.shape[0] for image in images]), 0.4, 2.0)) if images else 1.0


class Sheet:
    """A page of images, frames and labels; everything but the labels is painted on whole pixels."""

    def __init__(self, width: float, height: float, theme: Theme) -> None:
        self.theme = theme
        self.pixels: Image = np.zeros((round(height * SCALE), round(width * SCALE), 3), np.uint8)
        self.fill((0, 0, width, height), theme.paper)
        self.figure = blank_figure(self.pixels.shape[1] / SCALE, self.pixels.shape[0] / SCALE, theme)

    def fill(self, box: Box, colour: str) -> None:
        self._cut(box)[:] = np.round(np.multiply(to_rgb(colour), 255))

    def frame(self, box: Box, colour: str, thickness: float) -> None:
        """Paint a frame around ``box``, outside it."""
        left, top, width, height = box
        across = width + 2 * thickness
        self.fill((left - thickness, top - thickness, across, thickness), colour)
        self.fill((left - thickness, top + height, across, thickness), colour)
        self.fill((left - thickness, top, thickness, height), colour)
        self.fill((left + width, top, thickness, height), colour)

    def image(self, image: Image, box: Box) -> None:
        """Paint ``image`` as large as fits into ``box`` with its proportions kept; the rest is filled with a plain colour."""
        self.fill(box, self.theme.blank)
        cell = self._cut(box)
        ratio = min(cell.shape[0] / image.shape[0], cell.shape[1] / image.shape[1])
        height, width = (
            min(side, max(1, round(length * ratio))) for side, length in zip(cell.shape, image.shape[:2], strict=False)
        )
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
        top, left = (cell.shape[0] - height) // 2, (cell.shape[1] - width) // 2
        cell[top : top + height, left : left + width] = scaled

    def text(self, x: float, y: float, text: str, size: float = 12, colour: str = "", **more: Any) -> None:
        """Write ``text``; the left end of its baseline (or as ``ha`` says) is at (x, y)."""
        height, width = self.pixels.shape[:2]
        place = x * SCALE / width, 1 - y * SCALE / height
        self.figure.text(*place, drawable(text), fontsize=size * POINTS, color=colour or self.theme.ink, **more)

    def png(self) -> bytes:
        """The labels laid over the pixels; Matplotlib would take seconds to draw these."""
        self.figure.patch.set_alpha(0)
        canvas: Any = FigureCanvasAgg(self.figure)
        canvas.draw()
        labels = np.asarray(canvas.buffer_rgba())
        rows, columns = np.nonzero(labels[:, :, 3])
        colour, cover = labels[rows, columns, :3], labels[rows, columns, 3:] / 255
        pixels = self.pixels.copy()
        pixels[rows, columns] = np.round(cover * colour + (1 - cover) * pixels[rows, columns])
        written, data = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])
        assert written
        return data.tobytes()

    def _cut(self, box: Box) -> Image:
        left, top, right, bottom = (round(edge * SCALE) for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        return self.pixels[top:bottom, left:right]


def message(text: str, theme: Theme) -> bytes:
    """The picture shown where there is nothing to show yet."""
    sheet = Sheet(960, 96, theme)
    sheet.text(480, 53, text, 13, theme.muted, ha="center")
    return sheet.png()
