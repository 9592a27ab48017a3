"""Random augmentation of training clips: speed, turn, zoom, colours, a hidden rectangle, hidden frames.

A clip's frames are all changed in the same way, so that its motion stays. The random numbers of a whole global batch come from
one generator of (seed, step), so the result for a clip does not depend on the worker that prepares it.
L frames of a clip, B clips of the global batch, H x W training size.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np

from datasets.errors import InputError
from datasets.media.augment import MEAN
from datasets.media.flow import STILL
from datasets.seeding import generator
from datasets.shards.frame_strips import Frames


@dataclass(frozen=True)
class ClipAugmentConfig:
    """Random changes of training clips, besides the crop and the mirroring; all frames of a clip are changed alike."""

    speed: float = 0.0
    """Play clips faster or slower, by a factor of up to 1 + this in either direction; of skeletons the only change."""
    turn: float = 0.0
    """Rotate about the centre by up to this many degrees, in either direction."""
    zoom: float = 0.0
    """Enlarge or shrink by a factor of up to 1 + this."""
    jitter: float = 0.0
    """Change brightness and contrast, each by up to this fraction; not of flow."""
    erase: float = 0.0
    """Fraction of clips in which a random rectangle is hidden, the same in all frames."""
    hide: float = 0.0
    """Hide successive frames, up to this fraction of a clip's."""

    def __post_init__(self) -> None:
        for field in fields(self):
            most = 180 if field.name == "turn" else 1
            if not 0 <= getattr(self, field.name) <= most:
                what = f"augment.{field.name} is {getattr(self, field.name)}"
                raise InputError(what, "augment", f"give {'degrees' if most == 180 else 'a fraction'} from 0 to {most}")


class ClipChange(NamedTuple):
    """How a clip is changed. ``box``: top, left, height and width as fractions; ``hidden``: first and last frame as fractions."""

    speed: float = 1.0
    turn: float = 0.0
    zoom: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    hidden: tuple[float, float] = (0.0, 0.0)

    def apply(self, frames: Frames, stream: str) -> Frames:
        """Change all but the speed of frames uint8 [L, H, W, 3]; skeletons stay as they are."""
        if stream == "skeletons" or self[1:] == ClipChange()[1:]:
            return frames
        count, height, width = frames.shape[:3]
        if self.turn or self.zoom != 1:
            matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -self.turn, self.zoom)
            moved = [cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE) for frame in frames]
            out = np.stack(moved)
        else:
            out = frames.copy()
        if stream != "flow" and (self.brightness, self.contrast) != (1, 1):
            levels = ((np.arange(256) - MEAN.mean()) * self.contrast + MEAN.mean()) * self.brightness
            out = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[out]
        nothing = STILL if stream == "flow" else MEAN
        top, left, tall, wide = self.box
        rows, columns = (
            slice(round(top * height), round((top + tall) * height)),
            slice(round(left * width), round((left + wide) * width)),
        )
        out[:, rows, columns] = nothing
        out[round(self.hidden[0] * count) : round(self.hidden[1] * count)] = nothing
        return out


def draw_clip_changes(config: ClipAugmentConfig, batch: int, seed: int, step: int) -> list[ClipChange]:
    """Draw the changes of a step's global batch, [B]."""
    if config == ClipAugmentConfig():
        return [ClipChange()] * batch
    u = generator(seed, "clip changes", step).random((batch, 12)).tolist()
    return [_change(config, row) for row in u]


def _change(config: ClipAugmentConfig, u: list[float]) -> ClipChange:
    """The change of a clip by its random numbers ``u`` from 0 to 1."""
    speed, turn, zoom, brightness, contrast = (2 * value - 1 for value in u[:5])
    tall, wide = ((0.2 + 0.3 * value) * (u[7] < config.erase) for value in u[5:7])
    hidden = u[10] * config.hide
    first = u[11] * (1 - hidden)
    return ClipChange(
        (1 + config.speed) ** speed, turn * config.turn, (1 + config.zoom) ** zoom,
        1 + brightness * config.jitter, 1 + contrast * config.jitter,
        (u[8] * (1 - tall), u[9] * (1 - wide), tall, wide), (first, first + hidden),
    )  # fmt: skip
