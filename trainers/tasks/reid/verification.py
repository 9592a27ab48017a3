"""Verification: are two images of the same identity? The cosine above which that is said, and how often it is right."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 4001  # the threshold is found to 0.0005


class Verification(NamedTuple):
    """``threshold``: the cosine from which two images count as the same; ``accuracy``: balanced over both."""

    threshold: float
    accuracy: float


@torch.no_grad()
def best_threshold(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor, chunk: int = 256) -> Verification:
    """The threshold of the highest balanced accuracy over all pairs of a query [Q, D] and a gallery image [G, D].

    With no pair of the same identity, or none of different ones, there is nothing to choose by: nan.
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
    below = counts.cumsum(dim=1) - counts  # pairs under each threshold
    accuracy = 0.5 * (below[0] / totals[0] + 1 - below[1] / totals[1])
    best = int(torch.argmax(accuracy))
    # Where no pair lies, thresholds are as good as each other: the middle of such a gap serves new images best.
    plateau = int((accuracy[best:] < accuracy[best]).int().argmax()) or 1
    return Verification((best - 1 + plateau / 2) / (BINS - 1) * 2 - 1, float(accuracy[best]))
