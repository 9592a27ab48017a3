"""Figures of features: retrieval (how high a query's own identity ranks in a gallery ordered by cosine) and verification (whether
two images show the same identity).

Shapes: Q queries, G gallery images, D features, C queries of one chunk.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.errors import InputError

JUNK = -1
BINS = 4001  # of cosines: the threshold is found to 0.0005


@dataclass(frozen=True)
class RankingResult:
    """Figures in 0..1 over the valid queries; ``ap`` float64 [Q], on the CPU, is nan for skipped queries."""

    mean_ap: float
    cmc: dict[int, float]
    ap: Tensor
    valid_queries: int
    skipped_queries: int


@torch.no_grad()
def evaluate_ranking(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    query_camids: Tensor,
    gallery_camids: Tensor,
    ranks: tuple[int, ...] = (1, 5, 10),
    chunk: int = 256,
) -> RankingResult:
    """Mean average precision and CMC of features [Q, D] against [G, D], as for Market-1501 (Zheng et al., ICCV 2015).

    For each query, gallery images of its identity *and* its camera are left out, and so is junk (pid -1). Identities without a
    query stay in the gallery as distractors. A negative camera is unknown and equals no other. Queries that are junk or have no
    match left are skipped. Equal cosines are ordered by gallery index. Average precision is the mean over the matches of the
    precision at each (as in scikit-learn), not the trapezoid rule of the data set's first scripts. cmc[k] is the fraction of
    queries with a match among the first k.

    ``pids`` and ``camids``: integers [Q] and [G]. ``chunk``: queries ranked at a time, which takes about 40 bytes x chunk x G.
    Runs on the device of the features.

    Raises:
        ValueError: wrong shapes, or features that are not finite.
        InputError: no query has a match.
    """
    query, gallery = _normalised(query), _normalised(gallery)
    _check_lengths(query, query_pids, query_camids)
    _check_lengths(gallery, gallery_pids, gallery_camids)
    query_pids, query_camids = query_pids.to(query.device), query_camids.to(query.device)
    gallery_pids, gallery_camids = gallery_pids.to(query.device), gallery_camids.to(query.device)

    aps, firsts = [], []
    for rows in torch.split(torch.arange(len(query), device=query.device), chunk):
        same_pid = query_pids[rows, None] == gallery_pids
        same_camera = (query_camids[rows, None] == gallery_camids) & (gallery_camids >= 0)
        kept = ~(same_pid & same_camera) & (gallery_pids != JUNK)
        ap, first = _rank_matches(query[rows] @ gallery.T, same_pid, kept)
        aps.append(ap)
        firsts.append(first)
    ap, first = torch.cat(aps).cpu(), torch.cat(firsts).cpu()
    valid = ~ap.isnan()
    if not valid.any():
        remedy = "the gallery needs images of the queries' identities from other cameras"
        raise InputError("no query has a match in the gallery", f"{len(query)} queries", remedy)
    return RankingResult(
        mean_ap=ap[valid].mean().item(),
        cmc={k: (first[valid] <= k).double().mean().item() for k in ranks},
        ap=ap,
        valid_queries=int(valid.sum()),
        skipped_queries=int((~valid).sum()),
    )


@torch.no_grad()
def rank(query: Tensor, gallery: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The gallery images most similar to each query: indices int64 [Q, top] and their cosines [Q, top], the best first.

    ``query`` is [Q, D], or [D] for one; ``gallery`` [G, D]. Equal cosines are ordered by index. If ``top`` is above G, there are
    G columns.
    """
    query, gallery = _normalised(query if query.ndim == 2 else query[None]), _normalised(gallery)
    cosines, order = (query @ gallery.T).sort(dim=1, descending=True, stable=True)
    return order[:, :top], cosines[:, :top]


class Verification(NamedTuple):
    """``threshold``: images with at least this cosine count as the same identity; ``accuracy``: the balanced accuracy of that."""

    threshold: float
    accuracy: float


@torch.no_grad()
def best_threshold(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor, chunk: int = 256) -> Verification:
    """The threshold with the highest balanced accuracy over all pairs of a query [Q, D] and a gallery image [G, D].

    Both figures are nan if no pair is of the same identity, or none of different ones.
    """
    query, gallery = F.normalize(query.float(), dim=1), F.normalize(gallery.float(), dim=1)
    counts = torch.zeros(2, BINS, dtype=torch.float64, device=query.device)  # different, same
    for rows in torch.split(torch.arange(len(query), device=query.device), chunk):
        bins = (((query[rows] @ gallery.T).clamp(-1, 1) + 1) / 2 * (BINS - 1)).round().long()
        same = query_pids[rows, None] == gallery_pids[None, :]
        for kind, mask in enumerate((~same, same)):
            counts[kind] += torch.bincount(bins[mask], minlength=BINS)
    totals = counts.sum(dim=1)
    if not totals.all():
        return Verification(float("nan"), float("nan"))
    below = counts.cumsum(dim=1) - counts  # pairs below each threshold
    accuracy = 0.5 * (below[0] / totals[0] + 1 - below[1] / totals[1])
    best = int(torch.argmax(accuracy))
    # All thresholds between two neighbouring cosines are equally accurate: take the middle, which suits new images best.
    plateau = int((accuracy[best:] < accuracy[best]).int().argmax()) or 1
    return Verification((best - 1 + plateau / 2) / (BINS - 1) * 2 - 1, float(accuracy[best]))


def _rank_matches(cosines: Tensor, same_pid: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and rank of the first match, [C] each, from matrices [C, G]; nan where no kept image matches."""
    order = cosines.argsort(dim=1, descending=True, stable=True)
    kept = kept.gather(1, order)
    matches = same_pid.gather(1, order) & kept
    ranks = kept.cumsum(1)
    precision = matches.cumsum(1).double() / ranks.clamp(min=1)
    total = matches.sum(1)
    ap = torch.where(matches, precision, 0).sum(1) / total  # 0 / 0 = nan marks a skipped query
    first = torch.where(matches, ranks, cosines.shape[1] + 1).amin(1)
    return ap, first


def _normalised(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be a matrix with at least one row, not {tuple(features.shape)}")
    features = features.float()  # before the check: finite float64 values may overflow
    if not features.isfinite().all():
        raise ValueError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")
    return F.normalize(features, dim=1)


def _check_lengths(features: Tensor, pids: Tensor, camids: Tensor) -> None:
    if pids.shape != features.shape[:1] or camids.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)}, {tuple(pids.shape)}, {tuple(camids.shape)}"
        raise ValueError(f"features, pids and camids must agree in length, not {shapes}")
