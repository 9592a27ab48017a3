"""Pictures of faces with what the model tells of them."""

import math
from collections.abc import Mapping, Sequence

from datasets.decode import Image
from datasets.labels import POINTS
from trainers.engine.canvas import DARK, Sheet, common_aspect, drawing, elide, message

EDGE, GAP, LINE = 20, 16, 17
COLUMNS = 6
CELL = 140.0  # pixels of a face
YES_NO = {"glasses": ("glasses", "no glasses"), "mask": ("mask", "no mask"), "smile": ("smiles", "does not smile")}


def label_lines(told: Mapping[str, float]) -> list[str]:
    """What is told of a face (by column), in words, a line each."""
    lines = []
    if "gender" in told:
        female = told["gender"]
        lines.append(f"female {female:.0%}" if female >= 0.5 else f"male {1 - female:.0%}")
    if "age" in told:
        lines.append(f"age {told['age']:.0f}")
    for name, (yes, no) in YES_NO.items():
        if name in told:
            lines.append(yes if told[name] >= 0.5 else no)
    lines += [f"{name} {told[name]:.2f}" for name in ("quality", "attractiveness") if name in told]
    for angles in (("yaw", "pitch"), ("roll",)):  # all three on one line are wider than a face
        if turned := [f"{name} {round(told[name])}°" for name in angles if name in told]:
            lines.append(", ".join(turned))
    return lines


def labelled_faces(faces: Sequence[tuple[Image, str, Mapping[str, float]]], dark: bool = False) -> bytes:
    """A sheet of images, each with its name and labels below and its keypoints as dots: (image, name, label by column)."""
    with drawing(dark) as theme:
        if not faces:
            return message("no image to show", theme)
        columns, cell = min(COLUMNS, len(faces)), CELL
        tall = round(cell / common_aspect([image for image, _, _ in faces]))
        below = LINE * (1 + max(len(label_lines(told)) for _, _, told in faces)) + 14
        height = EDGE + math.ceil(len(faces) / columns) * (tall + below + GAP)
        sheet = Sheet(2 * EDGE + columns * (cell + GAP) - GAP, height, theme)
        for place, (image, name, told) in enumerate(faces):
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
            for number, line in enumerate(label_lines(told), 2):
                sheet.text(left, top + tall + number * LINE, elide(line, cell, 12), 12)
        return sheet.png()


def _dot(sheet: Sheet, x: float, y: float) -> None:
    """A dot that shows on light and on dark faces."""
    for radius, colour in ((3.0, DARK.paper), (2.0, DARK.mark)):
        sheet.fill((x - radius, y - radius, 2 * radius, 2 * radius), colour)
