"""Images with boxes in every packed layout: bright discs (round) and bars (long) on a dark background."""

import io
import json
from pathlib import Path

import cv2
import numpy as np

Files = dict[str, bytes]

CLASSES = ("long", "round")
Thing = tuple[str, int, int, int, int]  # class, left, top, right, bottom in pixels


def scene(
    seed: int, height: int = 48, width: int = 64, tint: tuple[int, int, int] = (200, 200, 40)
) -> tuple[np.ndarray, list[Thing]]:
    """An image [H, W, 3] and its objects: up to three, each in one third of the width."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
    things: list[Thing] = []
    for place in range(3):
        if place and rng.random() < 0.3:
            continue
        side = int(rng.integers(12, 16))
        left = place * width // 3 + int(rng.integers(0, width // 3 - side + 1))
        top = int(rng.integers(0, height - side))
        if rng.random() < 0.5:
            cv2.circle(image, (left + side // 2, top + side // 2), side // 2 - 1, tint, -1)
            things.append(("round", left, top, left + side, top + side))
        else:
            image[top : top + side // 2, left : left + side] = tint[::-1]
            things.append(("long", left, top, left + side, top + side // 2))
    return image, things


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def xml(things: list[Thing], name: str = "x.png", extra: str = "") -> bytes:
    """A VOC annotation."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for label, a, b, c, d in things
    )
    return f"<annotation><filename>{name}</filename>{objects}{extra}</annotation>".encode()


def voc_files(count: int, seed: int = 0, annotated: bool = True, **looks: object) -> Files:
    """Pascal VOC's folders, without lists."""
    files: Files = {}
    for number in range(count):
        image, things = scene(1000 * seed + number, **looks)  # type: ignore[arg-type]
        files[f"JPEGImages/{number:03d}.png"] = encoded(image)
        if annotated:
            files[f"Annotations/{number:03d}.xml"] = xml(things)
    return files


def coco_files(count: int) -> Files:
    """COCO's folders: the last image is in val2017, the others are for training."""
    files: Files = {}
    for split, numbers in (("train", range(count - 1)), ("val", range(count - 1, count))):
        images, annotations = [], []
        for number in numbers:
            image, things = scene(number)
            files[f"{split}2017/{number:012d}.png"] = encoded(image)
            images.append({"id": number, "file_name": f"{number:012d}.png", "width": 64, "height": 48})
            for label, a, b, c, d in things:
                box = {"bbox": [a, b, c - a, d - b], "category_id": 7 if label == "round" else 3, "iscrowd": 0}
                annotations.append({"id": len(annotations), "image_id": number, **box})
        categories = [{"id": 3, "name": "long"}, {"id": 7, "name": "round"}]
        contents = {"images": images, "annotations": annotations, "categories": categories}
        files[f"annotations/instances_{split}2017.json"] = json.dumps(contents).encode()
        files[f"annotations/captions_{split}2017.json"] = b"{}"
    return files


def csv_files(count: int, *, fractions: bool) -> Files:
    """A csv of boxes, in pixels or in fractions."""
    files: Files = {}
    lines = io.StringIO()
    lines.write("image_id,image,xmin,ymin,xmax,ymax,label\n")
    for number in range(count):
        image, things = scene(number)
        files[f"images/{number}.png"] = encoded(image)
        height, width = image.shape[:2] if fractions else (1, 1)
        for label, a, b, c, d in things:
            lines.write(f"{number},{number}.png,{a / width},{b / height},{c / width},{d / height},{label}\n")
    return files | {"annotations.csv": lines.getvalue().encode()}


def put_voc(root: Path, count: int, **options: object) -> Path:
    """`voc_files` in a folder."""
    for name, data in voc_files(count, **options).items():  # type: ignore[arg-type]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
