"""Pictures of faces with what the model tells of them."""

import math
from collections.abc import Mapping, Sequence

from datasets.media.decode import Image
from datasets.shards.labels import POINTS
from trainers.reports.drawing import DARK, Sheet, common_aspect, drawing, elide, message

EDGE, GAP, LINE = 20, 16, 17
COLUMNS = 6
CELL = 140.0  # pixels of a face
CLASSES = {  # what a label of 0 and of 1 says
    "gender": ("male", "female"), "glasses": ("no glasses", "glasses"), "mask": ("no mask", "mask"),
    "smile": ("does not smile", "smiles"),
}  # fmt: skip
Face = tuple[Image, str, Mapping[str, float], Mapping[str, float]]  # image, name, what is told and what is true, by column


def label_lines(told: Mapping[str, float], true: Mapping[str, float]) -> list[tuple[str, bool | None]]:
    """What is told of a face (by column), in words, a line each; and whether it is right (None: not known, or no class)."""
    lines: list[tuple[str, bool | None]] = []
    for name in [name for name in ("gender", "age", "glasses", "mask", "smile") if name in told]:
        if name == "age":
            lines.append((f"age {told[name]:.0f}" + (f", is {true[name]:.0f}" if name in true else ""), None))
            continue
        said = CLASSES[name][told[name] >= 0.5]
        right = said == CLASSES[name][true[name] >= 0.5] if name in true else None
        sure = f" {max(told[name], 1 - told[name]):.0%}" if name == "gender" else ""
        lines.append((f"{ {True: '✓ ', False: '✗ ', None: ''}[right] }{said}{sure}", right))
    lines += [(f"{name} {told[name]:.2f}", None) for name in ("quality", "attractiveness") if name in told]
    for angles in (("yaw", "pitch"), ("roll",)):  # all three on one line are wider than a face
        if turned := [f"{name} {round(told[name])}°" for name in angles if name in told]:
            lines.append((", ".join(turned), None))
    return lines


def labelled_faces(faces: Sequence[Face], dark: bool = False) -> bytes:
    """A sheet of images, each with its name and labels below and its keypoints as dots."""
    with drawing(dark) as theme:
        if not faces:
            return message("no image to show", theme)
        columns, cell = min(COLUMNS, len(faces)), CELL
        tall = round(cell / common_aspect([image for image, *_ in faces]))
        below = LINE * (1 + max(len(label_lines(told, true)) for _, _, told, true in faces)) + 14
        height = EDGE + math.ceil(len(faces) / columns) * (tall + below + GAP)
        sheet = Sheet(2 * EDGE + columns * (cell + GAP) - GAP, height, theme)
        for place, (image, name, told, true) in enumerate(faces):
            left, top = EDGE + place % columns * (cell + GAP), EDGE + place // columns * (tall + below + GAP)
            sheet.image(image, (left, top, cell, tall))
            ratio = min(cell / image.shape[1], tall / image.shape[0])
            inset = left + (cell - image.shape[1] * ratio) / 2, top + (tall - image.shape[0] * ratio) / 2
            for point in POINTS:
                if f"{point}_x" in told:
                    x = inset[0] + told[f"{point}_x"] * image.shape[1] * ratio
                    y = inset[1] + told[f"{point}_y"] * image.shape[0] * ratio
                    if left <= x < left + cell and top <= y < top + tall:
                        _dot(sheet, x, y)
            sheet.text(left, top + tall + LINE, elide(name, cell, 11), 11, theme.muted)
            for number, (line, right) in enumerate(label_lines(told, true), 2):
                colour = {True: theme.right, False: theme.wrong, None: theme.ink}[right]
                sheet.text(left, top + tall + number * LINE, elide(line, cell, 12), 12, colour)
        return sheet.png()


def _dot(sheet: Sheet, x: float, y: float) -> None:
    """A dot that shows on light and on dark faces."""
    for radius, colour in ((3.0, DARK.paper), (2.0, DARK.mark)):
        sheet.fill((x - radius, y - radius, 2 * radius, 2 * radius), colour)
