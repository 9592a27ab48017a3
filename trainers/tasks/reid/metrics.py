"""Figures of a ranking: how high the images of a query's own identity rank in a gallery ordered by score.

Shapes: Q queries, G gallery images, D features, C queries of one chunk, M the most matches of a query in the chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.errors import InputError

JUNK = -1
ENTRIES = 1 << 24  # of a chunk's matrices: 16 million, at 4 to 8 bytes each
LAST = torch.iinfo(torch.int64).max  # a place behind all others

Scores = Callable[[Tensor], Tensor]  # numbers of queries [C] -> scores float32 [C, G], the best highest


class Side(NamedTuple):
    """Identities and cameras of images: integers [n] each. A negative camera is unknown; identity -1 is junk."""

    pids: Tensor
    camids: Tensor


@dataclass(frozen=True)
class RankingResult:
    """Figures in 0..1 over the valid queries; ``ap`` float64 [Q], on the CPU, is nan for skipped queries."""

    mean_ap: float
    mean_inp: float
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
    """Figures (`evaluate_scores`) of the cosines of features [Q, D] to [G, D]. Runs on the device of the features.

    Raises:
        ValueError: wrong shapes, or features that are not finite.
        InputError: no query has a match.
    """
    query, gallery = normalised(query), normalised(gallery)
    _check_lengths(query, query_pids, query_camids)
    _check_lengths(gallery, gallery_pids, gallery_camids)
    asked = Side(query_pids.to(query.device), query_camids.to(query.device))
    images = Side(gallery_pids.to(query.device), gallery_camids.to(query.device))
    return evaluate_scores(lambda rows: query[rows] @ gallery.T, asked, images, ranks, chunk)


@torch.no_grad()
def evaluate_scores(
    scores: Scores, query: Side, gallery: Side, ranks: tuple[int, ...] = (1, 5, 10), chunk: int = 256
) -> RankingResult:
    """Mean average precision, mINP and CMC of a ranking by score, as for Market-1501 (Zheng et al., ICCV 2015).

    For each query, gallery images of its identity *and* its camera are left out, and so is junk (pid -1). Identities without a
    query stay in the gallery as distractors. A negative camera is unknown and equals no other. Queries that are junk or have no
    match left are skipped. Equal scores are ordered by gallery index. Average precision is the mean over the matches of the
    precision at each (as in scikit-learn), not the trapezoid rule of the data set's first scripts. mINP is the mean over queries
    of the precision at the last match (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI
    2021). cmc[k] is the fraction of queries with a match among the first k.

    Nothing is sorted but the matches: the rank of a match is one more than the number of images before it. ``chunk``: queries
    ranked at a time; fewer for a large gallery, so that a chunk takes about 0.4 GB.

    Raises:
        InputError: no query has a match.
    """
    aps, inps, firsts = [], [], []
    for rows in chunks(len(query.pids), len(gallery.pids), chunk, query.pids.device):
        same_pid = query.pids[rows, None] == gallery.pids
        kept = same_pid & (query.camids[rows, None] == gallery.camids) & (gallery.camids >= 0)
        kept.logical_not_().logical_and_(gallery.pids != JUNK)
        ap, inp, first = _figures_of(_match_ranks(scores(rows), same_pid.logical_and_(kept), kept))
        aps.append(ap)
        inps.append(inp)
        firsts.append(first)
    ap, inp, first = torch.cat(aps).cpu(), torch.cat(inps).cpu(), torch.cat(firsts).cpu()
    valid = ~ap.isnan()
    if not valid.any():
        remedy = "the gallery needs images of the queries' identities from other cameras"
        raise InputError("no query has a match in the gallery", f"{len(ap)} queries", remedy)
    return RankingResult(
        mean_ap=ap[valid].mean().item(),
        mean_inp=inp[valid].mean().item(),
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
    query, gallery = normalised(query if query.ndim == 2 else query[None]), normalised(gallery)
    orders, cosines = [], []
    for rows in chunks(len(query), len(gallery), 256, query.device):
        scores = query[rows] @ gallery.T
        orders.append(nearest(scores, min(top, len(gallery))))
        cosines.append(scores.gather(1, orders[-1]))
    return torch.cat(orders), torch.cat(cosines)


def chunks(rows: int, columns: int, most: int, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers of ``rows`` in parts: at most ``most`` at a time, and so few that a part's matrix has about `ENTRIES`."""
    return torch.split(torch.arange(rows, device=device), max(1, min(most, ENTRIES // columns)))


def nearest(scores: Tensor, top: int) -> Tensor:
    """The columns of the ``top`` highest scores of each row [C, G], best first: int64 [C, top]; equal ones ordered by index."""
    return _places(scores).topk(top, dim=1, largest=False).values & 0xFFFFFFFF


def normalised(features: Tensor) -> Tensor:
    """Features [n, D] of length 1, in float32; a zero stays one. Raises ValueError if there are none, or they are not finite."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be a matrix with at least one row, not {tuple(features.shape)}")
    features = features.float()  # before the check: finite float64 values may overflow
    if not features.isfinite().all():
        raise ValueError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")
    return F.normalize(features, dim=1)


def _places(scores: Tensor) -> Tensor:
    """A number int64 for each score [C, G]: the lower, the earlier in the ranking. No two of a row are equal.

    The upper half orders by score: the bits of float32 values order as integers once those of negative values are turned round.
    The lower half is the column.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: -0.0 and 0.0 are equal scores
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).bitwise_not_()
    return bits.long().bitwise_left_shift_(32).bitwise_or_(torch.arange(scores.shape[1], device=scores.device))


def _match_ranks(scores: Tensor, matches: Tensor, kept: Tensor) -> Tensor:
    """The ranks of each row's matches among its kept images, from 1 upwards, int64 [C, M]; 0 after a row's last match.

    ``scores`` float32, ``matches`` and ``kept`` bool: [C, G]. All matches are kept.
    """
    rows, columns = matches.nonzero(as_tuple=True)
    counts = matches.sum(1)
    most = int(counts.max())
    places = _places(scores)
    ordered = torch.full((len(scores), most), LAST, device=scores.device)
    first = counts.cumsum(0) - counts
    ordered[rows, torch.arange(len(rows), device=rows.device) - first[rows]] = places[rows, columns]
    ordered = ordered.sort(dim=1).values
    before = torch.searchsorted(ordered, places, out_int32=True)  # matches that rank before an image
    before.masked_fill_(~kept, most)
    before += torch.arange(0, len(scores) * (most + 1), most + 1, dtype=torch.int32, device=scores.device)[:, None]
    images = torch.bincount(before.flatten(), minlength=len(scores) * (most + 1)).view(-1, most + 1)[:, :most]
    return images.cumsum(1).masked_fill_(ordered == LAST, 0)


def _figures_of(ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision, inverse negative penalty (nan without a match) and rank of the first match, [C] each, from [C, M]."""
    found = ranks > 0
    total = found.sum(1)
    precision = torch.arange(1, ranks.shape[1] + 1, device=ranks.device).double() / ranks.clamp(min=1)
    ap = torch.where(found, precision, 0).sum(1) / total  # 0 / 0 = nan marks a skipped query
    inp = total.double() / F.pad(ranks, (1, 0)).amax(1)  # as above
    return ap, inp, F.pad(ranks, (0, 1))[:, 0]


def _check_lengths(features: Tensor, pids: Tensor, camids: Tensor) -> None:
    if pids.shape != features.shape[:1] or camids.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)}, {tuple(pids.shape)}, {tuple(camids.shape)}"
        raise ValueError(f"features, pids and camids must agree in length, not {shapes}")
