"""What a run takes of the cluster. Imports no Ray, so that settings can be read and checked without it."""

from dataclasses import dataclass

from cluster.errors import ClusterError


@dataclass(frozen=True)
class ClusterConfig:
    """What a run takes of the cluster."""

    local: bool = False
    """Train with one worker in this process, without Ray: to try a job out and to debug it."""
    workers: int = 2
    """Training processes; each takes a GPU if the cluster has any, or can grow to have."""
    fewest: int = 0
    """Workers to go on with while nodes are lost; new ones are taken in again, so that any number from these to all must divide a
    step's samples. Batch norm is over all workers then, if it is not set. 0: all of them, waited for."""
    cpus: int = 1
    """CPU cores reserved for each, its loader processes included."""
    gpu: bool | None = None
    """Train on GPUs; None: if the cluster has any, or can grow to have."""
    max_failures: int = 20
    """Deaths of workers after which the run goes on from its last checkpoint; the next one ends it."""
    keep_checkpoints: int = 2
    """Checkpoints kept in the run's folder."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1 or self.max_failures < 0 or self.keep_checkpoints < 1:
            raise ClusterError(
                "cluster.workers, cpus and keep_checkpoints must be at least 1, max_failures at least 0", "cluster"
            )
        if not 0 <= self.fewest <= self.workers:
            raise ClusterError(f"cluster.fewest is {self.fewest}", "cluster", f"give 0 to {self.workers}, the workers")

    @property
    def sizes(self) -> range:
        """The numbers of workers that the run may have."""
        return range(1, 2) if self.local else range(self.fewest or self.workers, self.workers + 1)

    def check_divisible(self, samples: int, where: str) -> None:
        """Check that any of these numbers of workers divides the samples of a step; ``where`` names their option.

        Raises:
            ClusterError: one of them cannot.
        """
        for workers in self.sizes:
            if samples < 1 or samples % workers:
                what = f"{samples} samples cannot be divided evenly among {workers} workers"
                more = f": of each of {self.fewest} to {self.workers}, or raise --cluster.fewest" if self.fewest else ""
                raise ClusterError(what, where, f"choose a multiple of the number of workers{more}")
