"""How runs are started and resumed, for all jobs: damaged folders, --resume auto, --resume-from, two drivers, names."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import LOCAL, RUNS, KilledError, face_run, killed_after

from cluster.errors import ClusterError
from cluster.lease import held
from cluster.ledger import open_ledger
from cluster.local_worker import LocalWorker
from datasets.command_line import parse
from datasets.errors import InputError, run_main
from trainers import attributes
from trainers.engine.config import to_json
from trainers.engine.job import JobConfig, named, resolved, shown, start_run
from trainers.engine.run import CONFIG, METRICS, Run

ROOT = Path(__file__).parents[3]
MOUNT = ("unshare", "--user", "--map-root-user", "--mount")  # a small disk of this test's own, without any right
no_mounts = subprocess.run((*MOUNT, "true"), capture_output=True, check=False).returncode != 0
FULL_DISK = """
mount -t tmpfs -o size=3m none "$1"
train="$2 trainers/reid.py --cluster.local --runs $1 --name run --loader.workers 0 --loader.size 32 32"
$train --optim.steps 4 --checkpoint-every 2 --record-every 1
echo "ended with $?"
mount -o remount,size=64m "$1"
$train --resume && ls "$1/run"
"""


def command(*words: str) -> int:
    """Run a command line of the faces' job here; returns its exit code."""
    arguments = list(words)

    def train() -> None:
        parse(attributes.Train, "attributes.py", arguments, default=attributes.defaults("train", arguments)).run()

    with pytest.raises(SystemExit) as ended:
        run_main(train)
    return int(ended.value.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """The files that are new, gone, or other than before."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def config_of(run_of: Callable[..., Any], root: Path) -> Any:
    return run_of(root, cluster=LOCAL, name="run", runs=str(root / "runs"), checkpoint_every=1, record_every=1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of runs with one that was killed after three of four steps, and the checksum of an undisturbed run's weights."""
    root = tmp_path_factory.mktemp("killed")
    train = config_of(face_run, root)
    whole = replace(train, name="whole")
    whole.run()
    with pytest.MonkeyPatch.context() as patch:
        killed_after("step-00000003", patch)
        with pytest.raises(KilledError):
            train.run()
    return root / "runs", Run(train.runs, "whole").read_json(METRICS)["weights_crc32c"]


WAYS = ("emptied", "cut", "missing")


def damages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Damage each file below a folder in turn, three ways, and put it back."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for how, data in zip(WAYS, (b"", whole[: len(whole) // 2], None), strict=True):
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            yield path, how
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)


@pytest.mark.parametrize(("name", "step", "cases"), [("run", 3, 27), ("whole", 4, 39)])
def test_every_file_of_a_run_may_be_damaged(
    name: str, step: int, cases: int, killed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A run that was killed, and one that had ended, go on from the newest whole checkpoint to the same weights; or the command
    ends in one line with exit code 2."""
    monkeypatch.setattr(attributes, "write_report", lambda *what: None)  # it takes longer than the rest, and reads none of these
    (runs, weights), newest, ended = killed, f"step-{step:08d}", dict[str, int]()
    for path, how in damages(runs / name):
        shutil.copytree(runs / name, tmp_path / name)
        code = command("--name", name, "--runs", str(tmp_path), "--resume")
        out, err = capsys.readouterr()
        where = f"{path.relative_to(runs / name)} {how}"
        assert "Traceback" not in out + err, where
        if code:
            assert (code, err.count("\n")) == (2, 1), where
        else:
            assert Run(str(tmp_path), name).read_json(METRICS)["weights_crc32c"] == weights, where
            damaged = newest in where and where != f"{newest}/manifest.json missing"
            assert (f"passed over {newest} (" in out) == damaged, where
        ended[where] = code
        shutil.rmtree(tmp_path / name)
    settings, lease = (f"{CONFIG} {how}" for how in WAYS), (f"lease/00000001.json {how}" for how in WAYS[:2])
    assert {where for where, code in ended.items() if code} == {*settings, *lease}
    assert len(ended) == cases


def test_a_run_that_lost_its_settings_has_copies_of_them(
    killed: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, weights = killed
    run = Path(shutil.copytree(runs / "run", tmp_path / "run"))
    (run / CONFIG).unlink()
    for words in (("--resume",), ("--resume", "auto"), ("--config", str(runs / "whole" / CONFIG))):
        assert command("--name", "run", "--runs", str(tmp_path), *words) == 2
        assert f"the run has checkpoints and no {CONFIG}: {run}; put the file back: " in capsys.readouterr().err
    shutil.copy(run / "step-00000003" / CONFIG, run)
    assert command("--name", "run", "--runs", str(tmp_path), "--resume") == 0
    assert Run(str(tmp_path), "run").read_json(METRICS)["weights_crc32c"] == weights


def test_a_run_goes_back_to_an_older_checkpoint(
    killed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, weights = killed
    shutil.copytree(runs / "run", tmp_path / "run")
    where = ("--name", "run", "--runs", str(tmp_path))
    before = files(tmp_path)
    assert command(*where, "--resume-from", "1") == 2
    line = f"error: the run has no checkpoint of step 1: {tmp_path}/run; there are those of: 2, 3\n"
    assert capsys.readouterr().err == line
    assert changed(before, files(tmp_path)) == {"run/lease/00000002.json", "run/lease/00000001.json"}
    with monkeypatch.context() as patch:
        killed_after("step-00000003", patch)
        with pytest.raises(KilledError):
            command(*where, "--resume-from", "2")
    assert "step 3/4" in capsys.readouterr().out  # it was trained once more
    assert command(*where, "--resume") == 0  # and does not go back again
    assert "step 3/4" not in capsys.readouterr().out
    assert Run(str(tmp_path), "run").read_json(METRICS)["weights_crc32c"] == weights
    assert command(*where, "--resume-from", "0") == 0
    assert "step 1/4" in capsys.readouterr().out
    assert Run(str(tmp_path), "run").read_json(METRICS)["weights_crc32c"] == weights


def test_resume_auto_starts_a_run_and_then_continues_it(
    killed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command, as a schedule or a Kubernetes Job repeats it."""
    runs, weights = killed
    settings = str(runs / "whole" / CONFIG)
    words = ("--name", "run", "--runs", str(tmp_path), "--config", settings, "--resume", "auto")
    with monkeypatch.context() as patch:
        killed_after("step-00000002", patch)
        with pytest.raises(KilledError):
            command(*words)
    assert "step 1/4" in capsys.readouterr().out
    assert command(*words, "--seed", "1") == 2
    assert "trained with another seed: 0" in capsys.readouterr().err
    assert command(*words) == 0
    assert "step 2/4" not in capsys.readouterr().out
    assert Run(str(tmp_path), "run").read_json(METRICS)["weights_crc32c"] == weights
    assert command(*words[2:]) == 2
    assert "--resume auto needs the --name of a run" in capsys.readouterr().err


@pytest.mark.parametrize("run_of", RUNS)
def test_a_refused_command_changes_nothing_of_a_run_under_way(run_of: Callable[..., Any], tmp_path: Path) -> None:
    train = resolved(config_of(run_of, tmp_path), "")
    Run(train.runs, "run").write_text(CONFIG, to_json(train))
    with held(train.runs, "run"), held(train.runs, "new"):
        before = files(tmp_path)
        for refused in (replace(train, resume=True, evaluate_every=1), replace(train, name="new")):
            with pytest.raises(ClusterError, match=f"'{refused.name}' is under way: process .* on .* since "):
                refused.run()
        assert files(tmp_path) == before


def test_a_run_that_was_taken_over_stores_no_more_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, save = config_of(face_run, tmp_path), LocalWorker.save

    def save_and_lose(self: LocalWorker, *what: Any) -> None:
        save(self, *what)
        self.flush()
        open_ledger(f"{train.runs}/run").create("lease/00000002.json", {"host": "other", "process": 1, "since": "now"})

    monkeypatch.setattr(LocalWorker, "save", save_and_lose)
    with pytest.raises(ClusterError, match="'run' was taken over by process 1 on other since now"):
        train.run()
    assert sorted(path.name for path in (tmp_path / "runs" / "run").glob("step-*")) == ["step-00000001"]


def test_a_name_that_was_used_meanwhile_is_refused(tmp_path: Path) -> None:
    train = resolved(attributes.Train(data=("set",), name="run", runs=str(tmp_path)), "")
    run = start_run(train)
    run.write_text(CONFIG, "by another driver")
    with pytest.raises(InputError, match="the run 'run' exists"), shown(run, train):
        pass
    assert run.read_text(CONFIG) == "by another driver"


def test_unnamed_runs_of_one_second_have_names_of_their_own() -> None:
    names = [named(JobConfig(), "reid").name for _ in range(100)]
    assert len(set(names)) == 100
    assert all(re.fullmatch(r"reid-\d{8}-\d{6}-[0-9a-f]{6}", name) for name in names)


@pytest.mark.slow
@pytest.mark.skipif(no_mounts, reason="this system lets users mount nothing (unshare --user --mount)")
def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on(tmp_path: Path) -> None:
    script = (*MOUNT, "bash", "-c", FULL_DISK, "bash", str(tmp_path), sys.executable)
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    fault = f"error: a checkpoint cannot be stored (no space left on device): {tmp_path}/run; mend that, then continue the run"
    assert ended.stderr.splitlines() == [f"{fault} with --resume"]
    assert "ended with 2" in ended.stdout.splitlines()
    assert "model.pt" in ended.stdout.split()
    assert ended.returncode == 0
