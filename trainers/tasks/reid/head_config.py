"""Settings of the losses: the classification head over identities, and a loss over pairs of a batch's images."""

import math
from dataclasses import dataclass
from typing import Literal

from datasets.errors import InputError

_MARGIN = {"sphereface": 4.0, "cosface": 0.35, "arcface": 0.5, "adaface": 0.4}  # as published
# Standard deviation of the initial rows. A step turns a long row less; pytorch-metric-learning's have length sqrt(D).
INITIAL_STD = {"softmax": 0.001, "sphereface": 0.01, "cosface": 0.01, "arcface": 0.01, "adaface": 0.01}
_LARGEST_MARGIN = {"sphereface": 8.0, "cosface": 1.0, "arcface": math.pi / 2, "adaface": 1.0}


@dataclass(frozen=True)
class HeadConfig:
    """The loss over identities.

    SphereFace's published margin of 4 starts badly under SGD: its paper raises it gradually, we don't. Use Adam, or margin 2.
    """

    kind: Literal["softmax", "sphereface", "cosface", "arcface", "adaface"] = "cosface"
    """The classification loss over identities: plain softmax, or one with a margin."""
    margin: float | None = None
    """The margin: a factor of the angle in sphereface (None: 4), a cosine in cosface (0.35), radians in arcface (0.5), both in
    adaface (0.4)."""
    scale: float | None = None
    """Factor of the cosines (None: sqrt 2 ln(N - 1), N identities), in sphereface of the feature norms (None: 1)."""
    smoothing: float = 0.0
    """Label smoothing: this fraction of the target is spread evenly over all identities (Szegedy et al., CVPR 2016)."""
    centres: int = 1
    """Rows of an identity in cosface and arcface: a sample is compared with the nearest, so that images with a wrong label gather
    at other ones (Sub-center ArcFace, Deng et al., ECCV 2020, with 3)."""
    filter: float | None = None
    """Identities whose cosine to a sample is above this are no negatives for it: they may show the same person (inter-class
    filtering, as in insightface's arcface_torch). None: all others are."""
    filter_from: int = 0
    """Steps before the filter begins."""
    parallel: bool = False
    """Divide the N rows among the R workers instead of replicating them, so that more identities fit; the loss stays exact."""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if self.kind != "softmax" and self.kind not in _MARGIN:
            raise InputError("unknown head", self.kind, f"use one of softmax, {', '.join(_MARGIN)}")
        if self.kind == "softmax" and (self.margin is not None or self.scale is not None):
            remedy = "leave them out (of a preset: --head.margin None --head.scale None), or choose cosface"
            raise InputError("the softmax head takes no margin and no scale", "", remedy)
        if self.kind != "softmax":
            margin, scale = self.resolved(identities=2)
            largest = _LARGEST_MARGIN[self.kind]
            if not 0 <= margin <= largest:
                raise InputError(f"the margin of {self.kind} must be in 0..{largest:.4g}", str(margin))
            if self.kind == "sphereface" and (margin < 1 or margin != int(margin)):
                raise InputError("the margin of sphereface must be a whole number from 1", str(margin), "use 4")
            if not 0 < scale < math.inf:
                raise InputError("the scale of a head must be positive", str(scale))
        if not 0 <= self.smoothing < 1:
            raise InputError(f"head.smoothing is {self.smoothing}", "head", "give a fraction from 0 to below 1, such as 0.1")
        if self.centres < 1 or (self.centres > 1 and self.kind not in ("cosface", "arcface")):
            raise InputError(f"{self.kind} with {self.centres} centres", "head.centres", "give 1, or more for cosface or arcface")
        if self.kind == "softmax" and self.filter is not None:
            raise InputError("the softmax head has no cosines to filter by", "head.filter", "leave it out, or choose cosface")
        if self.filter is not None and not 0 < self.filter < 1:
            raise InputError(f"head.filter is {self.filter}", "head", "give a cosine between 0 and 1, such as 0.4")
        if self.filter_from < 0 or (self.filter_from and self.filter is None):
            raise InputError(f"head.filter_from is {self.filter_from}", "head", "give 0 or more steps, with --head.filter")

    def resolved(self, identities: int) -> tuple[float, float]:
        """Margin and scale of a head that has them, with defaults for those that are None.

        CosFace and ArcFace were published with a scale of 64, for tens of thousands of faces. With hundreds of identities a model
        hardly trains with it from random weights (measured: docs/claims.md). So the default follows the number of identities N:
        sqrt(2) ln(N - 1), the fixed AdaCos (Zhang et al., CVPR 2019, eq. 12), which is 7.3 for 182 and 16 for 100,000.
        """
        margin = _MARGIN[self.kind] if self.margin is None else self.margin
        if self.scale is not None:
            return margin, self.scale
        return margin, 1.0 if self.kind == "sphereface" else max(1.0, math.sqrt(2) * math.log(identities - 1))


PairKind = Literal["none", "triplet", "soft_triplet", "circle", "supcon"]
# Margin and scale: those of the papers, but circle has half of its published scale for people (128); of soft_triplet our own.
_PAIR_DEFAULTS = {"triplet": (0.3, 1.0), "soft_triplet": (0.1, 10.0), "circle": (0.25, 64.0), "supcon": (0.0, 10.0)}


@dataclass(frozen=True)
class PairConfig:
    """A loss over pairs of a batch's images, added to the identity loss. It needs several images of an identity in a batch."""

    kind: PairKind = "none"
    """none, triplet (distances before the neck); or of cosines after it: soft_triplet, circle, supcon (docs/reid.md)."""
    weight: float | None = None
    """Factor of this loss; the identity loss has 1. None: of soft_triplet a 20th of the head's scale, of the others 1."""
    margin: float | None = None
    """The margin: a distance in triplet (None: 0.3), a cosine in soft_triplet (0.1) and circle (0.25); supcon has none."""
    scale: float | None = None
    """Factor of the cosines: soft_triplet (None: 10), circle (64), supcon (10: a temperature of 0.1); triplet has none."""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if self.kind not in ("none", *_PAIR_DEFAULTS):
            raise InputError("unknown pair loss", self.kind, f"use one of none, {', '.join(_PAIR_DEFAULTS)}")
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise InputError("the weight of the pair loss must be positive", str(self.weight), "--pair.kind none: no loss")
        without = {"none": ("margin", "scale"), "triplet": ("scale",), "supcon": ("margin",)}.get(self.kind, ())
        for name in without:
            if getattr(self, name) is not None:
                raise InputError(f"the pair loss '{self.kind}' has no {name}", f"pair.{name}", "leave it out")
        margin, scale = self.resolved
        if not (0 <= margin < math.inf and 0 < scale < math.inf):
            raise InputError("the pair loss needs a margin of 0 or more and a positive scale", f"margin {margin}, scale {scale}")

    def weight_beside(self, head: HeadConfig, identities: int) -> float:
        """The factor of this loss beside a head over so many identities.

        The gradient of a head on cosines grows with its scale, that of the pair loss does not: a weight that is good beside a
        scale of 20 costs accuracy beside one of 8 (docs/claims.md). So by default soft_triplet's weight follows the scale.
        """
        if self.weight is not None:
            return self.weight
        on_cosines = self.kind == "soft_triplet" and head.kind not in ("softmax", "sphereface")  # these take feature norms
        return head.resolved(identities)[1] / 20 if on_cosines else 1.0

    @property
    def resolved(self) -> tuple[float, float]:
        """Margin and scale, with the kind's defaults for those that are None."""
        margin, scale = _PAIR_DEFAULTS.get(self.kind, (0.0, 1.0))
        return margin if self.margin is None else self.margin, scale if self.scale is None else self.scale
