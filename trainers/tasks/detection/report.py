"""Tables, report and predictions (COCO's JSON and pictures) of a detection run."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.loading.store import read_samples
from datasets.media.augment import resize
from datasets.media.decode import Image, decode
from datasets.shards.index import Split
from trainers.engine.report import RunReport
from trainers.engine.run import Run
from trainers.reports.confidence_intervals import interval
from trainers.reports.console import summary_table
from trainers.tasks.detection.adaptation import DetectionTask
from trainers.tasks.detection.data import CELL, detect
from trainers.tasks.detection.detector import Detector
from trainers.tasks.detection.metrics import Prediction
from trainers.tasks.detection.pictures import Detections, detections_sheet

SHOWN = 4  # images of the target that the report shows for each evaluation
MIN_SCORE = 0.5  # of a box in a picture
MEANS = {"mAP50": "mAP50", "mAP": "mAP", "vocAP50": "VOC AP50"}
FIGURE_COLUMNS = ("class", "boxes", "AP50", "AP", "VOC AP50")
CAPTION = """Frames: boxes with a score of at least 0.5. If regions are aligned, dots: centres of the best regions, by cluster;
squares: the clusters' centres; numbers: w_k, how much the cluster looks like the source."""


def figure_rows(figures: Mapping[str, float]) -> list[list[object]]:
    """Rows of a table: the means and then each class, with the number of true boxes and average precisions in percent."""
    names = [name.removeprefix("n.") for name in figures if name.startswith("n.")]
    rows: list[list[object]] = [["all", int(sum(figures[f"n.{n}"] for n in names)), *(_percent(figures[m]) for m in MEANS)]]
    for name in names:
        own = (figures.get(f"{part}.{name}") for part in ("AP50", "AP", "vocAP50"))
        rows.append([name, int(figures[f"n.{name}"]), *(_percent(value) for value in own)])
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """Print the table of a run's metrics."""
    summary_table(f"{title}: mAP50 {figures['mAP50']:.1%}", FIGURE_COLUMNS, figure_rows(figures))


def print_comparison(repeated: str, title: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print each arm's metrics and its paired difference in mAP50 to the first arm: means over its runs ± 95% t intervals.

    ``repeated``: how many runs of an arm there are, in words. A class may have no true boxes in some folds.
    """
    arms = list(figures)
    first = figures[arms[0]]
    classes = dict.fromkeys(name.removeprefix("n.") for run in first for name in run if name.startswith("n.") and run[name])
    names = ["mAP50", "mAP", *(f"AP50.{name}" for name in classes)]

    def cell(values: Sequence[float], sign: str = "") -> str:
        mean, half = interval(values)
        return f"{mean * 100:{sign}.1f} ± {half * 100:.1f}"

    rows = []
    for arm in arms:
        gains = [a["mAP50"] - b["mAP50"] for a, b in zip(figures[arm], first, strict=True)]
        rows.append(
            [
                arm,
                *(cell([run[name] for run in figures[arm] if name in run]) for name in names),
                cell(gains, "+") if arm != arms[0] else "",
            ]
        )
    summary_table(f"{title}: {repeated}, mean ± 95% interval, %", ["arm", *names, f"mAP50 - {arms[0]}"], rows)


@torch.no_grad()
def detect_samples(
    task: DetectionTask, split: Split, size: tuple[int, int], names: Sequence[str], device: torch.device
) -> list[Any]:
    """A run's boxes on the first images of a split, for JSON; with alignment also the regions' clusters and their weights w_k."""
    positions = np.arange(min(SHOWN, len(split)))
    task.eval()
    seen = []
    for position, image in zip(positions, _images(split, positions), strict=True):
        batch = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None].to(device)
        (found,) = detect(task.kept, batch)
        entry: dict[str, Any] = {"position": int(position), "boxes": named_boxes(found, names)}
        if task.recipe.align:
            entry |= _clusters(task, batch)
        seen.append(entry)
    task.train()
    return seen


def _clusters(task: DetectionTask, batch: torch.Tensor) -> dict[str, Any]:
    regions = task.detector.best_regions(batch)
    clusters = task.clusters(regions, seed=0)
    sides = clusters.centres.new_tensor([batch.shape[3], batch.shape[2]])
    points = (regions.boxes[0][:, :2] + regions.boxes[0][:, 2:]) / 2 / sides
    return {
        "points": [[x, y, int(c)] for (x, y), c in zip(points.tolist(), clusters.assigned[0].tolist(), strict=True)],
        "centres": (clusters.centres[0] / sides).tolist(),
        "weights": task.weights(clusters.features)[0].tolist(),
    }


def named_boxes(found: Prediction, names: Sequence[str]) -> list[list[Any]]:
    """The boxes of a prediction to show, those with a score of at least MIN_SCORE: left, top, right, bottom, class."""
    shown = found.scores >= MIN_SCORE
    return [[*box, names[c]] for box, c in zip(found.boxes[shown].tolist(), found.classes[shown].tolist(), strict=True)]


def _images(split: Split, positions: Sequence[int] | Any) -> list[Image]:
    """Images by position; a grey image where one cannot be read."""
    images = []
    for data in read_samples(split.index, split.samples(np.asarray(positions))):
        try:
            images.append(decode(data) if isinstance(data, bytes) else np.full((8, 8, 3), 128, np.uint8))
        except ValueError:
            images.append(np.full((8, 8, 3), 128, np.uint8))
    return images


def write_report(run: Run, split: Split) -> None:
    """Write ``report.html`` into the run's folder: metrics, predictions at each evaluation, curves, settings.

    ``split``: the target's split that the shown images are of.
    """
    page = RunReport(run, lambda page: f"{page.config['arm']}, {page.config['source']} to {page.config['target']}")
    page.before_and_after("Held-out images of the target", MEANS, lambda _, value: _percent(value))
    if "after" in page.metrics:
        page.table("Figures", FIGURE_COLUMNS, figure_rows(page.metrics["after"]))
    page.evaluations(MEANS, lambda _, value: _percent(value))
    for seen in page.notes["seen"]:
        page.picture(f"Target, step {seen['step']:,}", CAPTION, partial(_sheet, _detections(split, seen["images"])))
    page.training(("loss",), ("lr", "samples_per_s", "wait"))
    page.write()


def _sheet(shown: Sequence[Detections], dark: bool) -> bytes:
    return detections_sheet(shown, dark=dark)


def _detections(split: Split, entries: Sequence[Mapping[str, Any]]) -> list[Detections]:
    images = _images(split, [entry["position"] for entry in entries])
    return [
        Detections(
            image, f"image {entry['position']}", [tuple(box) for box in entry["boxes"]], entry.get("points", ()),
            entry.get("centres", ()), entry.get("weights", ()),
        )
        for image, entry in zip(images, entries, strict=True)
    ]  # fmt: skip


def predict_boxes(
    run: Run, detector: Detector, source: Iterable[tuple[str, Image]], side: int, names: Sequence[str], device: torch.device
) -> None:
    """Predict the boxes of each image: ``prediction.json`` in COCO's format, with scores, and a picture of each image."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, image) in enumerate(source):
        height, width = image.shape[:2]
        scale = side / min(height, width)
        size = max(round(height * scale / CELL), 1) * CELL, max(round(width * scale / CELL), 1) * CELL
        (found,) = detect(detector, torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None].to(device))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        corners = found.boxes * np.array([width, height, width, height], np.float32)
        for box, c, score in zip(corners.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True):
            left, top, right, bottom = (round(value, 2) for value in box)
            box_width, box_height = round(right - left, 2), round(bottom - top, 2)
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": c + 1, "bbox": [left, top, box_width, box_height],
                "area": round(box_width * box_height, 2), "iscrowd": 0, "score": round(score, 4),
            })  # fmt: skip
        boxes = named_boxes(found, names)
        picture = f"prediction/{number:06d}-{Path(name).stem}.png"
        shown = Detections(image, name, [tuple(box) for box in boxes])
        run.objects.put(picture, detections_sheet([shown], cell=max(min(width, 960), 120)))
        words = ", ".join(f"{sum(box[4] == kind for box in boxes)} {kind}" for kind in names)
        print(f"{name}: {words} -> {run.url}/{picture}")
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    run.write_json("prediction.json", {"images": images, "annotations": annotations, "categories": categories})
    print(f"boxes of {len(images)} images, of any score: {run.url}/prediction.json")
