"""Features of a split's images, which all ranks embed together, and of files; galleries ranked for them. D features."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.store import read_samples
from datasets.loading.workers import load_in_workers
from datasets.media.augment import resize
from datasets.media.decode import Image, decode
from datasets.shards.index import JUNK, Index, Split, split_of
from trainers.engine.inputs import InputFile, read_image
from trainers.tasks.reid.metrics import rank

CHUNK = 128  # images embedded at once
ALONE = RankSlice(0, 1)


class Embedded(NamedTuple):
    """The features [n, D] of a split, with the identity, camera and position of each [n]; on the CPU."""

    features: Tensor
    pids: Tensor
    camids: Tensor
    positions: Tensor


class FlipTest(nn.Module):
    """An embedder whose features of an image are the sum of its own and those of its mirror image."""

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder
        self.train(embedder.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features [B, D] of images [B, 3, H, W]."""
        features: Tensor = self.embedder(images) + self.embedder(images.flip(3))
        return features


@torch.no_grad()
def embed(
    embedder: nn.Module, split: Split, chunks: Iterable[dict[str, Any]], device: torch.device,
    group: dist.ProcessGroup | None, bad: list[str],
) -> Embedded:  # fmt: skip
    """Features of the images of all ranks, ordered by position. Images that this rank could not read are added to ``bad``.

    Raises:
        InputError: no rank could read any.
    """
    training = embedder.training
    embedder.eval()
    features, positions = [], []
    for chunk in chunks:
        bad.extend(chunk["bad"])
        if len(chunk["positions"]):
            features.append(embedder(chunk["images"].to(device)).float().cpu())
            positions.append(chunk["positions"])
    embedder.train(training)
    mine = (torch.cat(features) if features else None, torch.cat(positions) if positions else None)
    parts: list[Any] = [mine]
    if group is not None:
        parts = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, mine, group=group)
    if not any(p is not None for _, p in parts):
        raise InputError(f"no image of split '{split.name}' can be read", split.index.url, "see `python -m datasets.inspect`")
    place = torch.cat([p for _, p in parts if p is not None])
    order = torch.argsort(place)
    place = place[order]
    samples = split.samples(place.numpy())
    pids = torch.from_numpy(split.index.identity_of(samples).astype("int64"))
    if JUNK in split.index.identities:
        pids[pids == split.index.identities.index(JUNK)] = -1
    camids = torch.from_numpy(split.index.samples["camera"][samples].astype("int64"))
    return Embedded(torch.cat([f for f, _ in parts if f is not None])[order], pids, camids, place)


class Found(NamedTuple):
    """A gallery image, and its cosine to the query."""

    name: str
    image: Image
    cosine: float


@torch.no_grad()
def embed_files(embedder: nn.Module, files: Sequence[InputFile], size: tuple[int, int], device: torch.device) -> Tensor:
    """Features of image files, [n, D].

    Raises:
        InputError: a file cannot be read or is not an image.
    """
    features = []
    for start in range(0, len(files), CHUNK):
        images = [torch.from_numpy(resize(read_image(file), size)).permute(2, 0, 1) for file in files[start : start + CHUNK]]
        features.append(embedder(torch.stack(images).to(device)).float().cpu())
    return torch.cat(features)


def rank_files(
    embedder: nn.Module, queries: Tensor, files: Sequence[InputFile], top: int, size: tuple[int, int], device: torch.device
) -> list[list[Found]]:
    """For each query [Q, D] the ``top`` most similar images, best first; raises InputError if one cannot be read."""
    order, cosines = rank(queries, embed_files(embedder, files, size, device), top)
    rows = zip(order.tolist(), cosines.tolist(), strict=True)
    return [[Found(files[i].name, read_image(files[i]), c) for i, c in zip(*row, strict=True)] for row in rows]


def rank_split(
    embedder: nn.Module, queries: Tensor, index: Index, top: int, size: tuple[int, int], device: torch.device,
    etags: dict[str, str], cache: CacheConfig,
) -> list[list[Found]]:  # fmt: skip
    """As `rank_files`, for the gallery of a set. An image's name is its key, which begins with its identity."""
    split, bad = split_of(index, "gallery"), list[str]()
    chunks = load_in_workers(SplitStream(split, size, cache, etags, ALONE, CHUNK), 1)
    gallery = embed(embedder, split, chunks, device, None, bad)
    for failure in bad:
        print(f"could not be read and was left out: {failure}")
    order, cosines = rank(queries, gallery.features, top)
    found = []
    for row, cosine in zip(order, cosines.tolist(), strict=True):
        samples = split.samples(gallery.positions[row].numpy())
        data = read_samples(index, samples)
        images = [decode(item) for item in data if not isinstance(item, ValueError)]
        found.append([Found(index.keys[s], image, c) for s, image, c in zip(samples, images, cosine, strict=True)])
    return found
