"""Watching: figures that a real Prometheus finds by itself, alerts, dashboard, cluster.status; and no secret in any log."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from conftest import Head
from ray.util.state import list_actors, list_jobs, list_tasks
from s3server import SECRET, free_ports

from cluster import figures, schedule_figures
from cluster import prometheus as exported
from cluster.jobs import RUNNING, Jobs
from cluster.status import row_of, span, table_of
from datasets.object_storage import open_objects

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
NAMES = {f"ray_hardshard_{name}" for name, _ in figures.GAUGES.values()}
NAMES |= {f"ray_hardshard_{name}_total" for name in [*(name for name, _ in figures.TOTALS.values()), "draws", "worker_failures"]}
NAMES |= {"ray_hardshard_trials", "ray_hardshard_run_step"}
SCHEDULES = {*schedule_figures.BY_SCHEDULE, schedule_figures.JOBS[0], schedule_figures.LAST_TURN[0], schedule_figures.SKEW[0]}
SCHEDULES |= {f"{schedule_figures.ERRORS[0]}_total"}
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed (Debian: prometheus)")


def dashboard_queries() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    return [target["expr"].replace("$run", ".*") for panel in dashboard["panels"] for target in panel["targets"]]


def test_dashboard_and_alerts_query_existing_metrics() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    texts = [*dashboard_queries(), *(rule["expr"] for rule in rules)]
    asked = {name for text in texts for name in re.findall(r"(?:ray_)?hardshard_\w+", text)}
    assert asked <= NAMES | SCHEDULES
    assert (NAMES | SCHEDULES) - asked <= {"ray_hardshard_accuracy", "ray_hardshard_learning_rate", "ray_hardshard_step_seconds"}
    guide = (ROOT / "docs" / "alerts.md").read_text()
    for rule in rules:
        assert f"## {rule['alert']}\n" in guide  # where its runbook points to


@needs_prometheus
@pytest.mark.parametrize(
    "arguments", [["check", "rules", "cluster/monitoring/alerts.yml"], ["test", "rules", "tests/cluster/alerts_test.yml"]]
)
def test_each_alert_fires_on_its_fault_and_on_nothing_else(arguments: list[str]) -> None:
    ended = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def exported_lines(run: str) -> list[str]:
    """What the node's agent exports of a run."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if f'run="{run}"' in line]


@pytest.mark.usefixtures("cluster")
def test_no_figure_of_a_run_stays_when_its_processes_have_ended() -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def report(self) -> None:
            exported.Figures("ended", 0).report({"step": 10}, {"samples": 5.0, "gets": 5.0, "draws_9": 2.0})
            exported.failures().set(3, {"run": "ended"})

    worker = Worker.remote()  # type: ignore[attr-defined]
    ray.get(worker.report.remote())
    until(lambda: len(exported_lines("ended")) == 5)
    ray.kill(worker)
    until(lambda: exported_lines("ended") == [])


@pytest.mark.usefixtures("cluster")
def test_the_nodes_agent_exports_totals_and_records() -> None:
    figures = exported.Figures("reported", 1)
    figures.report({"step": 10, "loss": 0.5, "name": "no figure", "version": None}, {"gets": 5.0, "draws_9": 2.0, "other": 1.0})
    figures.report({"step": 20, "loss": 0.25}, {"gets": 8.0, "draws_9": 2.0})

    def reported() -> dict[str, float]:
        lines = exported_lines("reported")
        assert all('rank="1"' in line for line in lines)
        return {line.partition("{")[0].removeprefix("ray_hardshard_"): float(line.split()[-1]) for line in lines}

    wanted = {"step": 20, "loss": 0.25, "gets_total": 8, "draws_total": 2}
    until(lambda: reported() == wanted)
    time.sleep(4)  # Ray's agent forgets a gauge after two of its intervals, here 2 s
    until(lambda: reported() == wanted)


class Prometheus:
    """A server with the rules of alerts.yml, with seconds in place of minutes."""

    def __init__(self, folder: Path, discovery: Path) -> None:
        rules = re.sub(r"\b(\d+)m\b", r"\1s", (MONITORING / "alerts.yml").read_text())
        (folder / "alerts.yml").write_text(re.sub(r"\[5s\]", "[10s]", rules))
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        options = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series of a query, with labels and value; none while the server starts."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except OSError:
            return []
        assert found["status"] == "success"
        return [{**series["metric"], "value": float(series["value"][1])} for series in found["data"]["result"]]


@contextmanager
def prometheus(folder: Path, head: Head) -> Iterator[Prometheus]:
    folder.mkdir()
    server = Prometheus(folder, head.discovery)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def until(reached: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.3)
    return found


@contextmanager
def running(head: Head, job: str, *options: str) -> Iterator[None]:
    """A run of trainers/reid.py as a job of the cluster."""
    jobs = Jobs(head.jobs)
    jobs.submit(job, ("env", "OMP_NUM_THREADS=1", sys.executable, "trainers/reid.py", *options), "")
    try:
        yield
    except AssertionError:
        for log in head.folder.glob(f"session_2*/logs/job-driver-{job}.log"):
            print(log.read_text())
        raise
    finally:
        jobs.stop(job)
        until(lambda: jobs.status(job) not in RUNNING)


def train_workers(head: Head) -> list[psutil.Process]:
    """The training processes of that cluster; not those of another Ray on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("/raylet") and any(str(head.folder) in word for word in words):
            found += [child for child in process.children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]
    return found


@needs_prometheus
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_prometheus_finds_the_workers_and_fires_at_a_fault(head: Head, shards: str, tmp_path: Path) -> None:
    """The figures of both workers arrive; a worker is killed, and those of its successor; one hangs, and RunStuck fires until
    it goes on. Meanwhile cluster.status shows the run; and no secret is written anywhere."""
    runs, name = tmp_path / "runs", "watched"
    options = ["--data", shards, "--runs", str(runs), "--name", name, "--optim.steps", "100000", "--record_every", "5"]
    options += ["--checkpoint_every", "20", "--sampler.batch", "16", "--sampler.instances", "2", "--sampler.interval", "5"]
    options += ["--sampler.lag", "3", "--cache.folder", str(tmp_path / "cache"), "--evaluate_every", "50"]
    with prometheus(tmp_path / "prometheus", head) as server, running(head, name, *options):
        until(lambda: {series["rank"] for series in server.ask(f'ray_hardshard_step{{run="{name}"}}')} == {"0", "1"}, 120)
        before = {series["WorkerId"] for series in server.ask(f'ray_hardshard_step{{run="{name}"}}')}
        status = [sys.executable, "-m", "cluster.status", "--once", "--address", head.address]
        shown = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert f" {name} " in shown.stdout
        assert "/100,000" in shown.stdout
        train_workers(head)[0].send_signal(signal.SIGKILL)
        until(lambda: {series["WorkerId"] for series in server.ask(f'ray_hardshard_step{{run="{name}"}}')} - before)
        assert until(lambda: server.ask("ray_hardshard_worker_failures_total"))[0]["run"] == name
        missing = {name for name in NAMES if not server.ask(name)}
        assert missing <= {
            "ray_hardshard_stage",
            "ray_hardshard_trials",
            "ray_hardshard_accuracy",
            "ray_hardshard_cache_hits_total",
        } | ({"ray_hardshard_get_retries_total", "ray_hardshard_skipped_samples_total"})
        empty = [query for query in dashboard_queries() if not server.ask(query)]
        assert all(any(name in query for name in [*missing, *SCHEDULES, "ALERTS"]) for query in empty), empty
        labels = {label for series in server.ask('{__name__=~"ray_hardshard.*"}') for label in series}
        ours = {"run", "rank", "decile"}
        rays = {"__name__", "value", "job", "instance", "WorkerId", "NodeAddress", "SessionName", "Version", "Component", "JobId"}
        rays |= {"otel_scope_name"}  # one value: what Ray's agent puts its figures out by
        assert labels <= ours | rays
        until(lambda: not server.ask('ALERTS{alertname="RunStuck"}'))  # it may fire while the workers restart
        hung = train_workers(head)[0]
        hung.send_signal(signal.SIGSTOP)
        try:
            firing = until(lambda: server.ask('ALERTS{alertname="RunStuck", alertstate="firing"}'))
        finally:
            hung.send_signal(signal.SIGCONT)
        assert {alert["run"] for alert in firing} == {name}
        until(lambda: not server.ask('ALERTS{alertname="RunStuck"}'))
    logs = files_of(runs, head.folder)
    assert any(file.suffix == ".out" for file in logs)
    assert [file for file in logs if has_secret(file.read_bytes())] == []


def files_of(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def has_secret(data: bytes) -> bool:
    return any(secret.encode() in data for secret in (SECRET, os.environ["RAY_AUTH_TOKEN"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_secret_is_written_by_a_sweep_or_a_schedule(head: Head, shards: str, s3_url: str, tmp_path: Path) -> None:
    """Both are started where the keys of S3 stand in the environment. Nothing of these is in a file of Ray, of a run or of the
    store, in an output, or in what the cluster says about its tasks, actors and jobs."""
    store = tmp_path / "store"
    job = [
        "--data",
        shards,
        "--optim.steps",
        "10",
        "--sampler.batch",
        "16",
        "--sampler.instances",
        "2",
        "--sampler.interval",
        "5",
    ]
    job += ["--loader.workers", "0", "--cluster.workers", "1", "--cache.folder", str(tmp_path / "cache")]

    def command(*words: str, **how: Any) -> "subprocess.Popen[str]":
        environment = {**os.environ, "RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True, **how)

    how = ["--runs", f"{s3_url}/runs", "--name", "sw", "--trials", "2", "--grace", "5", "--space", "optim.lr=0.001,0.01"]
    outputs = [command("trainers/sweep.py", "reid", *how, "--", *job).communicate(timeout=300)[0]]
    assert "best: sw-" in outputs[0], outputs[0]
    run = ["env", "OMP_NUM_THREADS=1", sys.executable, "trainers/reid.py", "--runs", f"{s3_url}/runs", *job]
    outputs += command("-m", "cluster.schedule", "add", "yearly", "0 0 1 1 *", "--store", str(store), "--", *run).communicate()[
        :1
    ]
    record = json.loads((store / "schedules" / "yearly.json").read_text())
    (store / "schedules" / "yearly.json").write_text(json.dumps({**record, "created": "2000-01-01T00:00:00+00:00"}))  # it is due
    scheduler = command("-m", "cluster.schedule", "run", "--every", "0.5", "--store", str(store))
    try:
        until(lambda: [json.loads(file.read_text())["state"] for file in store.glob("starts/yearly/*")] == ["succeeded"], 180)
    finally:
        scheduler.terminate()
        outputs += scheduler.communicate()[:1]
    asked: list[Any] = [tell(head.jobs, detail=True, limit=10_000) for tell in (list_tasks, list_actors, list_jobs)]
    assert all(asked)
    assert not has_secret("".join([*outputs, *map(repr, asked)]).encode())
    objects = open_objects(f"{s3_url}/runs")
    assert [name for name in objects.sizes() if has_secret(objects.get(name))] == []
    assert [file for file in files_of(store, head.folder) if has_secret(file.read_bytes())] == []


def test_a_row_of_the_status() -> None:
    record = {
        "step": 1500,
        "steps": 3000,
        "eta_s": 130.0,
        "loss": 0.5,
        "samples_per_s": 950.0,
        "wait": 0.1,
        "mAP": 0.5,
        "version": 3,
        "age": 120,
    }
    state = {
        "run": "market",
        "begun": 0.0,
        "reported": 100.0,
        "failures": 1,
        "errors": [(90.0, "rank 1: died")],
        "record": record,
    }
    wanted = ["market", "1,500/3,000", "", "2:00 min", "0.5000", "950", "10%", "50.0%", "v3, 120 steps old", "10 s ago", "1"]
    assert row_of(state, 110.0) == [*wanted, "20 s ago: rank 1: died"]
    fresh = {"run": "new", "begun": 100.0, "reported": None, "failures": 0, "errors": []}
    assert row_of(fresh, 107.0) == ["new", "starting", "", "", "", "", "", "", "", "7 s ago", "", ""]
    assert table_of([state, fresh], 110.0).row_count == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (0.2, "1 s"), (59.5, "1:00 min"), (3600, "1:00 h"), (90061, "1 d 1 h"), (7300, "2:01 h")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_without_a_cluster_status_ends_with_2() -> None:
    command = [sys.executable, "-m", "cluster.status", "--address", "127.0.0.1:1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: no Ray cluster answers")
