"""Figures of processes outside Ray: a real scrape over HTTP, a file for node exporter; of local runs and of schedules."""

import socket
import urllib.request
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from s3server import free_ports
from test_schedule import BEGIN, HOUR, Memory, add
from test_watching import NAMES, SCHEDULES

from cluster.config import ClusterConfig, ExportConfig
from cluster.errors import ClusterError
from cluster.exporter import exported
from cluster.launch import claimed, launch
from cluster.ledger import open_ledger
from cluster.local_worker import LocalWorker
from cluster.schedule_figures import ScheduleFigures
from cluster.scheduler import Scheduler

Figures = dict[tuple[str, tuple[str, ...]], float]


def parsed(text: str) -> Figures:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in samples}


def scraped(port: int) -> Figures:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read().decode())


def local(tmp_path: Path, work: Any, **export: Any) -> Any:
    config = ClusterConfig(local=True, **export)
    with claimed(config, "market", str(tmp_path)) as folder:
        return launch(work, {}, config, folder, lambda records, notices: None)


def test_a_local_run_exports_the_figures_of_rays_under_the_same_names(tmp_path: Path) -> None:
    (port,) = free_ports(1)

    def work(worker: LocalWorker, settings: Mapping[str, Any]) -> Figures:
        assert scraped(port)["ray_hardshard_run_step", ("market",)] == 0
        worker.record({"step": 10, "loss": 0.5, "version": None, "name": 1}, {"gets": 5.0, "bytes": 700.0, "draws_9": 2.0})
        worker.record({"step": 20, "steps": 40}, {"gets": 8.0, "bytes": 900.0, "draws_9": 2.0, "draws_0": 1.0})
        listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
        return scraped(port)

    found = local(tmp_path, work, metrics_port=port)
    run, both = ("market",), ("0", "market")
    assert found == {
        ("ray_hardshard_step", both): 20, ("ray_hardshard_steps", both): 40, ("ray_hardshard_loss", both): 0.5,
        ("ray_hardshard_gets_total", both): 8, ("ray_hardshard_read_bytes_total", both): 900,
        ("ray_hardshard_draws_total", ("9", *both)): 2, ("ray_hardshard_draws_total", ("0", *both)): 1,
        ("ray_hardshard_run_step", run): 20,
    }  # fmt: skip
    assert {name for name, _ in found} <= NAMES
    with pytest.raises(OSError, match="refused"):
        scraped(port)


def test_a_short_run_leaves_its_last_figures_in_a_file_and_no_step_to_be_stuck_at(tmp_path: Path) -> None:
    file = tmp_path / "run.prom"

    def work(worker: LocalWorker, settings: Mapping[str, Any]) -> None:
        assert parsed(file.read_text())["ray_hardshard_run_step", ("market",)] == 0
        worker.record({"step": 10, "loss": 0.5}, {})
        assert parsed(file.read_text())["ray_hardshard_run_step", ("market",)] == 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local(tmp_path, work, metrics_file=str(file))
    both = ("0", "market")  # labels are sorted: rank, run
    assert parsed(file.read_text()) == {("ray_hardshard_step", both): 10, ("ray_hardshard_loss", both): 0.5}
    assert list(tmp_path.glob("*.prom*")) == [file]


def test_a_run_goes_on_when_its_file_cannot_be_written_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()

    def work(worker: LocalWorker, settings: Mapping[str, Any]) -> str:
        (folder / "run.prom").unlink()
        folder.rmdir()
        worker.record({"step": 10}, {})
        return "trained"

    assert local(tmp_path, work, metrics_file=str(folder / "run.prom")) == "trained"
    assert "the figures cannot be written to" in caplog.text


def test_what_cannot_be_exported_is_said_before_the_run(tmp_path: Path) -> None:
    never = {"work": lambda worker, settings: pytest.fail("it ran")}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"cannot be served \(address already in use\): 127.0.0.1:{port}; choose another"):
            local(tmp_path, **never, metrics_port=port)
    with pytest.raises(ClusterError, match=r"cannot be written \(no such file or directory\): .*/none/a.prom"):
        local(tmp_path, **never, metrics_file=str(tmp_path / "none" / "a.prom"))
    with pytest.raises(ClusterError, match=r"node exporter reads files that end in .prom: a.txt"):
        ExportConfig(metrics_file="a.txt")
    with pytest.raises(ClusterError, match="metrics_port is 70000"):
        ExportConfig(metrics_port=70000)


def test_a_scheduler_exports_what_its_records_say(tmp_path: Path) -> None:
    ledger, cluster, figures, (port,) = open_ledger(str(tmp_path)), Memory(), ScheduleFigures(), free_ports(1)
    add(ledger, retries=1)
    add(ledger, "yearly", "0 0 1 1 *")
    scheduler = Scheduler(ledger, cluster)

    def turned(after: timedelta) -> Figures:
        scheduler.turn(BEGIN + after)
        figures.turned(scheduler.seen, BEGIN + after)
        return {(name.removeprefix("hardshard_schedule_"), values): value for (name, values), value in scraped(port).items()}

    with exported(figures, ExportConfig(metrics_port=port)):
        assert scraped(port)["hardshard_scheduler_last_turn_timestamp_seconds", ()] == 0
        found, first = turned(HOUR), (BEGIN + HOUR).replace(second=0)
        nightly = ("nightly",)
        assert found["next_start_timestamp_seconds", nightly] == (first + HOUR).timestamp()
        assert found["start_delay_seconds", nightly] == 30
        assert found["running", nightly] == found["jobs", ("nightly", "submitted")] == 1
        assert found["running", ("yearly",)] == found["last_success_timestamp_seconds", ("yearly",)] == 0
        for _ in range(2):  # the retry fails, too
            cluster.jobs.update(dict.fromkeys(cluster.jobs, "FAILED"))
            found = turned(HOUR + timedelta(minutes=20))
        assert found["last_failure_timestamp_seconds", nightly] == first.timestamp()
        assert found["last_success_timestamp_seconds", nightly] == 0
        assert found["jobs", ("nightly", "failed")] == 2
        assert found["start_delay_seconds", nightly] == 30
        turned(2 * HOUR)
        cluster.jobs.update(dict.fromkeys(cluster.submitted[-1:], "SUCCEEDED"))
        found = turned(2 * HOUR)
        assert found["last_success_timestamp_seconds", nightly] == (first + HOUR).timestamp()
        figures.compared(BEGIN, BEGIN + HOUR)
        figures.failed()
        last = scraped(port)
        assert last["hardshard_scheduler_clock_skew_seconds", ()] == -3600
        assert last["hardshard_scheduler_errors_total", ()] == 1
        assert last["hardshard_scheduler_last_turn_timestamp_seconds", ()] == (BEGIN + 2 * HOUR).timestamp()
        assert {name for name, _ in last} == SCHEDULES
        ledger.delete("schedules/yearly.json")
        assert ("running", ("yearly",)) not in turned(2 * HOUR)
