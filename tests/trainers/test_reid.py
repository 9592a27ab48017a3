"""The job as people run it: under Ray with two workers, killed and resumed; and in this process: trained, evaluated, asked."""

import csv
import json
import shutil
import subprocess
import sys
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import ray
from testdata import archive

from benchmarks.label_faults import Plant, scored
from benchmarks.label_faults import main as plant_faults
from cluster.config import ClusterConfig
from cluster.local_worker import LocalWorker
from cluster.progress import NAMESPACE, running
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.loading.batches import LoaderConfig
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.relabel import relabel
from datasets.sampling.sampler import SamplerConfig
from datasets.shards.index import read_index, split_of
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.reid import Clean, Evaluate, Export, Predict, Train, defaults
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.head_config import HeadConfig

on_ray = pytest.mark.usefixtures("cluster")
LOCAL = ClusterConfig(local=True)
TIMES = {"seconds"}  # what may differ between two runs of the same seed


def short(data: str, runs: str, **changes: Any) -> Train:
    return Train(
        data=(data,), runs=runs, name=f"run-{uuid.uuid4().hex[:8]}", checkpoint_every=10, record_every=5,
        sampler=SamplerConfig(kind="pairs", batch=32, uniform_share=0.5, instances=2, interval=5, lag=3),
        loader=LoaderConfig(workers=1, size=(32, 32)), optim=OptimConfig(steps=40, warmup=5), **changes,
    )  # fmt: skip


def metrics_of(train: Train) -> dict[str, Any]:
    metrics: dict[str, Any] = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in metrics.items() if name not in TIMES}


def kill_worker_after(train: Train, checkpoint: str) -> Future[int]:
    """Kill -9 one of the run's training processes as soon as a checkpoint stands in its folder; gives its process number when
    Ray Train has noticed."""

    def watch() -> int:
        objects = open_objects(f"{train.runs}/{train.name}")
        while not any(name.startswith(checkpoint) for name in objects.sizes()):
            time.sleep(0.05)
        time.sleep(0.5)  # until Ray Train has it on its list
        ours = psutil.Process().children(recursive=True)
        workers = [process for process in ours if "RayTrainWorker" in title(process)]
        training = [worker for worker in workers if worker.parent() not in workers]  # the others are their loaders
        training[-1].kill()
        noticed = time.monotonic() + 60
        while not any(state["run"] == train.name and state["failures"] for state in running()):
            assert time.monotonic() < noticed, "the run did not lose a worker"
            time.sleep(0.2)
        return training[-1].pid

    return ThreadPoolExecutor(1).submit(watch)


def kill_actor_after(train: Train, checkpoint: str) -> Future[list[str]]:
    """Kill the run's difficulty actor, which Ray starts again, as soon as a checkpoint stands in its folder; gives its name."""

    def watch() -> list[str]:
        objects = open_objects(f"{train.runs}/{train.name}")
        while not any(name.startswith(checkpoint) for name in objects.sizes()):
            time.sleep(0.05)
        named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        killed = [name for name in named if name.startswith(f"difficulty:{train.name}")]
        for name in killed:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)
        return killed

    return ThreadPoolExecutor(1).submit(watch)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@on_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_leaves_no_trace_in_the_result(shards: str, s3_bucket: str) -> None:
    undisturbed, interrupted = short(shards, f"{s3_bucket}/runs"), short(shards, f"{s3_bucket}/runs")
    undisturbed.run()
    killer = kill_worker_after(interrupted, "step-00000010")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(undisturbed)


@on_ray
@pytest.mark.slow
def test_a_killed_difficulty_actor_leaves_no_trace_in_the_result(shards: str, tmp_path: Path) -> None:
    undisturbed, interrupted = (short(shards, str(tmp_path), cluster=ClusterConfig(workers=2)) for _ in range(2))
    undisturbed.run()
    killer = kill_actor_after(interrupted, "step-00000010")
    interrupted.run()
    assert len(killer.result(timeout=1)) == 1
    assert metrics_of(interrupted) == metrics_of(undisturbed)


@on_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_leaves_no_trace_on_cuhk03(s3_bucket: str, tmp_path: Path) -> None:
    pack("cuhk03", archive("cuhk03.tar"), f"{s3_bucket}/cuhk03")
    base = short(f"{s3_bucket}/cuhk03", f"{s3_bucket}/runs")
    base = replace(base, loader=LoaderConfig(workers=1), optim=OptimConfig(steps=200, warmup=20), checkpoint_every=50)
    undisturbed, interrupted = base, replace(base, name=f"{base.name}-again")
    undisturbed.run()
    killer = kill_worker_after(interrupted, "step-00000100")
    interrupted.run()
    assert killer.result(timeout=1)
    assert metrics_of(interrupted) == metrics_of(undisturbed)


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped data, packed into a folder."""
    folder = str(tmp_path_factory.mktemp("characters") / "set")
    pack("omniglot", ARCHIVE, folder, OPTIONS)
    return folder


@pytest.mark.slow  # test_every_job has it of the curriculum
@on_ray
@pytest.mark.timeout(600)
def test_a_local_run_is_that_of_one_worker_under_ray(characters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, drawing by difficulty; also when it is interrupted here and resumed under Ray."""
    under_ray = ClusterConfig(workers=1, gpu=False)
    base = replace(short(characters, str(tmp_path), evaluate_every=10), optim=OptimConfig(steps=20, warmup=5))
    local, ray_run, moved = (replace(base, name=name) for name in ("local", "ray", "moved"))
    replace(local, cluster=LOCAL).run()
    replace(ray_run, cluster=under_ray).run()
    with monkeypatch.context() as patch:
        patch.setattr(LocalWorker, "record", interrupted_at_15)
        with pytest.raises(KeyboardInterrupt):
            replace(moved, cluster=LOCAL).run()
    replace(moved, cluster=under_ray, resume=True).run()
    expected, evaluations = metrics_of(local), Run(local.runs, "local").read_json("history.json")["evaluations"]
    assert [evaluation["step"] for evaluation in evaluations] == [0, 10, 20]
    for run in (ray_run, moved):
        assert metrics_of(run) == expected  # weights and draws among them
        history = Run(run.runs, run.name).read_json("history.json")
        assert history["evaluations"] == evaluations
        assert [record["version"] for record in history["records"]] == [0, 1, 2, 3]


def interrupted_at_15(worker: LocalWorker, record: dict[str, Any], counts: object = None) -> None:
    if record["step"] == 15:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(characters: str, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run of 20 steps in this process, ended."""
    train = short(characters, str(tmp_path_factory.mktemp("runs")), cluster=LOCAL)
    train = replace(train, optim=OptimConfig(steps=20, warmup=5))
    train.run()
    return train


def test_a_run_leaves_everything_in_its_folder(trained: Train) -> None:
    folder = Path(trained.runs) / trained.name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["before"]["step"] == 0
    assert metrics["after"]["step"] == metrics["step"] == 20
    history = json.loads((folder / "history.json").read_text())
    assert [entry["step"] for entry in history["records"]] == [5, 10, 15, 20]
    assert [entry["version"] for entry in history["records"]] == [0, 1, 2, 3]  # steps 4, 9, 14, 19, each 3 or more behind
    assert [entry["step"] for entry in history["notes"]["difficulty"]] == [5, 10, 15, 20]
    assert list((folder / "tensorboard").iterdir())
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 8  # four pictures, light and dark
    assert "Most confusable identities" in report


def test_resume_goes_on_from_the_end(characters: str, tmp_path: Path) -> None:
    train = short(characters, str(tmp_path), cluster=LOCAL)
    train = replace(train, optim=OptimConfig(steps=10, warmup=5))
    train.run()
    replace(train, resume=True, optim=replace(train.optim, steps=20)).run()
    history = json.loads((tmp_path / train.name / "history.json").read_text())
    assert [entry["step"] for entry in history["records"]] == [5, 10, 15, 20]
    assert [entry["step"] for entry in history["evaluations"]] == [0, 10, 20]


@on_ray
@pytest.mark.slow
def test_a_run_that_is_resumed_with_fewer_steps_than_it_had_is_measured_as_it_is(shards: str, tmp_path: Path) -> None:
    train = short(shards, str(tmp_path), cluster=ClusterConfig(workers=1, max_failures=0))
    kill_worker_after(train, "step-00000010")
    with pytest.raises(Exception, match="Training failed"):
        train.run()
    replace(train, resume=True, optim=replace(train.optim, steps=5)).run()
    metrics = metrics_of(train)
    assert metrics["after"]["step"] == metrics["step"] >= 10


@on_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumed_run_is_the_same_on_another_number_of_workers(shards: str, tmp_path: Path) -> None:
    """Its losses within rounding, and its batches; without batch norm over all workers the losses are others."""
    records, batches = {}, {}
    for name, workers, sync in (("one", (1, 1), True), ("fewer", (2, 1), True), ("more", (1, 2), True), ("own", (2, 2), False)):
        train = short(shards, str(tmp_path), cluster=ClusterConfig(workers=workers[0]))
        sampler, optim = SamplerConfig(kind="uniform", batch=32), replace(train.optim, steps=10, sync_batch_norm=sync)
        train = replace(train, name=name, sampler=sampler, optim=optim)
        train.run()
        more = replace(optim, steps=20)
        replace(train, resume=True, optim=more, cluster=ClusterConfig(workers=workers[1])).run()
        history = json.loads((tmp_path / name / "history.json").read_text())
        records[name] = [entry["loss"] for entry in history["records"]]
        batches[name] = metrics_of(train)["batches_crc32c"]
    assert len(set(batches.values())) == 1
    for name in ("fewer", "more"):
        assert records[name] == pytest.approx(records["one"], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(records["own"], records["one"], strict=True)) > 1e-2
    with pytest.raises(InputError, match=r"another optim\.sync_batch_norm"):
        replace(train, resume=True, optim=replace(more, sync_batch_norm=True)).run()


@on_ray
@pytest.mark.slow
def test_a_parallel_head_goes_on_with_another_number_of_workers(shards: str, tmp_path: Path) -> None:
    train = short(shards, str(tmp_path), cluster=ClusterConfig(workers=2), head=HeadConfig(parallel=True))
    train = replace(train, optim=OptimConfig(steps=10, warmup=5))
    train.run()
    assert len(list((tmp_path / train.name).rglob("share-*.pt"))) == 2
    replace(train, resume=True, optim=OptimConfig(steps=20, warmup=5), cluster=ClusterConfig(workers=1)).run()
    history = json.loads((tmp_path / train.name / "history.json").read_text())
    assert [entry["step"] for entry in history["records"]] == [5, 10, 15, 20]
    assert [entry["step"] for entry in history["notes"]["difficulty"]] == [5, 10, 15, 20]


def test_a_used_name_and_changed_settings_are_refused(trained: Train) -> None:
    with pytest.raises(InputError, match=r"exists.*--resume"):
        trained.run()
    with pytest.raises(InputError, match="another seed"):
        replace(trained, resume=True, seed=7).run()
    with pytest.raises(InputError, match="no run 'nobody' to resume"):
        replace(trained, resume=True, name="nobody").run()


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The job as a command."""
    path = Path(__file__).parents[2] / "trainers" / "reid.py"
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=120)


def test_evaluate_again_gives_what_training_gave(trained: Train) -> None:
    ended = script("evaluate", "--name", trained.name, "--runs", trained.runs)
    assert ended.returncode == 0, ended.stderr
    assert "mAP" in ended.stdout
    metrics = metrics_of(trained)
    again = metrics["evaluations"][read_index(trained.data[0]).url]
    for name in ("mAP", "rank1", "queries", "gallery"):
        assert again[name] == pytest.approx(metrics["after"][name], abs=1e-6)


@pytest.fixture
def copy_of_run(trained: Train, tmp_path: Path) -> Train:
    """A copy of the run, to be changed."""
    shutil.copytree(Path(trained.runs) / trained.name, tmp_path / "runs" / trained.name)
    return replace(trained, runs=str(tmp_path / "runs"))


def set_of_folders(folder: Path, split: str) -> str:
    """A set of six people with ten images each, of which some are for training, others in the split."""
    rng = np.random.default_rng(0)
    for identity in range(6):
        home = folder / "images" / ("train" if identity < 2 else split) / f"person{identity}"
        home.mkdir(parents=True)
        look = rng.integers(40, 216, (12, 12, 3))
        for number in range(10):
            noise = rng.integers(-40, 40, look.shape)
            cv2.imwrite(str(home / f"{number}.png"), np.clip(look + noise, 0, 255).astype(np.uint8))
    pack("folders", folder / "images", str(folder / "set"))
    return str(folder / "set")


def test_several_sets_are_evaluated_into_one_table(copy_of_run: Train, tmp_path: Path) -> None:
    other = set_of_folders(tmp_path, "test")
    run = ("--name", copy_of_run.name, "--runs", copy_of_run.runs)
    ended = script("evaluate", *run, "--data", copy_of_run.data[0], other, "--flip", "--rerank", "--rerank-k1", "5")
    assert ended.returncode == 0, ended.stderr
    table = [line.split() for line in ended.stdout.splitlines()]
    assert [line[0] for line in table if line and "/set" in line[0]] == [copy_of_run.data[0], other] * 2  # and of verification
    assert ["set", "mAP", "(re-ranked)", "mINP", "(re-ranked)"] in [line[:5] for line in table]
    stored = metrics_of(copy_of_run)["evaluations"]
    for url in (copy_of_run.data[0], other):
        figures = stored[read_index(url).url]
        assert figures["flip"] is True
        assert all(0 < figures[name] <= 1 for name in ("mAP", "mAP_reranked", "mINP", "mINP_reranked", "TAR@1e-1"))


def test_evaluate_uses_the_settings_of_training_unless_others_are_given(copy_of_run: Train) -> None:
    path = Path(copy_of_run.runs) / copy_of_run.name / "config.json"
    config = json.loads(path.read_text())
    assert config["evaluation"] == {"flip": False, "rerank": False, "rerank_k1": 20, "rerank_k2": 6, "rerank_lambda": 0.3}
    path.write_text(json.dumps({**config, "evaluation": {"flip": True, "rerank_k1": 7}}))
    run = ["--name", copy_of_run.name, f"--runs={copy_of_run.runs}"]
    stored = parse(Evaluate, "evaluate", run, default=defaults("evaluate", run))
    assert (stored.evaluation, stored.runs) == (EvaluationConfig(flip=True, rerank_k1=7), copy_of_run.runs)
    given = [*run, "--no-flip", "--rerank"]
    other = parse(Evaluate, "evaluate", given, default=defaults("evaluate", given))
    assert other.evaluation == EvaluationConfig(rerank=True, rerank_k1=7)
    assert defaults("evaluate", []) is None
    assert defaults("train", run) is None


def test_an_older_run_is_evaluated_as_before(copy_of_run: Train) -> None:
    path = Path(copy_of_run.runs) / copy_of_run.name / "config.json"
    config = json.loads(path.read_text())
    del config["evaluation"]
    path.write_text(json.dumps(config))
    run = ["--name", copy_of_run.name, "--runs", copy_of_run.runs]
    parse(Evaluate, "evaluate", run, default=defaults("evaluate", run)).run()
    metrics = metrics_of(copy_of_run)
    (again,) = metrics["evaluations"].values()
    assert again == pytest.approx({name: value for name, value in metrics["after"].items() if name != "step"}, abs=1e-6)


def test_training_evaluates_with_the_flip_test_and_so_does_predict(
    copy_of_run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are the same."""
    flipped = replace(copy_of_run, name="flipped", evaluation=EvaluationConfig(flip=True, rerank=True))
    flipped.run()
    was, now = metrics_of(copy_of_run), metrics_of(flipped)
    assert now["weights_crc32c"] == was["weights_crc32c"]
    assert now["after"]["mAP"] != was["after"]["mAP"]
    assert now["after"]["mAP_reranked"] > 0
    assert "mAP reranked" in Run(flipped.runs, "flipped").read_text("report.html")
    capsys.readouterr()
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    cosines = []
    for train in (copy_of_run, flipped):
        Predict(name=train.name, runs=train.runs, pair=(str(paths[0]), str(paths[1]))).run()
        cosines.append(Run(train.runs, train.name).read_json("prediction.json")["cosine"])
    assert cosines[0] != cosines[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--rerank-k1", "0"), "rerank_k1 and rerank_k2 must be at least 1: 0 and 6; use 20 and 6"),
        (("--rerank-k2", "-1"), "rerank_k1 and rerank_k2 must be at least 1: 20 and -1; use 20 and 6"),
        (("--rerank-lambda", "1.5"), "rerank_lambda must be in 0..1: 1.5; use 0.3"),
        (("--flip", "yes"), "unexpected argument 'yes'"),
        (("--data", "SHIPPED", "NOWHERE"), "not a whole shard set (no index.json)"),
        (("--data", "SHIPPED", "TRAINING"), "neither query and gallery, nor several test images of an identity, nor pairs"),
    ],
)
def test_wrong_options_of_evaluate(
    options: tuple[str, ...], line: str, copy_of_run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "TRAINING" in options:
        set_of_folders(tmp_path, "test")
        pack("folders", tmp_path / "images" / "train", str(tmp_path / "all"), Options(held_out=0))
    places = {"SHIPPED": copy_of_run.data[0], "NOWHERE": str(tmp_path / "nowhere"), "TRAINING": str(tmp_path / "all")}
    words = ["--name", copy_of_run.name, "--runs", copy_of_run.runs, *(places.get(word, word) for word in options)]
    before = (Path(copy_of_run.runs) / copy_of_run.name / "metrics.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: parse(Evaluate, "evaluate", words, default=defaults("evaluate", words)).run())
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert line in err
    assert (Path(copy_of_run.runs) / copy_of_run.name / "metrics.json").read_bytes() == before


def test_predict_finds_the_image_itself_first(trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    query = tmp_path / "3.png"
    Predict(name=trained.name, runs=trained.runs, query=(str(query),), gallery=str(tmp_path), top=3).run()
    run = Run(trained.runs, trained.name)
    (answer,) = run.read_json("prediction.json")
    assert answer["found"][0]["name"] == str(query)
    assert answer["found"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(answer["found"]) == 3
    assert run.objects.get("prediction.png").startswith(b"\x89PNG")
    ended = script("predict", "--name", trained.name, "--runs", trained.runs, "--query", str(query), "--top", "4")
    assert ended.returncode == 0, ended.stderr
    (answer,) = run.read_json("prediction.json")
    assert len(answer["found"]) == 4
    Predict(name=trained.name, runs=trained.runs, pair=(str(query), str(query))).run()
    assert run.read_json("prediction.json")["same"] is True
    with pytest.raises(InputError, match="cannot read an image"):
        Predict(name=trained.name, runs=trained.runs, pair=(str(query), str(tmp_path / "none.png"))).run()
    assert "picture:" in capsys.readouterr().out


def test_clean_writes_decisions_and_a_page_and_names_the_next_command(
    copy_of_run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a model that has seen little, so that suspicions may be many or few; what is listed must be consistent and apply."""
    Clean(name=copy_of_run.name, runs=copy_of_run.runs, accept=0.2, top=2, workers=0).run()
    folder, train = Path(copy_of_run.runs) / copy_of_run.name, split_of(read_index(copy_of_run.data[0]), "train")
    lines = (folder / "decisions.csv").read_text().splitlines()
    assert lines[0] == "accept,kind,probability,identity,other,keys"
    rows = list(csv.DictReader(lines))
    keys = {train.index.keys[sample] for sample in train.samples(np.arange(len(train)))}
    for row in rows:
        assert row["identity"] in train.names
        assert row["accept"] == ("yes" if float(row["probability"]) >= 0.2 else "no")
        assert (row["other"] in train.names) or (row["kind"] != "same" and not row["other"])
        assert set(row["keys"].split()) <= keys
        assert bool(row["keys"]) == (row["kind"] != "same")
    page, shown = (folder / "clean.html").read_text(), 0
    for kind in ("same", "mixture", "wrong"):
        shown += min(sum(row["kind"] == kind for row in rows), 2)
    assert page.count("data-row=") == shown
    said = capsys.readouterr().out
    command = f"python -m datasets.relabel {train.index.url} {folder}/decisions.csv {train.index.url}-cleaned"
    assert said.rstrip().endswith(command)
    accepted = sum(row["accept"] == "yes" for row in rows)
    summary = relabel(train.index.url, str(folder / "decisions.csv"), str(tmp_path / "cleaned"))
    assert f"{len(rows) - accepted:,} not accepted" in summary[0]


@pytest.mark.slow
def test_clean_finds_planted_faults(tmp_path: Path) -> None:
    """Of the shipped characters, 18 split in two, 9 merged with another one and 109 images under a wrong name; 800 steps."""
    pack("omniglot", ARCHIVE, str(tmp_path / "set"), OPTIONS)
    plant_faults(Plant(str(tmp_path / "set"), str(tmp_path / "planted")))
    train = Train(
        name="planted", runs=str(tmp_path / "runs"), data=(str(tmp_path / "planted"),), cluster=LOCAL, evaluate_every=0,
        sampler=SamplerConfig("uniform"), loader=LoaderConfig(size=(32, 32), workers=0),
        optim=OptimConfig(steps=800, lr=3e-3, warmup=50),
    )  # fmt: skip
    train.run()
    Clean(name=train.name, runs=train.runs, workers=0).run()
    tables = [tmp_path / "planted" / "truth.csv", tmp_path / "runs" / "planted" / "decisions.csv"]
    truth, decisions = (list(csv.DictReader(path.read_text().splitlines())) for path in tables)
    found = [each for each in scored(truth, decisions) if each.accepted]
    for kind, least in (("same", 14), ("wrong", 95)):  # 16 and 103 when it was written; of so few mixtures none is sure
        right = [each.true for each in found if each.kind == kind]
        assert sum(right) >= least
        assert sum(right) / len(right) >= 0.9


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"name": "nobody"}, "no run 'nobody'"),
        ({"accept": 0.0}, "clean takes --accept above 0 and up to 1"),
        ({"top": 0}, "--top of at least 1"),
        ({"data": "NOWHERE"}, "not a whole shard set (no index.json)"),
        ({"data": "FEW"}, "only 2 training identities"),
        ({"workers": -1}, "-1 loader processes"),
    ],
)
def test_wrong_input_of_clean(
    how: dict[str, Any], line: str, copy_of_run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = set_of_folders(tmp_path, "test") if how.get("data") == "FEW" else ""
    places = {"NOWHERE": str(tmp_path / "nowhere"), "FEW": few}
    how = {name: places.get(value, value) if name == "data" else value for name, value in how.items()}
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: Clean(**{"name": copy_of_run.name, "runs": copy_of_run.runs, **how}).run())
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert line in err
    assert not (Path(copy_of_run.runs) / copy_of_run.name / "decisions.csv").exists()


def test_clean_of_several_sets_or_before_the_end_is_refused(copy_of_run: Train) -> None:
    folder = Path(copy_of_run.runs) / copy_of_run.name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": [*config["data"], "other"]}))
    with pytest.raises(InputError, match=r"the run has 2 training sets.*name one with --data"):
        Clean(name=copy_of_run.name, runs=copy_of_run.runs).run()
    (folder / "model.pt").unlink()
    with pytest.raises(InputError, match="no trained model yet"):
        Clean(name=copy_of_run.name, runs=copy_of_run.runs).run()


def test_export_writes_both_forms(trained: Train, tmp_path: Path) -> None:
    for suffix in (".onnx", ".pt2"):
        Export(name=trained.name, runs=trained.runs, to=tmp_path / f"model{suffix}").run()
        assert (tmp_path / f"model{suffix}").stat().st_size > 100_000
    with pytest.raises(InputError, match="not a format"):
        Export(name=trained.name, runs=trained.runs, to=tmp_path / "model.h5").run()
    with pytest.raises(InputError, match="BoxMOT passes 256x128"):
        Export(name=trained.name, runs=trained.runs, to=tmp_path / "boxmot.onnx", format="boxmot").run()
    assert not (tmp_path / "boxmot.onnx").exists()


def test_too_many_unreadable_samples_end_the_run_with_their_list(tmp_path: Path) -> None:
    pack("omniglot", ARCHIVE, str(tmp_path / "set"), OPTIONS)
    index = read_index(str(tmp_path / "set"))
    for sample in range(0, len(index), 2):  # half of them: others stand in
        shard = index.shards[index.blocks["shard"][index.samples["block"][sample]]]
        with (tmp_path / "set" / shard.name).open("r+b") as file:
            file.seek(int(index.samples["offset"][sample]))
            file.write(bytes(int(index.samples["size"][sample])))
    train = short(str(tmp_path / "set"), str(tmp_path / "runs"), cluster=LOCAL)
    with pytest.raises(InputError, match=r"\d+ of 32 samples could not be read, more than .*: .*train-0000"):
        train.run()
    assert not (Path(train.runs) / train.name / "metrics.json").exists()


def test_the_script_as_it_stands_ends_with_2_and_one_line(tmp_path: Path) -> None:
    ended = script("evaluate", "--name", "nobody", "--runs", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr == f"error: no run 'nobody': {tmp_path}; name one with --name; is --runs right?\n"
