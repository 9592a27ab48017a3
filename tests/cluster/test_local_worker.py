"""The local worker, alone and in turn with Ray, and its versions of the difficulty vector."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.checkpoint_folder import RunFolder
from cluster.config import ClusterConfig
from cluster.difficulty_channel import DifficultyChannel
from cluster.launch import claimed, connect, launch
from cluster.local_worker import LocalWorker
from cluster.ray_worker import RayWorker
from cluster.storage import storage_uri
from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.checkpoint import read_state, write_state

ODD = "my runs 50%25 a+b=ü"  # what a folder or a prefix may be called


def worker_of(runs: str) -> LocalWorker:
    return LocalWorker(torch.device("cpu"), RunFolder(runs, "run"), lambda records, notices: None)


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
        with claimed(config, "run", str(tmp_path)) as folder:
            return launch(work, {"x": 6, "y": y}, config, folder, lambda *new: shown.append(new))

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
    worker.save(f"step-{done:08d}", lambda folder: (folder / "state.pt").write_text(str(done)) and None)
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_goes_on_under_ray_and_locally_again(s3_url: str) -> None:
    def start(steps: int, config: ClusterConfig) -> Any:
        with claimed(config, "run", f"{s3_url}/{ODD}") as folder:
            return launch(goes_on, {"steps": steps}, config, folder, lambda *new: None)

    local, ray_train = ClusterConfig(local=True), ClusterConfig(workers=1, max_failures=0)
    assert [start(10, local), start(5, local), start(10, ray_train), start(1, local), start(4, ray_train)] == [10, 15, 25, 26, 30]


def test_launching_imports_no_ray() -> None:
    code = "import sys, cluster.launch, cluster.difficulty_channel, cluster.config; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
