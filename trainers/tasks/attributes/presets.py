"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # A small network on ImageNet's weights for CPUs and small sets; its figures are in docs/attributes.md.
    "mobile": {
        "loader.size": (64, 64), "batch": 64, "model.backbone": "mobilenet_v2", "model.weights": "DEFAULT",
        "stage1.lr": 5e-4, "stage2.lr": 5e-4, "stage3.lr": 5e-4, "stage1.most": 333, "stage2.most": 333, "stage3.most": 334,
    },
}  # fmt: skip
