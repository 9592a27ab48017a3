"""Optical flow between neighbouring frames, stored as bytes. T frames of H x W.

A byte b stands for (b - 128) * STEP pixels, so no motion is exactly 128 and the opposite motion is 256 - b. Flow is clipped at
LIMIT pixels, as in two-stream networks (Carreira and Zisserman, CVPR 2017).
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

LIMIT = 20.0
STEP = LIMIT / 127
STILL = 128
SMALLEST = 12  # pixels of a side that OpenCV's DIS takes

METHOD = "TV-L1" if hasattr(cv2, "optflow") else "DIS"  # TV-L1 is in OpenCV's contrib modules


def to_bytes(flow: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Convert pixels per frame to bytes, clipped at LIMIT."""
    return (np.round(np.clip(flow, -LIMIT, LIMIT) / STEP) + STILL).astype(np.uint8)


def from_bytes(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Invert `to_bytes`, within half a STEP where it did not clip."""
    return ((stored.astype(np.float32) - STILL) * STEP).astype(np.float32)


def mirrored(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the stored flow [..., H, W, 3] of mirrored frames: left and right are swapped, in place and in direction."""
    out = stored[..., ::-1, :].copy()
    out[..., 0] = STILL - (out[..., 0].astype(np.int16) - STILL)
    return out


def flow_of(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Compute the flow from each frame to the next: RGB frames [T, H, W, 3] -> uint8 [T - 1, H, W, 3] (right, down, 128).

    Raises:
        ValueError: the frames are too small, or fewer than two.
    """
    height, width = frames.shape[1:3]
    if len(frames) < 2 or min(height, width) < SMALLEST:
        raise ValueError(f"{len(frames)} frames of {height}x{width}: flow needs two, of {SMALLEST} pixels or more")
    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if METHOD == "TV-L1":
        method = cv2.optflow.createOptFlow_DualTVL1()  # type: ignore[attr-defined]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    out = np.full((len(frames) - 1, *frames.shape[1:]), STILL, np.uint8)
    for place in range(len(out)):
        out[place, ..., :2] = to_bytes(method.calc(grey[place], grey[place + 1], None))
    return out
