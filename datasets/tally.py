"""What a rank's batches have held and cost so far: plain counts, for whoever watches the run."""

import numpy as np
import numpy.typing as npt

from datasets.loader import Batch
from datasets.store import COUNTS
from datasets.versions import VersionTable

DECILES = 10


class Tally:
    """Counts over the batches of one rank, whose loader has ``workers`` processes.

    ``versions``: of the difficulty vector that the draws follow, if they follow one.
    """

    def __init__(self, workers: int, versions: VersionTable | None = None) -> None:
        self.samples = self.skipped = 0
        self.draws = np.zeros(DECILES, np.int64)
        self._versions, self._version = versions, 0
        self._edges: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._storage: list[dict[str, int]] = [dict.fromkeys(COUNTS, 0) for _ in range(max(workers, 1))]

    def note(self, batch: Batch) -> None:
        """Count a batch."""
        self.samples += len(batch["labels"])
        self.skipped += len(batch["bad"])
        self._storage[batch["step"] % len(self._storage)] = batch["storage"]  # loader processes take steps in turn
        version = self._versions.get(batch["version"]) if self._versions else None
        if version is not None:
            if version.number != self._version:
                self._version = version.number
                self._edges = np.quantile(version.cosine, np.arange(1, DECILES) / DECILES).astype(np.float32)
            deciles = np.searchsorted(self._edges, version.cosine[batch["labels"].numpy()], side="right")
            self.draws += np.bincount(deciles, minlength=DECILES)

    @property
    def counts(self) -> dict[str, float]:
        """``samples``, ``skipped`` (unreadable, replaced), the stores' COUNTS, and ``draws_0`` .. ``draws_9``: samples drawn
        while a version was in force, of the easiest tenth of the identities to the hardest."""
        storage = {name: float(sum(counts[name] for counts in self._storage)) for name in COUNTS}
        draws = {f"draws_{decile}": float(count) for decile, count in enumerate(self.draws)}
        return {"samples": float(self.samples), "skipped": float(self.skipped), **storage, **draws}
