"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

ACTION_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Narrow networks from random weights, for short clips of small frames on CPUs; their figures are in docs/actions.md.
    "small-clips": {
        "clip.frames": 24, "clip.size": (48, 64), "batch": 16, "model.width": 16, "optim.lr": 2e-3, "optim.steps": 1000,
    },
}  # fmt: skip
