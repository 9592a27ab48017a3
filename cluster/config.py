"""The resources that a run asks the cluster for. Imports no Ray, so that settings can be read and checked without it."""

from dataclasses import dataclass

from cluster.errors import ClusterError


@dataclass(frozen=True)
class ExportConfig:
    """How a process outside Ray hands its figures to Prometheus."""

    metrics_port: int = 0
    """Port on which figures are served for Prometheus; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address on which they are served. The figures are open to everybody who reaches it."""
    metrics_file: str = ""
    """File into which figures are written for node exporter's textfile collector: /folder/name.prom."""

    def __post_init__(self) -> None:
        if not 0 <= self.metrics_port < 65536:
            raise ClusterError(f"metrics_port is {self.metrics_port}", "--metrics-port", "give 1 to 65535; 0: no port")
        if self.metrics_file and not self.metrics_file.endswith(".prom"):
            raise ClusterError("node exporter reads files that end in .prom", self.metrics_file, "give another --metrics-file")


@dataclass(frozen=True)
class ClusterConfig(ExportConfig):
    """The resources that a run asks the cluster for."""

    local: bool = False
    """Train with one worker in this process, without Ray: to try a job out and to debug it. Of the other options only gpu,
    keep_checkpoints and metrics_* count then; under Ray its agents export the figures."""
    workers: int = 2
    """Training processes. Each takes a GPU if the cluster has GPUs or its autoscaler can add some."""
    fewest: int = 0
    """Smallest number of workers that the run goes on with when nodes are lost; it grows again when nodes join. Every number from
    this one to ``workers`` must divide a step's samples. Batch norm is then over all workers by default. 0: always all workers;
    the run waits for lost ones."""
    cpus: int = 1
    """CPU cores reserved for each worker, its loader processes included."""
    gpu: bool | None = None
    """Train on GPUs. None: if the cluster has GPUs or its autoscaler can add some."""
    max_failures: int = 20
    """Failures of workers after which the run resumes from its newest whole checkpoint; the next failure ends it."""
    stuck_s: int = 300
    """Seconds without a training step, or without an answer of a worker's process, after which the workers are restarted."""
    keep_checkpoints: int = 2
    """Number of checkpoints kept in the run's folder, to go back to by --resume-from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.workers, self.cpus, self.keep_checkpoints, self.stuck_s) < 1 or self.max_failures < 0:
            what = "cluster.workers, cpus, keep_checkpoints and stuck_s must be at least 1, max_failures at least 0"
            raise ClusterError(what, "cluster")
        if not 0 <= self.fewest <= self.workers:
            raise ClusterError(f"cluster.fewest is {self.fewest}", "cluster", f"give 0 to {self.workers}, the workers")

    @property
    def sizes(self) -> range:
        """All numbers of workers that the run may have."""
        return range(1, 2) if self.local else range(self.fewest or self.workers, self.workers + 1)

    def check_divisible(self, samples: int, where: str) -> None:
        """Check that every number of workers that the run may have divides the samples of a step, set by the option ``where``.

        Raises:
            ClusterError: one of them does not.
        """
        for workers in self.sizes:
            if samples < 1 or samples % workers:
                what = f"{samples} samples cannot be divided evenly among {workers} workers"
                more = f": of every number from {self.fewest} to {self.workers}, or raise --cluster.fewest" if self.fewest else ""
                raise ClusterError(what, where, f"choose a multiple of the number of workers{more}")
