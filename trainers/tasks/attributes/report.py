"""A face-attributes run's tables, its report, and its predictions."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import PurePath

import numpy as np
import torch

from datasets.loading.store import read_samples
from datasets.media.augment import resize
from datasets.media.decode import Image, decode
from datasets.shards.index import evaluated_split
from datasets.shards.labels import COLUMNS
from trainers.engine.report import RunReport
from trainers.engine.run import Run
from trainers.reports.confidence_intervals import interval
from trainers.reports.console import summary_table
from trainers.tasks.attributes.data import FaceSet
from trainers.tasks.attributes.losses import TASKS
from trainers.tasks.attributes.model import Attributes
from trainers.tasks.attributes.pictures import Face, labelled_faces

FRACTIONS = ("accuracy", "balanced", "auc", "nme")
LESS_IS_BETTER = ("mae", "nme")
CURVES = {
    "score": "score", "gender.auc": "gender, AUC", "age.mae": "age, error in years", "pose.roll_mae": "roll, error in degrees",
    "smile.auc": "smile, AUC", "attractiveness.correlation": "attractiveness, correlation",
}  # fmt: skip
HELD_OUT_SHOWN = 12  # images in a report
SHOWN = 24  # images in the picture of a prediction


def _text(name: str, value: float) -> str:
    return f"{value:.1%}" if name.rpartition(".")[2] in FRACTIONS else f"{value:.3g}"


def figure_rows(figures: Mapping[str, float]) -> list[list[object]]:
    """One row per task: its name, the number of images it was evaluated on, its figures."""
    rows: list[list[object]] = []
    for task in TASKS:
        own = {name.partition(".")[2]: value for name, value in figures.items() if name.startswith(f"{task}.")}
        if own:
            words = ", ".join(f"{name} {_text(name, value)}" for name, value in own.items() if name != "n")
            rows.append([task, int(own["n"]), words])
    return rows


def print_figures(title: str, figures: Mapping[str, float]) -> None:
    """Print the table of a run's figures."""
    score = f"score {figures['score']:.3f}" if "score" in figures else "no score"
    summary_table(f"{title}: {score}", ["task", "images", "figures"], figure_rows(figures))


def print_comparison(title: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print each arm's figures, and their paired differences to the first arm's: means over seeds with 95% intervals."""
    arms = list(figures)
    runs = [run for arm in arms for run in figures[arm]]
    names = [name for name in runs[0] if name != "step" and not name.endswith((".n", ".skill")) and all(name in r for r in runs)]
    seeds = len(figures[arms[0]])

    def cell(values: Sequence[float], name: str, sign: str) -> str:
        mean, half = interval(values)
        scale, unit = (100, " %") if name.rpartition(".")[2] in FRACTIONS else (1, "")
        return f"{mean * scale:{sign}.2f} ± {half * scale:.2f}{unit}" if unit or mean > 1 else f"{mean:{sign}.3f} ± {half:.3f}"

    rows = [[_arrow(name), *(cell([run[name] for run in figures[arm]], name, "") for arm in arms)] for name in names]
    summary_table(f"{title}: {seeds} seeds, mean ± 95% interval", ["figure", *arms], rows)
    first, *others = arms
    pairs = {arm: [{n: a[n] - b[n] for n in names} for a, b in zip(figures[arm], figures[first], strict=True)] for arm in others}
    rows = [[_arrow(name), *(cell([run[name] for run in pairs[arm]], name, "+") for arm in others)] for name in names]
    summary_table(f"{title}: difference to {first}, seed by seed", ["figure", *others], rows)


def _arrow(name: str) -> str:
    return f"{name} {'↓' if name.rpartition('.')[2].endswith(LESS_IS_BETTER) else '↑'}"


def write_report(run: Run, faces: Sequence[Face]) -> None:
    """Put ``report.html`` into the run's folder: figures, stages, curves, held-out faces, settings."""
    page = RunReport(run, lambda page: f"{page.config['arm']}, {len(page.config['data'])} sets")
    page.before_and_after("Held-out images", {"score": "score"}, _score)
    if "after" in page.metrics:
        page.table("Figures", ["task", "images", "figures"], figure_rows(page.metrics["after"]))
    stages = [[number, entry["first"], entry["steps"], entry["ended"]] for number, entry in enumerate(page.metrics["stages"], 1)]
    page.table("Stages", ["stage", "first step", "steps", "why it ended"], stages)
    page.training(("loss",), ("lr", "stage", "samples_per_s", "wait"))
    if faces:
        caption = "What the model predicts for a few; ✓ and ✗ where the truth is known."
        page.picture("Held-out faces", caption, lambda dark: labelled_faces(faces, dark=dark))
    page.evaluations({"score": "score"}, _score)
    page.write()


def _score(_: str, value: float) -> str:
    return f"{value:.3f}"


@torch.no_grad()
def held_out_faces(
    model: Attributes, sets: Sequence[FaceSet], size: tuple[int, int], device: torch.device, columns: Sequence[str]
) -> list[Face]:
    """A few held-out images spread over each set, with the predictions of these columns and the true labels."""
    faces: list[Face] = []
    for face_set in sets:
        if (split := evaluated_split(face_set.index)) is None:
            continue
        labels = face_set.index.labels
        count = min(len(split), -(-HELD_OUT_SHOWN // len(sets)))
        samples = split.samples(np.linspace(0, len(split) - 1, count).astype(np.int64))
        for sample, data in zip(samples.tolist(), read_samples(face_set.index, samples), strict=True):
            try:
                image = decode(b"" if isinstance(data, ValueError) else data)
            except ValueError:  # the evaluation reported it
                continue
            pixels = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None].to(device)
            predicted = dict(zip(model.columns, model(pixels)[0].float().cpu().tolist(), strict=True))
            true = {name: float(values[sample]) for name, values in labels.items() if not np.isnan(values[sample])}
            name = face_set.index.keys[sample]
            faces.append((image, name, {name: within(name, predicted[name]) for name in model.columns if name in columns}, true))
    return faces


def within(column: str, value: float) -> float:
    """A predicted value rounded and clipped to the range of the column's labels, which a regression may leave."""
    least, most = COLUMNS[column]
    return round(min(max(value, least), most), 4)


@torch.no_grad()
def predict_faces(
    run: Run, model: Attributes, source: Iterable[tuple[str, Image]], size: tuple[int, int], device: torch.device,
    columns: Sequence[str], at_once: int,
) -> None:  # fmt: skip
    """Print a line of JSON with these columns for each image, predicting ``at_once`` images together.

    The lines and a picture of the first images are stored in the run's folder, also after an error of the source or Ctrl-C.
    """
    frames, lines = iter(source), list[str]()
    shown: list[Face] = []
    try:
        while several := list(islice(frames, at_once)):
            images = torch.stack([torch.from_numpy(resize(image, size)).permute(2, 0, 1) for _, image in several])
            for (name, image), values in zip(several, model(images.to(device)).float().cpu().tolist(), strict=True):
                predicted = {
                    name: within(name, value) for name, value in zip(model.columns, values, strict=True) if name in columns
                }
                lines.append(json.dumps({"image": name, **predicted}))
                print(lines[-1], flush=True)  # a program that reads a camera's lines from a pipe needs each at once
                if len(shown) < SHOWN:
                    shown.append((image, PurePath(name).name, predicted, {}))
    finally:
        if lines:
            run.write_text("prediction.jsonl", "".join(f"{line}\n" for line in lines))
            run.objects.put("prediction.png", labelled_faces(shown))
            print(f"picture: {run.url}/prediction.png", file=sys.stderr)
