"""Counters of one rank's loader: samples, skipped samples, GETs, bytes, and draws by difficulty decile."""

import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.loading.batches import Batch
from datasets.loading.store import COUNTS
from datasets.sampling.difficulty_table import DifficultyTable

DECILES = 10


class LoaderStats:
    """Sums over one rank's batches: samples, skipped samples, draws by difficulty decile, reads and bytes from storage.

    ``workers``: the number of its loader processes. ``versions``: the difficulty vectors that samples are drawn by; None: they
    are not drawn by difficulty.
    """

    def __init__(self, workers: int, versions: DifficultyTable | None = None) -> None:
        self.samples = self.skipped = 0
        self.draws = np.zeros(DECILES, np.int64)
        self._versions, self._version = versions, 0
        self._edges: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._storage: list[dict[str, int]] = [dict.fromkeys(COUNTS, 0) for _ in range(max(workers, 1))]

    def count(self, batch: Batch) -> None:
        """Count a batch."""
        self.samples += len(batch["labels"])
        self.skipped += len(batch["bad"])
        self._storage[batch["step"] % len(self._storage)] = batch["storage"]  # loader processes take steps in turn
        difficulty = self._versions.get(batch["version"]) if self._versions else None
        if difficulty is not None:
            if difficulty.version != self._version:
                self._version = difficulty.version
                self._edges = np.quantile(difficulty.cosine, np.arange(1, DECILES) / DECILES).astype(np.float32)
            deciles = np.searchsorted(self._edges, difficulty.cosine[batch["labels"].numpy()], side="right")
            self.draws += np.bincount(deciles, minlength=DECILES)

    @property
    def counts(self) -> dict[str, float]:
        """``samples``, ``skipped`` (unreadable ones, replaced), the stores' COUNTS, and ``draws_0`` .. ``draws_9``.

        The last ten count the samples of batches drawn by difficulty, from the easiest tenth of the identities to the hardest.
        """
        storage = {name: float(sum(counts[name] for counts in self._storage)) for name in COUNTS}
        draws = {f"draws_{decile}": float(count) for decile, count in enumerate(self.draws)}
        return {"samples": float(self.samples), "skipped": float(self.skipped), **storage, **draws}


class BadSamples:
    """Counts samples that failed to decode, and ends the run if there are too many."""

    def __init__(self, fraction: float, samples: int) -> None:
        self.fraction, self.samples, self.seen = fraction, samples, 0
        self.names: dict[str, None] = {}  # each sample once, though it may be drawn many times

    def note(self, batch: Batch) -> list[str]:
        """Count a batch; returns the failures that are new.

        Raises:
            InputError: more than the allowed fraction of the samples drawn so far failed (counting at least 100 samples).
        """
        self.seen += len(batch["labels"])
        fresh = [name for name in batch["bad"] if name not in self.names]
        self.names.update(dict.fromkeys(fresh))
        seen = min(self.seen, self.samples)
        if len(self.names) > self.fraction * max(seen, 100):
            shown = list(self.names)[:20]
            more = f" (+{len(self.names) - len(shown)} more)" if len(self.names) > len(shown) else ""
            what = f"{len(self.names)} of {seen} samples could not be read, more than the allowed fraction of {self.fraction:g}"
            remedy = "check the set with `python -m datasets.inspect`, or raise --loader.bad-share"
            raise InputError(what, "; ".join(shown) + more, remedy)
        return fresh
