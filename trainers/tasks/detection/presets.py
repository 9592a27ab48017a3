"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The tables of docs/detection.md: cells of 20 to 160 pixels in images with a short side of 256, in minutes on one CPU core.
    # MobileNetV2 with a narrow pyramid and head; one anchor a level, of the cells' sizes. The burn-in is a third of the steps.
    "cells": {
        "side": 256, "batch": 4, "begin": 100,
        "model.backbone": "timm/mobilenetv2_100", "model.weights": "timm", "model.anchors": (24, 48, 96, 160),
        "model.pyramid": 64, "model.hidden": 256, "model.regions": 64,
        "optim.steps": 300, "optim.warmup": 30, "optim.lr": 1e-3,
    },
}  # fmt: skip
