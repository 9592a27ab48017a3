"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

ACTION_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Narrow networks from random weights, for short clips of small frames on CPUs; their figures are in docs/actions.md.
    "small-clips": {
        "clip.frames": 24, "clip.sample": "even", "clip.size": (48, 64), "clip.flip": True, "batch": 16,
        "model.width": 16, "model.dropout": 0.3, "optim.lr": 2e-3, "optim.steps": 1200,
    },
    # Clips of joints, in half a minute of CPU time; its figures are there, too.
    "skeletons": {
        "clip.frames": 32, "clip.sample": "even", "batch": 32,
        "model.name": "skeleton_cnn", "optim.lr": 1e-3, "optim.clip": 1.0, "optim.steps": 600,
    },
}  # fmt: skip

SEQUENCE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Small pictures of mouths, on CPUs. Its figures are in docs/sequences.md.
    "lips": {
        "clip.size": (24, 32), "clip.stride": 3, "flat_start": 0.4,
        "augment.speed": 0.25, "augment.turn": 8.0, "augment.zoom": 0.12, "augment.jitter": 0.2,
        "model.encoder": "tcn", "model.motion": True,
        "optim.lr": 2e-3, "optim.steps": 1500,
    },
    # Recordings of joints. Its figures are there, too.
    "joints": {
        "clip.stride": 2, "batch": 16, "flat_start": 0.3, "augment.speed": 0.25,
        "optim.lr": 2e-3, "optim.steps": 1500,
    },
}  # fmt: skip
