"""Artificial pictures in place of faces: each label is visible in the picture, so that it can be learned."""

import csv
from pathlib import Path

import cv2
import numpy as np

from datasets.shards.labels import COLUMNS, POINTS

PLACES = {
    "left_eye": (0.3, 0.4),
    "right_eye": (0.7, 0.4),
    "nose": (0.5, 0.55),
    "left_mouth": (0.35, 0.75),
    "right_mouth": (0.65, 0.75),
}


def labels(rng: np.random.Generator) -> dict[str, float]:
    """Labels drawn at random, a value for each column."""
    shift = rng.uniform(-0.1, 0.1, 2)
    points = {f"{name}_{axis}": PLACES[name][i] + shift[i] for name in POINTS for i, axis in enumerate("xy")}
    binary = {name: float(rng.integers(2)) for name in ("gender", "glasses", "mask", "smile")}
    rest = {"age": rng.integers(1, 100), "quality": rng.random(), "attractiveness": rng.random()}
    return {**points, **binary, **{k: float(v) for k, v in rest.items()}, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}


def picture(labelled: dict[str, float], side: int = 32) -> np.ndarray:
    """A picture [side, side, 3] of the labels: background by gender, brightness by age, dots at the points, bars."""
    image = np.full((side, side, 3), 60, np.uint8)
    image[..., 0 if labelled["gender"] else 2] = 200
    image[: side // 6] = int(labelled["age"] * 2.5)
    if labelled["mask"]:
        image[side // 2 :] = (255, 255, 255)
    if labelled["glasses"]:
        image[side * 3 // 10 : side * 4 // 10] = 0
    if labelled["smile"]:
        image[-side // 8 :] = (0, 255, 0)
    for name in POINTS:
        cv2.circle(image, (int(labelled[f"{name}_x"] * side), int(labelled[f"{name}_y"] * side)), 2, (255, 255, 0), -1)
    return image


def faces(folder: Path, count: int, columns: tuple[str, ...] = tuple(COLUMNS), seed: int = 0) -> Path:
    """A folder of pictures and ``labels.csv`` with these columns, for the layout attributes_csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["file", *columns], extrasaction="ignore")
        rows.writeheader()
        for number in range(count):
            labelled = labels(rng)
            cv2.imwrite(str(folder / f"{number:04d}.png"), cv2.cvtColor(picture(labelled), cv2.COLOR_RGB2BGR))
            rows.writerow({"file": f"{number:04d}.png", **labelled})
    return folder
