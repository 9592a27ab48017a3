"""Settings of the classifier's head: which loss, which margin."""

import math
from dataclasses import dataclass
from typing import Literal

from datasets.errors import InputError

_MARGIN = {"sphereface": 4.0, "cosface": 0.35, "arcface": 0.5}  # as published


# Of the first rows. The longer a row, the less a step turns it; the library's would begin sqrt(D) long.
INITIAL_STD = {"softmax": 0.001, "sphereface": 0.01, "cosface": 0.01, "arcface": 0.01}


_LARGEST_MARGIN = {"sphereface": 8.0, "cosface": 1.0, "arcface": math.pi / 2}


@dataclass(frozen=True)
class HeadConfig:
    """The identity loss, and the weight of a triplet loss beside it.

    SphereFace's published margin of 4 starts badly under SGD: its paper anneals it in, we don't. Adam, or a margin of 2, copes.
    """

    kind: Literal["softmax", "sphereface", "cosface", "arcface"] = "cosface"
    """How identities are told apart: by plain softmax, or with a margin between them."""
    margin: float | None = None
    """sphereface: multiple of the angle (None: 4); cosface: cosine (0.35); arcface: radians (0.5); softmax has none."""
    scale: float | None = None
    """What multiplies the cosines (None: sqrt 2 ln(N - 1)), or in sphereface the feature norms (1); softmax has none."""
    triplet: float = 0.0
    """Weight of the triplet loss, whose triplets are sought in the batch of all workers together; 0 leaves it out."""
    triplet_margin: float = 0.3
    """By how much the farthest image of the same identity must be nearer than the nearest one of another."""
    parallel: bool = False
    """Each worker holds N / R of the rows instead of all, so that more identities fit; as exact."""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if self.kind != "softmax" and self.kind not in _MARGIN:
            raise InputError("unknown head", self.kind, f"use one of softmax, {', '.join(_MARGIN)}")
        if self.kind == "softmax" and (self.margin is not None or self.scale is not None):
            raise InputError("the softmax head takes no margin and no scale", "", "leave them out, or choose cosface")
        if self.kind != "softmax":
            margin, scale = self.resolved(identities=2)
            largest = _LARGEST_MARGIN[self.kind]
            if not 0 <= margin <= largest:
                raise InputError(f"the margin of {self.kind} must be in 0..{largest:.4g}", str(margin))
            if self.kind == "sphereface" and (margin < 1 or margin != int(margin)):
                raise InputError("the margin of sphereface must be a whole number from 1", str(margin), "use 4")
            if not 0 < scale < math.inf:
                raise InputError("the scale of a head must be positive", str(scale))
        if not (0 <= self.triplet < math.inf and 0 <= self.triplet_margin < math.inf):
            where = f"weight {self.triplet}, margin {self.triplet_margin}"
            raise InputError("the triplet loss's weight and margin must not be negative", where)

    def resolved(self, identities: int) -> tuple[float, float]:
        """Margin and scale, for the heads that have them; those that are not set are chosen.

        CosFace and ArcFace are published with a scale of 64, for tens of thousands of faces. With hundreds of identities a model
        hardly trains by it from random weights (measured: README), so the scale follows their number N: sqrt(2) ln(N - 1), the
        fixed AdaCos (Zhang et al., CVPR 2019, eq. 12), which is 7.3 for 182 and 16 for 100,000.
        """
        margin = _MARGIN[self.kind] if self.margin is None else self.margin
        if self.scale is not None:
            return margin, self.scale
        return margin, 1.0 if self.kind == "sphereface" else max(1.0, math.sqrt(2) * math.log(identities - 1))
