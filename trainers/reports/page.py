"""An HTML page in one file, light or dark as the reader's system is, for the screen and for printing.

It loads nothing: style and pictures are inside, and its content policy forbids any request. Only a page with choices has a
script, which makes the csv of what the reader chose; the policy allows this one script, by its hash.
"""

import base64
import hashlib
import html
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from trainers.reports.drawing import SCALE
from trainers.reports.formatting import cell_text, readable, table_cells

_STYLE = """
:root { --ground:#f5f6f7; --card:#fff; --ink:#1b1f24; --muted:#5f6771; --line:#e1e4e8; --accent:#0072b2 }
@media screen and (prefers-color-scheme:dark) {
  :root { --ground:#0e1115; --card:#161a20; --ink:#e6e8eb; --muted:#98a0aa; --line:#2a3038; --accent:#56b4e9 } }
* { box-sizing:border-box }
body { margin:0; background:var(--ground); color:var(--ink); -webkit-text-size-adjust:100%;
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,sans-serif }
main { max-width:1058px; margin:0 auto; padding:40px 24px 64px }
h1 { font-size:30px; line-height:1.2; letter-spacing:-.015em; margin:0; text-wrap:balance; overflow-wrap:anywhere }
header p { color:var(--muted); margin:6px 0 0; overflow-wrap:anywhere }
nav { margin:18px 0 0; font-size:13px }
nav a { color:var(--accent); text-decoration:none; display:inline-block; margin-right:18px }
nav a:hover { text-decoration:underline }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; margin:20px 0 0; padding:20px 24px 22px }
h2 { font-size:17px; line-height:1.3; margin:0 0 12px; overflow-wrap:anywhere }
section p { margin:0 0 10px; max-width:72ch; overflow-wrap:anywhere; white-space:pre-line } section p:last-child { margin:0 }
.wide { overflow-x:auto }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:14px; min-width:min(100%,420px) }
th { color:var(--muted); font-weight:500; font-size:13px; text-align:left; vertical-align:bottom }
th,td { padding:6px 28px 6px 0; border-bottom:1px solid var(--line) } th:last-child,td:last-child { padding-right:0 }
td { vertical-align:top; overflow-wrap:anywhere; min-width:3em } tr:last-child td { border-bottom:0 }
.number { text-align:right; white-space:nowrap }
section .note:last-child,figcaption { color:var(--muted); font-size:13px; margin:12px 0 0; max-width:90ch; text-wrap:pretty }
figure { margin:0 } img { display:block; max-width:100%; height:auto; margin:0 auto; border-radius:4px }
dl { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:18px 24px; margin:0 }
dl div { border-left:3px solid var(--accent); padding-left:12px; min-width:0 }
dt { color:var(--muted); font-size:13px } dd { margin:0; overflow-wrap:anywhere }
dd strong { font-size:26px; line-height:1.25; font-weight:600; font-variant-numeric:tabular-nums; letter-spacing:-.01em }
dd small { display:block; color:var(--muted); font-size:13px }
.choice { display:flex; flex-wrap:wrap; gap:8px 22px; padding:12px 0; border-bottom:1px solid var(--line) }
.choice:last-child { border-bottom:0 } .choice label { width:190px; overflow-wrap:anywhere; cursor:pointer }
.choice small { display:block; color:var(--muted); font-size:13px } .choice input { margin:0 6px 0 0; accent-color:var(--accent) }
.choice figure { min-width:0 } .choice figcaption { margin:0 0 4px }
.choice img { display:inline-block; height:72px; margin:0 4px 4px 0 }
button { font:inherit; color:#fff; background:#0072b2; border:0; border-radius:6px; padding:8px 16px; cursor:pointer }
.bar { position:sticky; bottom:0; padding:12px 0; background:var(--ground) } .bar span { margin-left:14px; color:var(--muted) }
@media (max-width:600px) { main { padding:24px 12px 40px } section { padding:16px } }
@page { margin:14mm }
@media print {
  body { background:#fff; font-size:10.5pt } main { max-width:none; padding:0 } nav { display:none }
  section { border:0; border-top:1px solid var(--line); border-radius:0; padding:12px 0 0; margin:18px 0 0 }
  h2 { break-after:avoid } figure,tr,dl { break-inside:avoid } .wide { overflow:visible } img { max-height:235mm; width:auto }
  * { -webkit-print-color-adjust:exact; print-color-adjust:exact } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SCRIPT = """
const boxes = [...document.querySelectorAll("input[data-row]")], button = document.querySelector("button")
const rest = document.querySelector("pre").textContent, count = document.querySelector(".bar span")
const line = box => (box.checked ? "yes," : "no,") + box.dataset.row + "\\n"
const text = () => button.dataset.header + "\\n" + boxes.map(line).join("") + rest
const tell = () => { count.textContent = boxes.filter(box => box.checked).length + " of " + boxes.length + " ticked" }
document.addEventListener("change", tell)
button.addEventListener("click", () => {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([text()], {type: "text/csv"}))
  link.download = button.dataset.file
  link.click()
})
tell()
"""
_DARK = "screen and (prefers-color-scheme:dark)"


class Choice(NamedTuple):
    """Something to tick. ``row``: its line of the csv after the first column; ``pictures``: captions with JPEG images."""

    title: str
    remark: str
    row: str
    ticked: bool
    pictures: Sequence[tuple[str, Sequence[bytes]]]


class Page:
    """Collects sections in the order in which they are read; ``html()`` is the page. All text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []  # title, body
        self._bar = ""  # below the sections: the button that makes the csv, and the script

    def numbers(self, title: str, entries: Sequence[tuple[str, object, str]]) -> None:
        """The main numbers, in large type: (what it is, the number, a remark)."""
        tiles = (
            f"<div><dt>{_text(label)}</dt><dd><strong>{_text(cell_text(value))}</strong><small>{_text(remark)}</small></dd></div>"
            for label, value, remark in entries
        )
        self._add(title, f"<dl>{''.join(tiles)}</dl>")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        """A table; columns of numbers are aligned right. Raises ValueError for a row that does not fit the columns."""
        texts, numeric = table_cells(columns, rows)
        lines = [_row("th", columns, numeric), *(_row("td", row, numeric) for row in texts)]
        body = f"<thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody>"
        if not rows:
            note = f"(none) {note}".strip()
        self._add(
            title, f'<div class="wide"><table>{body}</table></div>' + (f'<p class="note">{_text(note)}</p>' if note else "")
        )

    def figure(self, title: str, png: bytes, caption: str = "", dark: bytes | None = None) -> None:
        """A picture with SCALE pixels to a CSS pixel; ``dark``: the same for a dark page. Raises ValueError: it is not a PNG."""
        width, height = (side // SCALE for side in _png_size(png))
        source = f'<source media="{_DARK}" srcset="{_data(dark)}">' if dark is not None else ""
        image = f'<img src="{_data(png)}" width="{width}" height="{height}" alt="{_text(title)}">'
        words = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
        self._add(title, f"<figure><picture>{source}{image}</picture>{words}</figure>")

    def text(self, title: str, text: str) -> None:
        """Prose; an empty line separates paragraphs, line ends are kept."""
        paragraphs = (part.strip() for part in re.split(r"\n\s*\n", text))
        self._add(title, "".join(f"<p>{_text(part)}</p>" for part in paragraphs if part))

    def choices(self, title: str, choices: Sequence[Choice], note: str = "") -> None:
        """Things to tick, one below the other, with pictures side by side. The page needs `download`, too."""
        rows = "".join(_choice(choice) for choice in choices) or "<p>(none)</p>"
        self._add(title, (f"<p>{_text(note)}</p>" if note else "") + rows)

    def download(self, words: str, file: str, header: str, rest: str) -> None:
        """A button that downloads a csv of all choices: the header; for each choice yes or no and its row; and the ``rest``."""
        button = f'<button type="button" data-file="{_text(file)}" data-header="{_text(header)}">{_text(words)}</button>'
        self._bar = f'<div class="bar">{button}<span></span></div><pre hidden>\n{_text(rest)}</pre><script>{_SCRIPT}</script>'

    def html(self) -> str:
        titled = [(place, title) for place, (title, _) in enumerate(self._sections) if title]
        links = "".join(f'<a href="#s{place}">{_text(title)}</a>' for place, title in titled) if len(titled) > 2 else ""
        sections = "\n".join(
            f'<section id="s{place}">{f"<h2>{_text(title)}</h2>" if title else ""}{body}</section>'
            for place, (title, body) in enumerate(self._sections)
        )
        subtitle = f"<p>{_text(self.subtitle)}</p>" if self.subtitle else ""
        digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
        policy = f"{_POLICY}; script-src 'sha256-{digest}'" if self._bar else _POLICY
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(self.title)}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<header><h1>{_text(self.title)}</h1>{subtitle}{f"<nav>{links}</nav>" if links else ""}</header>
{sections}
{self._bar}
</main></body>
</html>
"""

    def _add(self, title: str, body: str) -> None:
        self._sections.append((title, body))


def _text(text: str) -> str:
    return html.escape(readable(text))


def _row(tag: str, texts: Sequence[str], numeric: Sequence[bool]) -> str:
    opened = {True: f'<{tag} class="number">', False: f"<{tag}>"}
    cells = (f"{opened[number]}{_text(text)}</{tag}>" for text, number in zip(texts, numeric, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _choice(choice: Choice) -> str:
    ticked = " checked" if choice.ticked else ""
    words = f"{_text(choice.title)}<small>{_text(choice.remark)}</small>"
    groups = "".join(
        f"<figure><figcaption>{_text(caption)}</figcaption>{''.join(map(_photo, images))}</figure>"
        for caption, images in choice.pictures
    )
    return (
        f'<div class="choice"><label><input type="checkbox" data-row="{_text(choice.row)}"{ticked}>{words}</label>{groups}</div>'
    )


def _photo(jpeg: bytes) -> str:
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}" alt="">'


def _data(png: bytes) -> str:
    _png_size(png)
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height from the header chunk (PNG, W3C, section 11.2.1: IHDR comes first)."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise ValueError(f"not a PNG: begins with {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
