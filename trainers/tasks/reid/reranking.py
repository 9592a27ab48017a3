"""k-reciprocal re-ranking: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.

Two images that show the same identity have neighbours in common. The new distance of a query to a gallery image is lambda x their
original distance + (1 - lambda) x the Jaccard distance of their neighbourhoods. The original distance is the squared one of
normalised features, divided by the largest of its row. The result is that of the authors' program, without approximation. Equal
distances are ordered by index, queries before gallery images; the program leaves their order open.

No matrix of all images by all images is held. A neighbourhood is a sparse row: its entries take 8 bytes each, and as much again
in the inverted index. The time is that of N^2 cosines, and of choosing the nearest of each row.

Shapes: Q queries, G gallery images, N = Q + G of them, k = max(k1 + 1, k2) neighbours of an image, itself included; C rows of one
chunk, E entries of all rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.metrics import chunks, nearest, normalised

Ints = npt.NDArray[np.integer]
ROWS = 1024  # most rows of a chunk


class SparseRows(NamedTuple):
    """A matrix [N, N]: row i has ``weights`` float32 in ``columns`` int32, both [E], from ``starts[i]`` to ``starts[i + 1]``."""

    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def entries(self, rows: Ints) -> tuple[Ints, Ints]:
        """The entries of several rows one after another: for each its place in ``rows``, and its place among the E."""
        counts = (self.starts[1:] - self.starts[:-1])[rows]
        place = np.repeat(np.arange(len(rows)), counts)
        return place, np.arange(len(place)) + np.repeat(self.starts[rows] - (np.cumsum(counts) - counts), counts)

    @property
    def transposed(self) -> "SparseRows":
        """The inverted index: the rows that have an entry in each column, in order."""
        order = np.argsort(self.columns, kind="stable")
        size = len(self.starts) - 1
        rows = np.repeat(np.arange(size, dtype=np.int32), np.diff(self.starts))
        return SparseRows(_starts(np.bincount(self.columns, minlength=size)), rows[order], self.weights[order])


class Reranked:
    """Re-ranked distances of queries [Q, D] to gallery images [G, D]."""

    @torch.no_grad()
    def __init__(self, query: Tensor, gallery: Tensor, config: EvaluationConfig) -> None:
        """Find the neighbourhoods of all images. Raises ValueError for features that are not finite."""
        self.queries, self.weight = len(query), config.rerank_lambda
        self.features = normalised(torch.cat([query, gallery]))
        near, self.farthest = _neighbours(self.features, max(config.rerank_k1 + 1, config.rerank_k2))
        rows = _neighbourhoods(self.features, self.farthest, near, config.rerank_k1)
        self.rows = _averaged(rows, near[:, : config.rerank_k2])
        self.inverted = self.rows.transposed

    def scores(self, rows: Tensor) -> Tensor:
        """Negative distances of some queries, by their numbers [C], to the gallery: float32 [C, G]."""
        distances = _distances(self.features[rows] @ self.features.T) / self.farthest[rows, None]
        common = torch.from_numpy(np.stack([self._common(row) for row in rows.tolist()])).to(distances.device)
        jaccard = 1 - common / (2 - common)
        return -(jaccard * (1 - self.weight) + distances[:, self.queries :] * self.weight)

    def _common(self, row: int) -> npt.NDArray[np.float32]:
        """The sum over all columns of the smaller of a row's weight and that of each gallery image, [G]."""
        own = slice(self.rows.starts[row], self.rows.starts[row + 1])
        place, entries = self.inverted.entries(self.rows.columns[own])
        least = np.minimum(self.rows.weights[own][place], self.inverted.weights[entries])
        sums = np.bincount(self.inverted.columns[entries], weights=least, minlength=len(self.features))
        return sums[self.queries :].astype(np.float32)


def _distances(cosines: Tensor) -> Tensor:
    """Squared distances of features of length 1, in place."""
    return cosines.mul_(-2).add_(2).clamp_(min=0)


def _starts(counts: Ints) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _neighbours(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each image, int32 [N, k] on the CPU, and its largest distance [N]; all N if there are fewer."""
    near, farthest = [], []
    for rows in chunks(len(features), len(features), ROWS, features.device):
        cosines = features[rows] @ features.T
        near.append(nearest(cosines, min(k, len(features))).int().cpu())
        farthest.append(_distances(cosines.amin(1)))
    return torch.cat(near), torch.cat(farthest).clamp_(min=torch.finfo(torch.float32).tiny)  # of equal images all are 0 away


def _reciprocal(near: Tensor, rows: Tensor, k: int) -> Tensor:
    """Which of the first k neighbours of each row have it among their own first k: bool [C, k]."""
    own = near[rows, :k]
    return (near[own.long(), :k] == rows.int()[:, None, None]).any(2)


def _neighbourhoods(features: Tensor, farthest: Tensor, near: Tensor, k1: int) -> SparseRows:
    """The expanded k-reciprocal neighbours of each image, weighted by exp(-distance), a row's weights adding up to 1."""
    some, fewer = k1 + 1, round(k1 / 2) + 1  # with the image itself; halves to the even number, as numpy rounds
    mutual = torch.cat([_reciprocal(near, rows, fewer) for rows in chunks(len(near), fewer**2, ROWS, near.device)])
    counts, columns, weights = [], [], []
    for rows in chunks(len(near), some * fewer * some, ROWS, near.device):
        members = _expanded(near, mutual, rows, some)
        count = (members < len(near)).sum(1)
        flat, of = members[members < len(near)].long(), rows.repeat_interleave(count)
        distance = _distances((features[of.to(features.device)] * features[flat.to(features.device)]).sum(1))
        weight = (-distance / farthest[of.to(features.device)]).exp().cpu()
        total = torch.zeros(len(rows)).index_add_(0, of - rows[0], weight)
        counts.append(count.numpy())
        columns.append(flat.int().numpy())
        weights.append((weight / total[of - rows[0]]).numpy())
    return SparseRows(_starts(np.concatenate(counts)), np.concatenate(columns), np.concatenate(weights))


def _expanded(near: Tensor, mutual: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k-reciprocal neighbours of each row and those of its neighbours that share more than two thirds of theirs with it.

    ``mutual`` bool [N, F]: which of an image's first F neighbours are reciprocal. Returns int32 [C, ...]: each image once, N in
    the other places.
    """
    none = len(near)
    own = near[rows, :k].masked_fill(~_reciprocal(near, rows, k), none)
    candidates = own.clamp(max=none - 1).long()
    theirs = near[candidates, : mutual.shape[1]].masked_fill(~mutual[candidates], none)  # [C, k, F]
    theirs.masked_fill_((own == none)[:, :, None], none)
    shared = ((theirs[..., None] == own[:, None, None, :]).any(3) & (theirs < none)).sum(2)
    theirs.masked_fill_((3 * shared <= 2 * (theirs < none).sum(2))[:, :, None], none)
    members = torch.cat([own, theirs.flatten(1)], dim=1).sort(dim=1).values
    members[:, 1:].masked_fill_(members[:, 1:] == members[:, :-1], none)
    return members


def _averaged(rows: SparseRows, near: Tensor) -> SparseRows:
    """The mean of the rows of each image's nearest ones ``near`` [N, k2]: local query expansion."""
    size, k2 = near.shape
    if k2 == 1:
        return rows
    counts, columns, weights = [], [], []
    for part in chunks(size, k2 * 256, 1 << 16, near.device):
        place, entries = rows.entries(near[part].flatten().numpy())
        keys = place // k2 * size + rows.columns[entries]
        order = np.argsort(keys, kind="stable")
        first = np.flatnonzero(np.diff(keys[order], prepend=-1))
        kept = keys[order][first]
        columns.append((kept % size).astype(np.int32))
        weights.append((np.add.reduceat(rows.weights[entries][order], first) / k2).astype(np.float32))
        counts.append(np.bincount(kept // size, minlength=len(part)))
    return SparseRows(_starts(np.concatenate(counts)), np.concatenate(columns), np.concatenate(weights))
