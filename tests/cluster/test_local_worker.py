"""The local worker and its checkpoints: stored whole or not at all, and restored by local runs and by runs under Ray."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import FileSelector

from cluster.checkpoint_folder import LATEST, RAY_LATEST, RunFolder, step_of
from cluster.config import ClusterConfig
from cluster.difficulty_channel import DifficultyChannel
from cluster.errors import ClusterError
from cluster.launch import connect, launch
from cluster.local_worker import LocalWorker
from cluster.ray_worker import RayWorker
from cluster.storage import storage_uri
from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.checkpoint import read_state, write_state

ODD = "my runs 50%25 a+b=ü"  # what a folder or a prefix may be called


@pytest.fixture(params=["folder", "S3"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for runs, whose name has special characters."""
    return str(tmp_path / f"{ODD}#?x") if request.param == "folder" else f"{request.getfixturevalue('s3_url')}/{ODD}#?x"


def worker_of(runs: str, keep: int = 2) -> LocalWorker:
    return LocalWorker(torch.device("cpu"), RunFolder(runs, "run"), keep, lambda records, notices: None)


def writing(text: str, name: str = "state.pt") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def checkpoints(runs: str) -> list[str]:
    """The checkpoints that are stored there."""
    folder = RunFolder(runs, "run")
    listed = folder.filesystem.get_file_info(FileSelector(folder.path))
    return sorted(file.base_name for file in listed if file.base_name.startswith("step-"))


def stored_by_ray(runs: str, name: str, text: str) -> None:
    """Leave what Ray Train leaves of a run with that checkpoint."""
    folder = RunFolder(runs, "run")
    folder.filesystem.create_dir(f"{folder.path}/{name}")
    state = {"latest_checkpoint_result": {"checkpoint_dir_name": name}}
    for path, data in ((f"{name}/state.pt", text), (RAY_LATEST, json.dumps(state))):
        with folder.filesystem.open_output_stream(f"{folder.path}/{path}") as out:
            out.write(data.encode())


def test_a_checkpoint_is_restored_and_so_many_are_kept(runs: str) -> None:
    worker = worker_of(runs)
    assert worker.restore(texts) is None
    for step in (10, 20, 30):
        worker.save(f"step-{step:08d}", writing(str(step)))
    assert worker_of(runs).restore(texts) == {"state.pt": "30"}
    assert checkpoints(runs) == ["step-00000020", "step-00000030"]


def test_a_rank_reads_the_files_that_it_wants_of_a_sharded_checkpoint(runs: str) -> None:
    worker = worker_of(runs)
    worker.save("step-00000010", writing("all"), write_own=writing("mine", "rows 0+1 100%.pt"))
    assert worker.folder.latest() == "step-00000010-of-1"
    assert worker.restore(texts) == {"state.pt": "all", "rows 0+1 100%.pt": "mine"}
    assert worker.restore(texts, lambda names: [name for name in names if name.startswith("rows")]) == {
        "rows 0+1 100%.pt": "mine"
    }


def test_the_later_of_local_checkpoints_and_rays_is_restored(runs: str) -> None:
    worker = worker_of(runs, keep=1)
    stored_by_ray(runs, "step-00000010", "ray's")
    assert worker.restore(texts) == {"state.pt": "ray's"}
    worker.save("step-00000020", writing("local"))
    assert worker.restore(texts) == {"state.pt": "local"}
    stored_by_ray(runs, "step-00000030-of-8", "ray's again")
    assert worker.restore(texts) == {"state.pt": "ray's again"}
    worker.save("step-00000040", writing("local again"))
    assert checkpoints(runs) == ["step-00000010", "step-00000030-of-8", "step-00000040"]  # only local ones are deleted


def test_a_save_that_fails_leaves_the_checkpoint_before_it(runs: str) -> None:
    worker = worker_of(runs)
    worker.save("step-00000010", writing("10"))
    with pytest.raises(ZeroDivisionError):
        worker.save("step-00000020", lambda folder: writing(str(1 // 0))(folder))
    assert worker.restore(texts) == {"state.pt": "10"}
    assert checkpoints(runs) == ["step-00000010"]


KILLED = """
import os, pathlib, signal, sys
from cluster import checkpoint_folder

def copy_and_die(*arguments):
    copy(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

copy, checkpoint_folder.copy_files = checkpoint_folder.copy_files, copy_and_die
checkpoint_folder.RunFolder(sys.argv[1], "run").put(pathlib.Path(sys.argv[2]), "step-00000020", keep=2)
"""


def test_a_process_killed_during_a_save_leaves_the_checkpoint_before_it(runs: str, tmp_path: Path) -> None:
    worker = worker_of(runs)
    worker.save("step-00000010", writing("10"))
    (folder := tmp_path / "written").mkdir()
    writing("20")(folder)
    ended = subprocess.run([sys.executable, "-c", KILLED, runs, str(folder)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert checkpoints(runs) == ["step-00000010", "step-00000020"]
    assert worker.restore(texts) == {"state.pt": "10"}
    worker.save("step-00000020", writing("20 again"))
    assert worker.restore(texts) == {"state.pt": "20 again"}


def test_a_checkpoint_that_somebody_deleted_is_no_obstacle(runs: str) -> None:
    worker = worker_of(runs, keep=1)
    worker.save("step-00000010", writing("10"))
    worker.folder.filesystem.delete_dir(f"{worker.folder.path}/step-00000010")
    worker.save("step-00000020", writing("20"))
    assert worker.restore(texts) == {"state.pt": "20"}


def test_a_damaged_record_of_the_latest_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LATEST).write_text("{")
    with pytest.raises(ClusterError, match=f"the file that names the latest checkpoint is damaged .*{LATEST}; remove it"):
        worker_of(str(tmp_path)).restore(texts)


def test_steps_of_names() -> None:
    assert [step_of(name) for name in ("", "step-00000200", "step-00000200-of-8")] == [-1, 200, 200]


def test_a_file_url_is_the_folder(tmp_path: Path) -> None:
    assert storage_uri(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"


def test_a_local_run_returns_and_raises_what_its_work_does(tmp_path: Path) -> None:
    shown = list[Any]()

    def work(worker: LocalWorker, settings: dict[str, Any]) -> int:
        worker.say("a notice")
        worker.record({"step": 1}, {"gets": 2.0})
        return int(settings["x"]) // int(settings["y"])

    def start(y: int) -> Any:
        config = ClusterConfig(local=True)
        connect(config)
        return launch(work, {"x": 6, "y": y}, config, name="run", runs=str(tmp_path), show=lambda *new: shown.append(new))

    assert start(2) == 3
    assert shown == [([], ["a notice"]), ([{"step": 1}], [])]
    with pytest.raises(ZeroDivisionError):
        start(0)


def versions(*numbers: int) -> list[Difficulty]:
    return [Difficulty(number, np.full(3, number, np.float32), np.arange(6, dtype=np.int32).reshape(3, 2)) for number in numbers]


def test_without_a_service_versions_are_put_directly_and_restored_from_a_checkpoint(tmp_path: Path) -> None:
    seen = list[int]()

    def channel(restored: list[Difficulty]) -> DifficultyChannel:
        return DifficultyChannel(
            worker_of(str(tmp_path)), "", lambda new: seen.append(new.version), restored, keep=2, after=0, patience=1.0
        )

    first = channel([])
    for version in versions(1, 2, 3):
        first.publish(version)
    first.close()
    restored = DifficultyChannel.restored(first.state())
    assert [version.version for version in restored] == [2, 3]
    np.testing.assert_array_equal(restored[1].cosine, versions(3)[0].cosine)
    np.testing.assert_array_equal(restored[1].neighbours, versions(3)[0].neighbours)
    channel(restored).close()
    assert seen == [1, 2, 3, 2, 3]


def test_versions_go_through_a_checkpoint_also_those_of_earlier_ones(tmp_path: Path) -> None:
    channel = DifficultyChannel(worker_of(str(tmp_path)), "", lambda new: None, versions(4, 5), keep=2, after=0, patience=1.0)
    state = channel.state()
    earlier = [[number, cosine, neighbours[:, 0].contiguous()] for number, cosine, neighbours in state]
    write_state(tmp_path / "state.pt", {"versions": state, "earlier": earlier})
    stored = read_state(tmp_path / "state.pt")
    for found, expected in zip(DifficultyChannel.restored(stored["versions"]), versions(4, 5), strict=True):
        assert found.version == expected.version
        np.testing.assert_array_equal(found.neighbours, expected.neighbours)
        assert found.neighbours.dtype == np.int32
    for found, expected in zip(DifficultyChannel.restored(stored["earlier"]), versions(4, 5), strict=True):
        np.testing.assert_array_equal(found.neighbours, expected.neighbours[:, :1])
        np.testing.assert_array_equal(found.nearest, expected.nearest)
        np.testing.assert_array_equal(found.cosine, expected.cosine)


def test_a_run_does_not_go_on_with_versions_that_hold_too_few_neighbours(tmp_path: Path) -> None:
    earlier = [Difficulty(4, np.zeros(30, np.float32), np.zeros((30, 1), np.int32))]
    table = DifficultyTable(30, SamplerConfig("neighbours"))
    with pytest.raises(InputError, match=r"version 4 .* has arrays \[30\] and \[30, 1\], the draws need \[30\] and \[30, 6\]"):
        DifficultyChannel(worker_of(str(tmp_path)), "", table.put, earlier, keep=2, after=0, patience=1.0)


def goes_on(worker: RayWorker | LocalWorker, settings: dict[str, Any]) -> int:
    """Work of a run: ``settings["steps"]`` more steps than its checkpoint has, which is then stored."""
    done = int(worker.restore(lambda folder: (folder / "state.pt").read_text()) or 0) + int(settings["steps"])
    worker.save(f"step-{done:08d}", writing(str(done)))
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_goes_on_under_ray_and_locally_again(s3_url: str) -> None:
    def start(steps: int, config: ClusterConfig) -> Any:
        return launch(goes_on, {"steps": steps}, config, name="run", runs=f"{s3_url}/{ODD}", show=lambda *new: None)

    local, ray_train = ClusterConfig(local=True), ClusterConfig(workers=1, max_failures=0)
    assert [start(10, local), start(5, local), start(10, ray_train), start(1, local), start(4, ray_train)] == [10, 15, 25, 26, 30]


def test_launching_imports_no_ray() -> None:
    code = "import sys, cluster.launch, cluster.difficulty_channel, cluster.config; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
