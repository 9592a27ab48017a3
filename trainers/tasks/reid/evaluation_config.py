"""Settings of evaluations."""

from dataclasses import dataclass

from datasets.errors import InputError


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is evaluated; its weights do not depend on it."""

    flip: bool = False
    """Flip test: an image's features are the sum of its own and those of its mirror image. This doubles the time."""
    rerank: bool = False
    """Also report figures after k-reciprocal re-ranking, beside the plain ones."""
    rerank_k1: int = 20
    """Neighbours that count in re-ranking: two images are related if each is among the other's k1 nearest."""
    rerank_k2: int = 6
    """Nearest images, itself included, over which re-ranking averages an image's neighbourhood; 1: none but itself."""
    rerank_lambda: float = 0.3
    """Weight of the original distance after re-ranking, in 0..1; the rest is the Jaccard distance of the neighbourhoods."""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if self.rerank_k1 < 1 or self.rerank_k2 < 1:
            raise InputError(
                "rerank_k1 and rerank_k2 must be at least 1", f"{self.rerank_k1} and {self.rerank_k2}", "use 20 and 6"
            )
        if not 0 <= self.rerank_lambda <= 1:
            raise InputError("rerank_lambda must be in 0..1", str(self.rerank_lambda), "use 0.3")
