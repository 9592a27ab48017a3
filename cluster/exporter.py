"""Figures of processes outside Ray for Prometheus: served on a port, or written to a file for node exporter.

Ray's agents serve those of its workers (`cluster.prometheus`). Names and labels are the same, so that dashboard and rules serve
both.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.config import ExportConfig
from cluster.errors import ClusterError
from cluster.figures import DRAWS, GAUGES, PREFIX, RAY, RUN_STEP, TOTALS, WORKER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exporter:
    """Hands a collector's figures to Prometheus."""

    registry: CollectorRegistry
    file: str

    def write(self) -> None:
        """Write the figures to the file, if there is one, in place of the last ones. Raises OSError."""
        if self.file:
            write_to_textfile(self.file, self.registry)

    def update(self) -> None:
        """As `write`; work goes on where the file cannot be written."""
        try:
            self.write()
        except OSError as error:
            log.warning("the figures cannot be written to %s: %s", self.file, error)


@contextmanager
def exported(collector: Collector, config: ExportConfig) -> Iterator[Exporter]:
    """Serve a collector's figures on the port, if one is given, within the context.

    Raises:
        ClusterError: the port is in use, or the file cannot be written.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    exporter = Exporter(registry, config.metrics_file and str(Path(config.metrics_file).absolute()))
    try:
        exporter.write()
    except OSError as error:
        what = f"the figures cannot be written ({(error.strerror or str(error)).lower()})"
        raise ClusterError(what, exporter.file, "check the folder and its permissions") from error
    if not config.metrics_port:
        yield exporter
        return
    where = f"{config.metrics_host}:{config.metrics_port}"
    try:
        server, thread = start_http_server(config.metrics_port, config.metrics_host, registry)
    except OSError as error:
        what = f"the figures cannot be served ({(error.strerror or str(error)).lower()})"
        raise ClusterError(what, where, "choose another --metrics-port or --metrics-host") from error
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RunFigures(Collector):
    """The figures of a run without Ray. When it has ended, it has no step to be stuck at."""

    def __init__(self, run: str) -> None:
        self._labels, self._ended = (run, "0"), False
        self._record: dict[str, Any] = {"step": 0}
        self._counts: dict[str, float] = {}

    def report(self, record: Mapping[str, Any], counts: Mapping[str, float]) -> None:
        """Keep a step's record and the totals so far."""
        self._record = {**self._record, **{key: value for key, value in record.items() if value is not None}}
        self._counts = dict(counts)

    def end(self) -> None:
        """The run has ended."""
        self._ended = True

    def collect(self) -> Iterator[Metric]:
        """The figures, in Prometheus' form."""
        record, counts = self._record, self._counts
        for key, (name, about) in GAUGES.items():
            if key in record:
                yield gauge(RAY + PREFIX + name, about, WORKER, [(self._labels, float(record[key]))])
        for key, (name, about) in TOTALS.items():
            if key in counts:
                yield counter(RAY + PREFIX + name, about, WORKER, [(self._labels, counts[key])])
        draws = [((*self._labels, key[6:]), total) for key, total in counts.items() if key.startswith("draws_")]
        yield counter(RAY + PREFIX + DRAWS[0], DRAWS[1], (*WORKER, "decile"), draws)
        steps = [] if self._ended else [(self._labels[:1], float(record["step"]))]
        yield gauge(RAY + PREFIX + RUN_STEP[0], RUN_STEP[1], WORKER[:1], steps)


@contextmanager
def exported_run(run: str, config: ExportConfig) -> Iterator[Callable[[Mapping[str, Any], Mapping[str, float]], None]]:
    """Export the figures of a run without Ray within the context; yields the function that takes a step's record and the totals
    so far. Raises what `exported` raises."""
    figures = RunFigures(run)
    with exported(figures, config) as exporter:

        def report(record: Mapping[str, Any], counts: Mapping[str, float]) -> None:
            figures.report(record, counts)
            exporter.update()

        try:
            yield report
        finally:
            figures.end()
            exporter.update()


Series = Iterable[tuple[Sequence[str], float]]  # labels' values, and the value


def gauge(name: str, about: str, labels: tuple[str, ...], series: Series) -> Metric:
    """A gauge with the values of all its series."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def counter(name: str, about: str, labels: tuple[str, ...], series: Series) -> Metric:
    """A counter with the totals of all its series."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family
