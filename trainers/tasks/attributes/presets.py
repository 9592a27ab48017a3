"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # A small network on ImageNet's weights for CPUs and small sets; its figures are in docs/attributes.md. The thresholds are for
    # the tasks of that data; they were chosen, as the rest was, on a part of the training images.
    "mobile": {
        "loader.size": (96, 96), "batch": 64, "model.backbone": "mobilenet_v2", "model.weights": "DEFAULT",
        "stage*.lr": 2e-3, "stage*.most": 200, "stage1.threshold": 1.5, "stage2.threshold": 2.3, "stage3.weights.pose": 4.0,
    },
}  # fmt: skip
