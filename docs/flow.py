"""Draws the README's picture of the flow: ``python docs/flow.py`` writes docs/images/flow.svg and flow-dark.svg.

GitHub shows the one that fits the reader's theme. Sizes are pixels of a canvas of 960 x 486.
"""

from pathlib import Path

LIGHT = {"ground": "#ffffff", "card": "#f6f8fa", "line": "#c9d1d9", "ink": "#1f2328", "muted": "#59636e", "even": "#b6c2cf",
         "hard": "#d55e00", "arrow": "#0072b2"}  # fmt: skip
DARK = {"ground": "#0d1117", "card": "#161b22", "line": "#3d444d", "ink": "#e6edf3", "muted": "#9198a1", "even": "#4b5663",
        "hard": "#f0883e", "arrow": "#58a6ff"}  # fmt: skip
ROW1, ROW2 = (24, 190), (306, 124)  # top and height of the two rows of cards
SHARDS, LOADER, WORKERS, RUN, ACTOR = (20, 200), (320, 250), (690, 250), (20, 200), (390, 300)  # left and width


def rectangle(x: float, y: float, width: float, height: float, fill: str, line: str = "none", radius: float = 3) -> str:
    """A rectangle with round corners."""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect {size} fill="{fill}" stroke="{line}"/>'


def text(x: float, y: float, words: str, fill: str, size: float = 14, weight: int = 400, anchor: str = "start") -> str:
    """One line of text; ``y`` is its baseline."""
    style = f'font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" {style}>{words}</text>'


def card(place: tuple[int, int], row: tuple[int, int], title: str, lines: list[str], c: dict[str, str], indent: int = 16) -> str:
    """A box with its title at the top and lines of text at the bottom."""
    (x, width), (y, height) = place, row
    first = y + height - 14 - 19 * (len(lines) - 1)
    body = [text(x + indent, first + 19 * i, line, c["muted"], 13.5) for i, line in enumerate(lines)]
    box = rectangle(x, y, width, height, c["card"], c["line"], 10)
    return "\n".join([box, text(x + 16, y + 28, title, c["ink"], 17, 600), *body])


def arrow(path: str, c: dict[str, str], *, thin: bool = False) -> str:
    """A line with a head; thin and dashed for what is written to the run's folder."""
    style = 'stroke-width="1.5" stroke-dasharray="5 4"' if thin else 'stroke-width="2.5"'
    return f'<path d="{path}" fill="none" stroke="{c["arrow"]}" {style} stroke-linejoin="round" marker-end="url(#head)"/>'


def step(x: float, y: float, number: int, words: list[str], c: dict[str, str]) -> str:
    """A numbered label beside an arrow; ``x`` and ``y``: the middle of its number."""
    circle = f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{c["arrow"]}"/>'
    lines = [text(x + 18, y + 5 + 18 * i, line, c["ink"]) for i, line in enumerate(words)]
    return "".join([circle, text(x, y + 5, str(number), c["ground"], 13, 700, "middle"), *lines])


def shards(c: dict[str, str]) -> str:
    """Three shards, each a row of identities' blocks; the hard identities' are coloured."""
    rows = [(46, 30, 58, 28), (34, 52, 26, 50), (56, 26, 44, 36)]
    hard, found = {(0, 1), (1, 3)}, []
    for row, widths in enumerate(rows):
        x = SHARDS[0] + 16
        for place, width in enumerate(widths):
            found.append(rectangle(x, ROW1[0] + 46 + 26 * row, width - 3, 18, c["hard" if (row, place) in hard else "even"]))
            x += width
    return "".join(found)


def batch(c: dict[str, str]) -> str:
    """A batch of eight samples, one of them drawn by difficulty."""
    x, y = LOADER[0] + 16, ROW1[0] + 50
    samples = [rectangle(x + 27 * i, y, 22, 22, c["hard" if i == 7 else "even"]) for i in range(8)]
    drawn = text(x, y + 46, "7/8 of a batch drawn evenly,", c["ink"])
    return "".join([*samples, drawn, text(x, y + 65, "1/8 by difficulty", c["hard"], weight=600)])


def ranks(c: dict[str, str]) -> str:
    """The workers, each with its slice of the batch."""
    found = []
    for i, name in enumerate(("rank 0", "rank 1", "rank 2", "rank 3")):
        x = WORKERS[0] + 16 + 55 * i
        found.append(rectangle(x, ROW1[0] + 50, 51, 64, c["ground"], c["line"], 6))
        found.append(text(x + 25.5, ROW1[0] + 71, name, c["ink"], 13, anchor="middle"))
        found += [rectangle(x + 6.5 + 20 * k, ROW1[0] + 84, 18, 18, c["hard" if (i, k) == (3, 1) else "even"]) for k in range(2)]
    return "".join(found)


def vector(c: dict[str, str]) -> str:
    """The difficulty of some identities as bars, the hardest first."""
    x, base = ACTOR[0] + 16, ROW2[0] + ROW2[1] - 14
    bars = enumerate((58, 53, 34, 30, 26, 22, 19, 17, 14))
    return "".join(rectangle(x + 10 * i, base - high, 7, high, c["hard" if i < 2 else "even"], radius=1) for i, high in bars)


def flow(c: dict[str, str]) -> str:
    """The whole picture."""
    font = "-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans',Arial,sans-serif"
    marker = 'id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 486" role="img" font-family="{font}">',
        "<title>Shards in S3, loader processes, DDP workers, and the difficulty actor that steers the loader</title>",
        f'<defs><marker {marker} orient="auto"><path d="M0 0L10 5L0 10z" fill="{c["arrow"]}"/></marker></defs>',
        rectangle(0, 0, 960, 486, c["ground"], radius=12),
        card(SHARDS, ROW1, "Shards in S3", ["WebDataset tar files;", "an identity's images", "lie side by side"], c),
        shards(c),
        card(LOADER, ROW1, "Loader processes", ["per worker; all of a node", "share one disk cache"], c),
        batch(c),
        card(WORKERS, ROW1, "DDP workers", ["each trains on its slice of the", "batch; gradients are averaged"], c),
        ranks(c),
        card(ACTOR, ROW2, "Difficulty actor", ["one number per identity:", "how similar its nearest", "neighbour is"], c, 116),
        vector(c),
        card(RUN, ROW2, "Run folder in S3", ["checkpoints, versions,", "report; a killed run", "resumes from here"], c),
        *arrows(c),
        "</svg>\n",
    ])  # fmt: skip


def arrows(c: dict[str, str]) -> list[str]:
    """What moves between the boxes: the loop in four steps, and what is kept in the run's folder."""
    return [
        arrow("M220 96H314", c), step(239, 70, 1, ["images"], c),
        arrow("M570 96H684", c), step(593, 70, 2, ["batches"], c),
        arrow("M730 214V368H696", c), step(753, 246, 3, ["every 50 steps:", "compute difficulty", "of all identities"], c),
        arrow("M480 306V220", c), step(503, 260, 4, ["draw the next batches", "by the new version"], c),
        arrow("M390 350H226", c, thin=True), text(308, 342, "each version", c["muted"], 13.5, anchor="middle"),
        arrow("M924 214V464H120V436", c, thin=True),
        text(540, 456, "a checkpoint every 200 steps", c["muted"], 13.5, anchor="middle"),
    ]  # fmt: skip


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    (images / "flow.svg").write_text(flow(LIGHT))
    (images / "flow-dark.svg").write_text(flow(DARK))
