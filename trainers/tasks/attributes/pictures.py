"""Pictures of faces with the labels that the model predicts."""

import math
from collections.abc import Mapping, Sequence

from datasets.media.decode import Image
from datasets.shards.labels import POINTS
from trainers.reports.drawing import DARK, Sheet, common_aspect, drawing, elide, message

EDGE, GAP, LINE = 20, 16, 17
COLUMNS = 6
CELL = 140.0  # pixels of a face
CLASSES = {  # names of the labels 0 and 1
    "gender": ("male", "female"), "glasses": ("no glasses", "glasses"), "mask": ("no mask", "mask"),
    "smile": ("does not smile", "smiles"),
}  # fmt: skip
Face = tuple[Image, str, Mapping[str, float], Mapping[str, float]]  # image, name, predicted and true values by column


def label_lines(predicted: Mapping[str, float], true: Mapping[str, float]) -> list[tuple[str, bool | None]]:
    """A face's predictions as lines of text, each with whether it is right (None: the truth is not known, or it is no class)."""
    lines: list[tuple[str, bool | None]] = []
    for name in [name for name in ("gender", "age", "glasses", "mask", "smile") if name in predicted]:
        if name == "age":
            lines.append((f"age {predicted[name]:.0f}" + (f", is {true[name]:.0f}" if name in true else ""), None))
            continue
        shown = CLASSES[name][predicted[name] >= 0.5]
        right = shown == CLASSES[name][true[name] >= 0.5] if name in true else None
        sure = f" {max(predicted[name], 1 - predicted[name]):.0%}" if name == "gender" else ""
        lines.append((f"{ {True: '✓ ', False: '✗ ', None: ''}[right] }{shown}{sure}", right))
    lines += [(f"{name} {predicted[name]:.2f}", None) for name in ("quality", "attractiveness") if name in predicted]
    for angles in (("yaw", "pitch"), ("roll",)):  # three on one line would be wider than a face
        if turned := [f"{name} {round(predicted[name])}°" for name in angles if name in predicted]:
            lines.append((", ".join(turned), None))
    return lines


def labelled_faces(faces: Sequence[Face], dark: bool = False) -> bytes:
    """A sheet of images as PNG: each with its keypoints as dots, its name and its labels below."""
    with drawing(dark) as theme:
        if not faces:
            return message("no image to show", theme)
        columns, cell = min(COLUMNS, len(faces)), CELL
        tall = round(cell / common_aspect([image for image, *_ in faces]))
        below = LINE * (1 + max(len(label_lines(predicted, true)) for _, _, predicted, true in faces)) + 14
        height = EDGE + math.ceil(len(faces) / columns) * (tall + below + GAP)
        sheet = Sheet(2 * EDGE + columns * (cell + GAP) - GAP, height, theme)
        for place, (image, name, predicted, true) in enumerate(faces):
            left, top = EDGE + place % columns * (cell + GAP), EDGE + place // columns * (tall + below + GAP)
            sheet.image(image, (left, top, cell, tall))
            ratio = min(cell / image.shape[1], tall / image.shape[0])
            inset = left + (cell - image.shape[1] * ratio) / 2, top + (tall - image.shape[0] * ratio) / 2
            for point in POINTS:
                if f"{point}_x" in predicted:
                    x = inset[0] + predicted[f"{point}_x"] * image.shape[1] * ratio
                    y = inset[1] + predicted[f"{point}_y"] * image.shape[0] * ratio
                    if left <= x < left + cell and top <= y < top + tall:
                        _dot(sheet, x, y)
            sheet.text(left, top + tall + LINE, elide(name, cell, 11), 11, theme.muted)
            for number, (line, right) in enumerate(label_lines(predicted, true), 2):
                colour = {True: theme.right, False: theme.wrong, None: theme.ink}[right]
                sheet.text(left, top + tall + number * LINE, elide(line, cell, 12), 12, colour)
        return sheet.png()


def _dot(sheet: Sheet, x: float, y: float) -> None:
    """A dot that is visible on light and on dark faces."""
    for radius, colour in ((3.0, DARK.paper), (2.0, DARK.mark)):
        sheet.fill((x - radius, y - radius, 2 * radius, 2 * radius), colour)
