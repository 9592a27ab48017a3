"""Evaluation of a set, by the protocol that its splits ask for: all ranks embed the images, rank 0 gets the figures.

| splits | protocol |
|---|---|
| query and gallery | Market-1501's: retrieval without images of the query's identity and camera (`metrics`) |
| test | VehicleID's: one random image of each identity is the gallery, all others are queries; mean of 10 draws |
| pairs | LFW's: verification of pairs, 10 folds (`verification`) |
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.workers import load_in_workers
from datasets.seeding import generator
from datasets.shards.index import Index, split_of
from datasets.shards.pairs import pairs_of
from datasets.splits import PAIRS
from trainers.tasks.reid.data import open_index
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.metrics import RankingResult, Side, evaluate_ranking, evaluate_scores, normalised, rank
from trainers.tasks.reid.reranking import Reranked
from trainers.tasks.reid.retrieval import ALONE, CHUNK, Embedded, FlipTest, embed
from trainers.tasks.reid.verification import Histograms, best_threshold, cosine_histograms, pair_figures, tar_of_histogram

DRAWS = 10  # random galleries
SHOWN, DEEP = 8, 10  # queries whose ranking the report shows, and images of each ranking
PLAIN = EvaluationConfig()
Draws = Sequence[tuple[Embedded, Embedded]]  # queries and gallery of each


class Evaluation(NamedTuple):
    """``metrics``: figures in 0..1, counts and thresholds. ``shown``: a few rankings for the report. ``bad``: the images that
    this rank could not read."""

    metrics: dict[str, Any]
    shown: list[dict[str, Any]]
    bad: list[str]


def can_evaluate(index: Index) -> bool:
    """Whether a set has splits to evaluate on."""
    return bool(retrieval_splits(index)) or PAIRS in index.splits


def evaluated_sets(given: Sequence[str], own: Sequence[str]) -> list[Index]:
    """The indexes of the sets to evaluate on: those given, else those of a run's own sets that can be evaluated on.

    Raises:
        InputError: a given set cannot be evaluated on, or none of the run's own can.
    """
    sets = [open_index(url) for url in given or own or ("",)]
    able = [index for index in sets if can_evaluate(index)]
    if not able or (given and len(able) < len(sets)):
        index = next(index for index in sets if index not in able)
        what = "the set has neither query and gallery, nor several test images of an identity, nor pairs"
        raise InputError(what, index.url, f"it has: {', '.join(index.splits)}")
    return able


def evaluated_parts(sets: Sequence[Index]) -> list[Index]:
    """Those of a run's sets that can be evaluated on. Models are compared by the first."""
    return [index for index in sets if can_evaluate(index)]


def main_figure(sets: Sequence[Index]) -> str:
    """The name of the figure by which models trained on these sets are compared."""
    return "mAP" if any(map(retrieval_splits, evaluated_parts(sets)[:1])) else "pairs_accuracy"


def retrieval_splits(index: Index) -> tuple[str, str] | None:
    """The splits of the queries and of the gallery, or None. Of a random gallery, both are ``test``."""
    if {"query", "gallery"} <= set(index.splits):
        return "query", "gallery"
    if "test" in index.splits and split_of(index, "test").counts.max() > 1:
        return "test", "test"
    return None


def evaluate_set(
    embedder: nn.Module, index: Index, size: tuple[int, int], cache: CacheConfig, etags: dict[str, str], device: torch.device,
    config: EvaluationConfig = PLAIN, part: RankSlice = ALONE, group: dist.ProcessGroup | None = None, workers: int = 0,
) -> Evaluation:  # fmt: skip
    """Evaluate on all splits that a set has for it. Every rank embeds its slice; rank 0 alone gets the figures.

    Raises:
        InputError: no image of a split can be read, no query has a match, or the pairs cannot be divided into folds.
    """
    bad: list[str] = []
    splits, embedder = retrieval_splits(index), FlipTest(embedder) if config.flip else embedder
    found = {}
    for name in dict.fromkeys([*(splits or ()), *([PAIRS] if PAIRS in index.splits else [])]):
        split = split_of(index, name)
        stream = SplitStream(split, size, cache, etags, part, CHUNK)
        found[name] = embed(embedder, split, load_in_workers(stream, workers), device, group, bad)
    if part.rank:
        return Evaluation({}, [], bad)
    metrics: dict[str, Any] = {"flip": True} if config.flip else {}
    shown = []
    if splits:
        draws = list(random_galleries(found["test"])) if splits == ("test", "test") else [(found["query"], found["gallery"])]
        metrics |= _retrieval_figures(draws, config)
        shown = _shown(*draws[0])
    if PAIRS in found:
        figures = _figures_of_pairs(index, found[PAIRS])
        own = {"threshold": figures.pop("threshold"), "pairs": figures.pop("pairs")}
        metrics = {**own, **metrics, **{f"pairs_{name}": value for name, value in figures.items()}}
    return Evaluation(metrics, shown, bad)


def random_galleries(images: Embedded) -> Iterator[tuple[Embedded, Embedded]]:
    """The draws of VehicleID's protocol (Liu et al., CVPR 2016), the same for every model: queries and gallery of each.

    Cameras play no part. An identity's only image is in the gallery.
    """
    order = torch.argsort(images.pids, stable=True)
    counts = torch.unique_consecutive(images.pids[order], return_counts=True)[1].numpy()
    starts = np.cumsum(counts) - counts
    images = images._replace(camids=torch.full_like(images.camids, -1))
    for draw in range(DRAWS):
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[torch.from_numpy(starts + generator(0, "random gallery", draw).integers(counts))]] = True
        yield Embedded(*(part[~chosen] for part in images)), Embedded(*(part[chosen] for part in images))


def _retrieval_figures(draws: Draws, config: EvaluationConfig) -> dict[str, Any]:
    """Figures of rankings, means over the draws, and of verification by all pairs of a query and a gallery image."""
    rankings = [_ranking_figures(query, gallery, config) for query, gallery in draws]
    query, gallery = draws[0]
    valid = int(rankings[0].pop("valid"))
    figures = {name: fmean(each[name] for each in rankings) for name in rankings[0]}
    counts = {"queries": valid, "skipped_queries": len(query.pids) - valid, "gallery": len(gallery.pids)}
    histograms = reduce(add, (_histograms(*draw) for draw in draws))
    threshold, accuracy = best_threshold(histograms.coarse)
    if not math.isnan(threshold):
        figures |= {"threshold": threshold, "verification": accuracy, **tar_of_histogram(histograms.fine)}
    return figures | counts | ({"draws": len(draws)} if len(draws) > 1 else {})


def _ranking_figures(query: Embedded, gallery: Embedded, config: EvaluationConfig) -> dict[str, float]:
    result = evaluate_ranking(
        query.features, gallery.features, query.pids, gallery.pids, query.camids, gallery.camids, ranks=(1, 5, 10)
    )
    figures = _named(result)
    if config.rerank:
        reranked = Reranked(query.features, gallery.features, config)
        sides = Side(query.pids, query.camids), Side(gallery.pids, gallery.camids)
        again = evaluate_scores(reranked.scores, *sides, ranks=(1, 5, 10))
        figures |= {f"{name}_reranked": value for name, value in _named(again).items()}
    return {**figures, "valid": result.valid_queries}


def _named(result: RankingResult) -> dict[str, float]:
    return {"mAP": result.mean_ap, "mINP": result.mean_inp, **{f"rank{k}": value for k, value in result.cmc.items()}}


def _histograms(query: Embedded, gallery: Embedded) -> Histograms:
    known = gallery.pids != -1  # junk may show the person of a query
    return cosine_histograms(query.features, gallery.features[known], query.pids, gallery.pids[known])


def _figures_of_pairs(index: Index, images: Embedded) -> dict[str, float]:
    """Figures of the pairs whose images could be read; ``images``: those of the split of pairs."""
    samples = split_of(index, PAIRS).samples(images.positions.numpy())
    row = np.full(len(index), -1)
    row[samples] = np.arange(len(samples))
    rows = row[pairs_of(index)]
    rows = rows[(rows >= 0).all(axis=1)]
    features, pids = normalised(images.features).double(), images.pids.numpy()
    cosines = (features[rows[:, 0]] * features[rows[:, 1]]).sum(1)
    return pair_figures(cosines.numpy(), pids[rows[:, 0]] == pids[rows[:, 1]])


def _shown(query: Embedded, gallery: Embedded) -> list[dict[str, Any]]:
    """The rankings of a few queries spread over the set, without junk and images of the same identity and camera."""
    rows = []
    for q in torch.linspace(0, len(query.features) - 1, min(SHOWN, len(query.features))).long().tolist():
        hidden = (gallery.pids == query.pids[q]) & (gallery.camids == query.camids[q]) & (query.camids[q] >= 0)
        kept = torch.nonzero(~hidden & (gallery.pids != -1)).flatten()
        if not len(kept):
            continue
        order, cosines = rank(query.features[q], gallery.features[kept], DEEP)
        found = kept[order[0]]
        rows.append({
            "query": int(query.positions[q]), "gallery": gallery.positions[found].tolist(),
            "cosine": cosines[0].tolist(), "right": (gallery.pids[found] == query.pids[q]).tolist(),
        })  # fmt: skip
    return rows
