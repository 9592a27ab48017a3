"""What a re-identification run leaves for people: its report, and the pictures of its predictions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import cosine_similarity

from datasets.decode import Image, decode
from datasets.errors import InputError
from datasets.index import Int64s, Split, split_of
from datasets.store import read_samples
from trainers.engine.config import flat
from trainers.engine.console import summary_table
from trainers.engine.gallery import FIGURES, Found, read_image
from trainers.engine.pictures import confusable_pairs, curves, difficulty_over_time, ranked_galleries, two_images
from trainers.engine.report import Page
from trainers.engine.run import REPORT, Run

CURVES = ("loss", "accuracy", "lr", "samples_per_s", "wait", "version")
SIDE = 4  # images of an identity on the contact sheet


def write_report(run: Run, train: Split, config: str, metrics: dict[str, Any], history: dict[str, Any]) -> None:
    """Put ``report.html`` into the run's folder: figures, curves, difficulty over time, confusable pairs, ranked galleries."""
    page = Page(run.name, f"{len(train):,} images of {len(train.counts):,} identities, {metrics['step']:,} steps")
    if history["evaluations"]:
        first, last = history["evaluations"][0], history["evaluations"][-1]
        page.numbers("Held-out identities", [(name, f"{last[name]:.1%}", f"before: {first[name]:.1%}") for name in FIGURES])
        rows = [[e["step"], *(f"{e[name]:.1%}" for name in FIGURES)] for e in history["evaluations"]]
        page.table("Evaluations", ["step", *FIGURES], rows)
    settings, notes = json.loads(config), history["notes"]
    spread = [(version["step"], version["quantiles"]) for version in notes.get("difficulty", [])]
    hard_from = next((record["step"] for record in history["records"] if record["version"]), None)
    pictures: list[tuple[str, str, Any]] = [
        ("Training", "Means between records.", lambda dark: curves(history["records"], CURVES, hard_from, dark)),
        ("Difficulty", "The largest cosine of each identity's classifier row to another's, by version of the vector.",
         lambda dark: difficulty_over_time(spread, len(train.counts), dark)),
    ]  # fmt: skip
    if history["confusable"]:
        pairs = _pairs(train, history["confusable"])
        caption = "The pairs of training identities whose classifier rows are closest, with their cosine."
        pictures.append(("Most confusable identities", caption, lambda dark: confusable_pairs(pairs, dark)))
    if "shown" in notes:
        galleries = _galleries(train, notes["shown"])
        caption = "Queries of held-out identities and what they find; images of the query's own camera are left out."
        pictures.append(("Ranked galleries", caption, lambda dark: ranked_galleries(galleries, dark)))
    for title, caption, draw in pictures:
        page.figure(title, draw(False), caption, draw(True))
    page.table("Settings", ["setting", "value"], [[name, str(value)] for name, value in flat(settings)])
    run.write_text(REPORT, page.html())


def write_pair(run: Run, paths: Sequence[Path], features: Tensor, threshold: float | None) -> None:
    """Tell whether two images [2, D] show the same identity; JSON and a picture go into the run's folder.

    Raises:
        InputError: there is no threshold, since the run was never evaluated.
    """
    if threshold is None:
        remedy = "train on a set with query and gallery, or `evaluate` cannot choose one"
        raise InputError("the run has no threshold to tell same from different by", run.url, remedy)
    cosine = float(cosine_similarity(features[0], features[1], dim=0))
    same = cosine >= threshold
    verdict = "same" if same else "different"
    summary_table("pair", ["image", "image", "cosine", "threshold", "verdict"],
                  [[str(paths[0]), str(paths[1]), f"{cosine:.3f}", f"{threshold:.3f}", verdict]])  # fmt: skip
    run.write_json("prediction.json", {"images": list(map(str, paths)), "cosine": cosine, "threshold": threshold, "same": same})
    run.objects.put("prediction.png", two_images(read_image(paths[0]), read_image(paths[1]), cosine, threshold, same))
    print(f"picture: {run.url}/prediction.png")


def write_ranking(run: Run, queries: Sequence[Path], ranking: Sequence[Sequence[Found]]) -> None:
    """Tell what queries found; JSON and a picture go into the run's folder."""
    rows = [[str(path) if place == 0 else "", place + 1, found.name, f"{found.cosine:.3f}"]
            for path, row in zip(queries, ranking, strict=True) for place, found in enumerate(row)]  # fmt: skip
    summary_table("ranking", ["query", "rank", "found", "cosine"], rows)
    document = [{"query": str(path), "found": [{"name": f.name, "cosine": f.cosine} for f in row]}
                for path, row in zip(queries, ranking, strict=True)]  # fmt: skip
    run.write_json("prediction.json", document)
    shown = [(read_image(path), path.name, [(f.image, f.cosine, None) for f in row])
             for path, row in zip(queries, ranking, strict=True)]  # fmt: skip
    run.objects.put("prediction.png", ranked_galleries(shown))
    print(f"picture: {run.url}/prediction.png")


def _pairs(train: Split, confusable: Sequence[tuple[int, int, float]]) -> list[Any]:
    names = train.names
    return [(names[a], names[b], cosine, _of_identity(train, a), _of_identity(train, b)) for a, b, cosine in confusable]


def _of_identity(train: Split, label: int) -> list[Image]:
    first = train.identity_starts[label]
    return [image for image in _images(train, np.arange(first, first + min(SIDE, train.counts[label]))) if image is not None]


def _galleries(train: Split, shown: Sequence[dict[str, Any]]) -> list[Any]:
    query, gallery = split_of(train.index, "query"), split_of(train.index, "gallery")
    rows = []
    for row in shown:
        place = np.array([row["query"]], np.int64)
        (image,) = _images(query, place)
        found = zip(_images(gallery, np.array(row["gallery"], np.int64)), row["cosine"], row["right"], strict=True)
        if image is not None:
            rows.append((image, query.names[int(query.labels_of(place)[0])], [item for item in found if item[0] is not None]))
    return rows


def _images(split: Split, positions: Int64s | npt.NDArray[Any]) -> list[Image | None]:
    return [_decoded(data) for data in read_samples(split.index, split.samples(positions))]


def _decoded(data: bytes | memoryview | ValueError) -> Image | None:
    try:
        return None if isinstance(data, ValueError) else decode(data)
    except ValueError:
        return None
