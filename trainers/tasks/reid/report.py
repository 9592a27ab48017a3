"""The report of a re-identification run, and the files that its predictions write."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import cosine_similarity

from datasets.errors import InputError
from datasets.loading.store import read_samples
from datasets.media.decode import Image, decode
from datasets.shards.index import Index, Int64s, Split, split_of
from trainers.engine.inputs import InputFile, read_image
from trainers.engine.report import RunReport
from trainers.engine.run import Run
from trainers.reports.console import summary_table
from trainers.tasks.reid.data import Data, StreamedData
from trainers.tasks.reid.evaluation import evaluated_parts, retrieval_splits
from trainers.tasks.reid.figures import main_figures, rows_of_sets
from trainers.tasks.reid.pictures import confusable_pairs, difficulty_over_time, ranked_galleries, two_images
from trainers.tasks.reid.retrieval import Found

SIDE = 4  # images of an identity in the picture of confusable pairs


def write_report(run: Run, data: Data | StreamedData) -> None:
    """Put ``report.html`` into the run's folder: figures, curves, difficulty over time, confusable pairs, ranked galleries.

    Of streamed data there are no pictures."""
    page = RunReport(run, lambda page: str(data))
    names = {name: name.replace("_", " ") for name in main_figures(page.history["evaluations"])}
    page.before_and_after("Held-out identities", names, _percent)
    page.evaluations(names, _percent)
    if sets := rows_of_sets(page.history["evaluations"]):
        figures = main_figures(sets)
        rows = [[row["set"], *(_percent(name, row[name]) for name in figures)] for row in sets]
        page.table("Sets", ["set", *(name.replace("_", " ") for name in figures)], rows, "Held-out identities, after training.")
    hard_from = next((record["step"] for record in page.history["records"] if record["version"]), None)
    page.training(("loss", "accuracy"), ("lr", "samples_per_s", "wait", "version"), hard_from)
    versions = [(version["step"], version["quantiles"]) for version in page.notes.get("difficulty", [])]
    caption = "The largest cosine of each identity's classifier row to another's, by version of the vector."
    page.picture("Difficulty", caption, lambda dark: difficulty_over_time(versions, data.identities, dark))
    if page.history["confusable"] and isinstance(data, Data):
        pairs = _pairs(data.train, page.history["confusable"])
        caption = "The pairs of training identities whose classifier rows are closest, with their cosine."
        page.picture("Most confusable identities", caption, lambda dark: confusable_pairs(pairs, dark))
    if page.notes.get("shown"):
        galleries = _galleries(data.parts, page.notes["shown"])
        caption = (
            "Queries of held-out identities and the images that rank highest; those of the same identity and camera are left out."
        )
        page.picture("Ranked galleries", caption, lambda dark: ranked_galleries(galleries, dark))
    page.write()


def _percent(_: str, value: float) -> str:
    return f"{value:.1%}"


def write_pair(run: Run, files: Sequence[InputFile], features: Tensor, threshold: float | None) -> None:
    """Decide whether two images with ``features`` [2, D] show the same identity; print and store the result.

    Raises:
        InputError: ``threshold`` is None: the run had no held-out identities to choose one by.
    """
    if threshold is None:
        remedy = "train on a set with query and gallery, whose evaluation chooses one"
        raise InputError("the run has no verification threshold", run.url, remedy)
    cosine = float(cosine_similarity(features[0], features[1], dim=0))
    same = cosine >= threshold
    verdict = "same" if same else "different"
    summary_table("pair", ["image", "image", "cosine", "threshold", "verdict"],
                  [[files[0].name, files[1].name, f"{cosine:.3f}", f"{threshold:.3f}", verdict]])  # fmt: skip
    names = [file.name for file in files]
    run.write_json("prediction.json", {"images": names, "cosine": cosine, "threshold": threshold, "same": same})
    run.objects.put("prediction.png", two_images(read_image(files[0]), read_image(files[1]), cosine, threshold, same))
    print(f"picture: {run.url}/prediction.png")


def write_ranking(run: Run, queries: Sequence[InputFile], ranking: Sequence[Sequence[Found]]) -> None:
    """Print the gallery images found for each query; store them as JSON and as a picture in the run's folder."""
    rows = [[file.name if place == 0 else "", place + 1, found.name, f"{found.cosine:.3f}"]
            for file, row in zip(queries, ranking, strict=True) for place, found in enumerate(row)]  # fmt: skip
    summary_table("ranking", ["query", "rank", "found", "cosine"], rows)
    document = [{"query": file.name, "found": [{"name": f.name, "cosine": f.cosine} for f in row]}
                for file, row in zip(queries, ranking, strict=True)]  # fmt: skip
    run.write_json("prediction.json", document)
    shown = [(read_image(file), file.path.name, [(f.image, f.cosine, None) for f in row])
             for file, row in zip(queries, ranking, strict=True)]  # fmt: skip
    run.objects.put("prediction.png", ranked_galleries(shown))
    print(f"picture: {run.url}/prediction.png")


def _pairs(train: Split, confusable: Sequence[tuple[int, int, float]]) -> list[Any]:
    names = train.names
    return [(names[a], names[b], cosine, _of_identity(train, a), _of_identity(train, b)) for a, b, cosine in confusable]


def _of_identity(train: Split, label: int) -> list[Image]:
    first = train.identity_starts[label]
    return [image for image in _images(train, np.arange(first, first + min(SIDE, train.counts[label]))) if image is not None]


def _galleries(sets: Sequence[Index], shown: Sequence[dict[str, Any]]) -> list[Any]:
    index = evaluated_parts(sets)[0]
    query, gallery = (split_of(index, name) for name in retrieval_splits(index) or ())
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
