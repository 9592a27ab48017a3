"""A run's checkpoints: stored whole or not at all, damaged ones passed over, a way back to older ones; local and in S3."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import FaultProxy, Faults
from pyarrow.fs import FileSelector
from ranks import on_ranks

from cluster.checkpoint_folder import MANIFEST, RAY_SNAPSHOT, RunFolder, step_of
from cluster.errors import ClusterError, UnreachableError
from cluster.lease import Lease
from cluster.local_worker import LocalWorker
from cluster.scratch import SCRATCH, scratch
from datasets.errors import InputError

ODD = "my runs 50%25 a+b=ü#?x"  # what a folder or a prefix may be called


@pytest.fixture(params=["folder", "S3"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for runs, whose name has special characters."""
    return str(tmp_path / ODD) if request.param == "folder" else f"{request.getfixturevalue('s3_url')}/{ODD}"


class Waiting(LocalWorker):
    """A worker that waits until a checkpoint is stored."""

    def save(self, *arguments: Any, **keywords: Any) -> None:
        super().save(*arguments, **keywords)
        self.flush()


def worker_of(runs: str, keep: int = 2, said: list[str] | None = None) -> LocalWorker:
    notices = [] if said is None else said
    return Waiting(torch.device("cpu"), RunFolder(runs, "run", keep), lambda records, new: notices.extend(new))


def writing(text: str, name: str = "state.pt") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def texts(folder: Path) -> dict[str, str]:
    found = {path.name: path.read_text() for path in folder.iterdir()}
    if "" in found.values():
        raise InputError("the checkpoint cannot be read", str(folder))
    return found


def put(runs: str, path: str, text: str) -> None:
    """Write a file into the run's folder."""
    folder = RunFolder(runs, "run")
    folder.filesystem.create_dir(f"{folder.path}/{path}".rpartition("/")[0])
    with folder.filesystem.open_output_stream(f"{folder.path}/{path}") as out:
        out.write(text.encode())


def remove(runs: str, path: str) -> None:
    folder = RunFolder(runs, "run")
    folder.filesystem.delete_file(f"{folder.path}/{path}")


def checkpoints(runs: str) -> list[str]:
    """The checkpoints that are stored there."""
    folder = RunFolder(runs, "run")
    listed = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return sorted(file.base_name for file in listed if file.base_name.startswith("step-"))


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
    assert checkpoints(runs) == ["step-00000010-of-1"]
    assert worker.restore(texts) == {"state.pt": "all", "rows 0+1 100%.pt": "mine"}
    assert worker.restore(texts, lambda names: [name for name in names if name.startswith("rows")]) == {
        "rows 0+1 100%.pt": "mine"
    }


def test_a_save_that_fails_leaves_the_checkpoint_before_it(runs: str) -> None:
    worker = worker_of(runs)
    worker.save("step-00000010", writing("10"))
    with pytest.raises(ZeroDivisionError):
        worker.save("step-00000020", lambda folder: writing(str(1 // 0))(folder))
    assert worker.restore(texts) == {"state.pt": "10"}
    assert checkpoints(runs) == ["step-00000010"]


class Gate(Lease):
    """A lease whose check waits until the gate is opened, and then raises ``error``, if there is one."""

    def __init__(self, error: ClusterError | None = None) -> None:
        self.opened, self.error = threading.Event(), error

    def check(self) -> None:
        assert self.opened.wait(60)
        if self.error:
            raise self.error


def test_training_goes_on_while_a_checkpoint_is_stored(runs: str) -> None:
    gate = Gate()
    worker = LocalWorker(torch.device("cpu"), RunFolder(runs, "run", lease=gate), lambda records, notices: None)
    state = ["10"]
    worker.save("step-00000010", lambda folder: writing(state[0])(folder))
    state[0] = "training goes on"
    assert checkpoints(runs) == []
    gate.opened.set()
    worker.save("step-00000020", writing("20"))  # waits for the one before it
    worker.flush()
    assert checkpoints(runs) == ["step-00000010", "step-00000020"]
    remove(runs, "step-00000020/state.pt")
    assert worker.restore(texts) == {"state.pt": "10"}


def local_worker(runs: Path, gate: Gate) -> LocalWorker:
    return LocalWorker(torch.device("cpu"), RunFolder(str(runs), "run", lease=gate), lambda records, notices: None)


@pytest.mark.parametrize("next_one", [lambda worker: worker.flush(), lambda worker: worker.save("step-00000020", writing("20"))])
def test_an_error_of_storing_is_raised_by_what_comes_next(tmp_path: Path, next_one: Callable[[LocalWorker], None]) -> None:
    gate = Gate(ClusterError("'run' was taken over"))
    gate.opened.set()
    worker = local_worker(tmp_path, gate)
    worker.save("step-00000010", writing("10"))
    with pytest.raises(ClusterError, match="taken over"):
        next_one(worker)
    worker.flush()  # it is raised once
    assert list(tmp_path.glob("run/step-*")) == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_waits_for_the_checkpoint(tmp_path: Path, fails: bool) -> None:
    gate = Gate()
    worker = local_worker(tmp_path, gate)

    def trains() -> None:
        with worker.folder.flushed():
            worker.save("step-00000010", writing("10"))
            threading.Timer(0.2, gate.opened.set).start()
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        trains()
    assert checkpoints(str(tmp_path)) == ["step-00000010"]


KILLED = """
import os, pathlib, signal, sys
from cluster import checkpoint_folder

def copy_and_die(source, target, *filesystems):
    copy(source, target, *filesystems)
    with filesystems[1].open_output_stream(target + "/state.pt") as half:
        half.write(b"")
    os.kill(os.getpid(), signal.SIGKILL)

class Alone:
    rank, world = 0, 1

copy, checkpoint_folder.copy_files = checkpoint_folder.copy_files, copy_and_die
write = lambda folder: (folder / "state.pt").write_text("20")
run = checkpoint_folder.RunFolder(sys.argv[1], "run")
run.save(Alone(), "step-00000020", write, None)
run.flush()
"""


def kill_during_a_save(runs: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, runs], timeout=120)
    assert ended.returncode == -signal.SIGKILL


def test_a_process_killed_during_its_first_save_begins_anew(runs: str) -> None:
    said = list[str]()
    kill_during_a_save(runs)
    assert worker_of(runs, said=said).restore(texts) is None
    assert said == ["passed over step-00000020 (the checkpoint cannot be read). The run begins at step 0"]


def test_a_process_killed_during_a_save_leaves_the_checkpoint_before_it(runs: str) -> None:
    said = list[str]()
    worker = worker_of(runs, said=said)
    worker.save("step-00000010", writing("10"))
    kill_during_a_save(runs)
    assert checkpoints(runs) == ["step-00000010", "step-00000020"]
    assert worker.restore(texts) == {"state.pt": "10"}
    assert said == ["passed over step-00000020 (the checkpoint cannot be read). The run goes on from step-00000010"]
    worker.save("step-00000020", writing("20 again"))
    assert worker.restore(texts) == {"state.pt": "20 again"}


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("state.pt", "", "state.pt has 0 of 2 bytes"),
        ("state.pt", "3", "state.pt has 1 of 2 bytes"),
        ("state.pt", "31", "state.pt has another checksum than in manifest.json"),
        ("state.pt", None, "state.pt is missing"),
        (MANIFEST, "", "manifest.json is damaged"),
        (MANIFEST, '{"files": {"state', "manifest.json is damaged"),
        (MANIFEST, "[]", "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(runs: str, file: str, text: str | None, why: str) -> None:
    said = list[str]()
    worker = worker_of(runs, keep=3, said=said)
    for step in (10, 20, 30):
        worker.save(f"step-{step:08d}", writing(str(step)))
    remove(runs, f"step-00000030/{file}") if text is None else put(runs, f"step-00000030/{file}", text)
    assert worker.restore(texts) == {"state.pt": "20"}
    assert said == [f"passed over step-00000030 ({why}). The run goes on from step-00000020"]
    for step in (25, 35):  # at other steps than before: the damaged one counts for nothing, and goes when its step is passed
        worker.save(f"step-{step:08d}", writing(str(step)))
    assert checkpoints(runs) == ["step-00000020", "step-00000025", "step-00000035"]


def test_a_checkpoint_that_somebody_deleted_is_no_obstacle(runs: str) -> None:
    worker = worker_of(runs)
    for step in (10, 20):
        worker.save(f"step-{step:08d}", writing(str(step)))
    worker.folder.filesystem.delete_dir(f"{worker.folder.path}/step-00000020")
    assert worker_of(runs).restore(texts) == {"state.pt": "10"}
    worker.save("step-00000030", writing("30"))
    assert worker.restore(texts) == {"state.pt": "30"}


def test_no_whole_checkpoint_is_one_line_with_the_way_back(runs: str) -> None:
    worker = worker_of(runs)
    for step in (10, 20):
        worker.save(f"step-{step:08d}", writing(str(step)))
        put(runs, f"step-{step:08d}/state.pt", "")
    with pytest.raises(ClusterError) as caught:
        worker.restore(texts)
    assert str(caught.value) == (
        "none of the run's checkpoints is whole: step-00000020 (state.pt has 0 of 2 bytes); "
        f"step-00000010 (state.pt has 0 of 2 bytes): {runs}/run; give --resume-from 0 to train from the start"
    )
    worker.folder.go_back(0)
    assert worker.restore(texts) is None


def test_going_back_sets_later_checkpoints_aside_until_the_run_has_passed_them(runs: str) -> None:
    worker = worker_of(runs, keep=3)
    for step in (10, 20, 30):
        worker.save(f"step-{step:08d}", writing(str(step)))
    with pytest.raises(ClusterError, match=r"no checkpoint of step 15: .*; there are those of: 10, 20, 30"):
        worker.folder.go_back(15)
    worker.folder.go_back(10)
    assert worker.restore(texts) == {"state.pt": "10"}
    worker.save("step-00000015", writing("15"))
    again = worker_of(runs, keep=3)  # after a restart of the worker
    assert again.restore(texts) == {"state.pt": "15"}
    again.folder.go_back(30)  # that was better, after all
    assert worker_of(runs, keep=3).restore(texts) == {"state.pt": "30"}
    again.folder.go_back(15)
    assert again.restore(texts) == {"state.pt": "15"}
    for step in (20, 25):
        again.save(f"step-{step:08d}", writing(f"{step} again"))
    assert checkpoints(runs) == ["step-00000015", "step-00000020", "step-00000025", "step-00000030"]
    again.save("step-00000035", writing("35"))
    assert checkpoints(runs) == ["step-00000020", "step-00000025", "step-00000035"]
    assert worker_of(runs).restore(texts) == {"state.pt": "35"}


def test_checkpoints_of_earlier_versions_are_restored_if_they_can_be_read(runs: str) -> None:
    said = list[str]()
    worker = worker_of(runs, keep=2, said=said)
    for step in (10, 20, 30):
        put(runs, f"step-{step:08d}/state.pt", str(step))
    put(runs, "step-00000040-of-8/state.pt", "")
    put(runs, RAY_SNAPSHOT, json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "step-00000040-of-8"}}))
    assert worker.restore(texts) == {"state.pt": "30"}
    assert said == ["passed over step-00000040-of-8 (the checkpoint cannot be read). The run goes on from step-00000030"]
    worker.folder.go_back(20)
    assert worker.restore(texts) == {"state.pt": "20"}
    worker.save("step-00000050", writing("50"))
    assert checkpoints(runs) == ["step-00000020", "step-00000050"]


def share(rank: int, runs: str) -> list[Any]:
    """Store a checkpoint of two files in turn with the other rank, restore it, damage one rank's file, and restore again."""
    said = list[str]()

    class Ranked(Waiting):
        def gather(self, value: Any) -> list[Any]:
            values = [None, None]
            torch.distributed.all_gather_object(values, value)
            return values

        def meet(self) -> None:
            torch.distributed.barrier()

    worker = Ranked(torch.device("cpu"), RunFolder(runs, "run"), lambda records, new: said.extend(new), rank=rank, world=2)
    found = list[Any]()
    for step in (10, 20):
        worker.save(f"step-{step:08d}", writing("all"), write_own=writing(f"{step} of {rank}", f"share-{rank}.pt"))
    for _ in range(2):
        found.append(worker.restore(texts, lambda names: [f"share-{rank}.pt"]))
        if rank == 1:
            put(runs, "step-00000020-of-2/share-1.pt", "20 of 7")
        worker.gather(None)
    return [found, said]


def test_all_ranks_go_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    for rank, (found, said) in enumerate(on_ranks(2, share, runs)):
        assert found == [{f"share-{rank}.pt": f"{step} of {rank}"} for step in (20, 10)]
        fault = "share-1.pt has another checksum than in manifest.json"
        passed = f"passed over step-00000020-of-2 ({fault}). The run goes on from step-00000010-of-2"
        assert said == ([] if rank else [passed])


def test_steps_of_names() -> None:
    names = ("", "step-00000200", "step-00000200-of-8", "step-x", "step-5.old")
    assert [step_of(name) for name in names] == [-1, 200, 200, -1, -1]


def test_temporary_folders_of_killed_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("left", "held", "new"):
        (folder := tmp_path / f"{SCRATCH}{name}").mkdir()
        (folder / "state.pt").write_bytes(b"1")
        if name != "new":
            os.utime(folder, (0, 0))
    holder = os.open(tmp_path / f"{SCRATCH}held", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with scratch() as folder:
        assert {path.name for path in tmp_path.iterdir()} == {f"{SCRATCH}held", f"{SCRATCH}new", folder.name}
    os.close(holder)
    with scratch():
        assert {path.name for path in tmp_path.iterdir()} & {f"{SCRATCH}held", f"{SCRATCH}new"} == {f"{SCRATCH}new"}


def test_a_store_that_refuses_is_tried_again_and_then_named_in_one_line(
    s3_proxy: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(s3_url)
    worker.save("step-00000010", writing("10"))
    s3_proxy.read_only = True
    threading.Timer(1.0, setattr, (s3_proxy, "read_only", False)).start()
    worker.save("step-00000020", writing("20"))
    assert worker.restore(texts) == {"state.pt": "20"}
    s3_proxy.read_only = True
    monkeypatch.setattr("cluster.checkpoint_folder.PATIENCE_S", 0.0)
    with pytest.raises(UnreachableError) as refused:
        worker.save("step-00000030", writing("30"))
    where = re.escape(f"{s3_url}/run; mend that, then continue the run with --resume")
    assert re.fullmatch(rf"a checkpoint cannot be stored \(.*ACCESS_DENIED.*\): {where}", str(refused.value))
    s3_proxy.read_only = False
    assert worker.restore(texts) == {"state.pt": "20"}
    s3_proxy.faults = Faults(slow_down=1.0)
    with pytest.raises(UnreachableError, match=r"the run's checkpoints cannot be read \(.*SERVICE_UNAVAILABLE"):
        worker.restore(texts)
