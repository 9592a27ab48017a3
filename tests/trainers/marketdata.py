"""A small set in Market-1501's form, whose features are its pixels."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.loading.cache import CacheConfig
from datasets.pack import pack
from datasets.shards.index import Index

SIZE = (8, 4)
CPU = torch.device("cpu")
CACHE = CacheConfig()


class Pixels(nn.Module):
    """Features are pixels, in evaluation mode only."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1).float() - 128


def picture(identity: int, number: int) -> np.ndarray:
    """Noise around what an identity looks like."""
    look = np.random.default_rng(identity).integers(40, 216, (*SIZE, 3))
    noise = np.random.default_rng([identity, number]).integers(-60, 60, (*SIZE, 3))
    return np.clip(look + noise, 0, 255).astype(np.uint8)


def market_set(folder: Path) -> Index:
    """Five people with queries from camera 1 and images of cameras 1 to 3, junk and distractors."""
    names = [f"bounding_box_train/{pid:04d}_c1s1_{i:06d}_00.png" for pid in (2, 3) for i in range(2)]
    for pid in range(900, 905):
        names.append(f"query/{pid:04d}_c1s1_000099_00.png")
        names += [f"bounding_box_test/{pid:04d}_c{i % 3 + 1}s1_{i:06d}_00.png" for i in range(5)]
    names += [f"bounding_box_test/{pid}_c2s1_{i:06d}_00.png" for pid in ("-1", "0000") for i in range(3)]
    for place, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pid = int(path.name.split("_")[0])
        cv2.imwrite(str(path), picture(900 if pid == -1 else pid, place)[:, :, ::-1])  # junk looks like somebody
    return pack("market1501", folder / "images", str(folder / "shards"))
