"""What a comparison takes for a run that it need not train."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from datasets.errors import InputError
from trainers.actions import Train as ActionsTrain
from trainers.attributes import Train
from trainers.engine.compare import ended_run
from trainers.engine.config import to_json
from trainers.engine.job import resolved, start_run
from trainers.engine.optim import OptimConfig
from trainers.engine.run import CONFIG, METRICS, Run
from trainers.tasks.attributes.config import Stage


def test_an_ended_run_is_read_if_its_settings_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Train(data=("set",), name="run", runs=str(tmp_path), arm="joint")
    run = Run(str(tmp_path), "run")
    run.write_text(CONFIG, to_json(replace(asked, data=(str(tmp_path / "set"),), resume=True)))  # as a run stores it
    run.write_text(METRICS, json.dumps({"step": 1}))
    assert ended_run(asked).url == run.url
    assert ended_run(replace(asked, cluster=ClusterConfig(workers=1), record_every=20)).url == run.url
    run.write_text(
        CONFIG, to_json(resolved(replace(asked, data=(str(tmp_path / "set"),), resume=True), ""))
    )  # batch norm's choice, too
    assert ended_run(replace(asked, cluster=ClusterConfig(workers=4))).url == run.url
    for other, told in [
        (replace(asked, data=("another",)), "another data"),
        (replace(asked, seed=1), "another seed: 0"),
        (replace(asked, stage3=replace(asked.stage3, most=77)), "another stage3.most: 300"),
        (replace(asked, stage1=Stage(tasks=("mask",))), "another stage1.tasks"),
    ]:
        with pytest.raises(InputError, match=f"trained with {told}.*another --name"):
            ended_run(other)


def test_batch_norm_sees_a_part_of_a_workers_samples_at_a_time(tmp_path: Path) -> None:
    config = ActionsTrain(name="run", runs=str(tmp_path), batch=128, cluster=ClusterConfig(workers=2))
    found = [resolved(replace(config, optim=OptimConfig(accumulate=parts)), "").optim.sync_batch_norm for parts in (1, 2, 4)]
    assert found == [False, False, True]


@pytest.mark.parametrize(
    ("batch", "workers", "fewest", "expected"),
    [(64, 1, 0, True), (64, 2, 0, False), (64, 4, 0, True), (128, 4, 0, False), (96, 4, 0, True), (64, 2, 1, True)],
)
def test_batch_norm_is_over_all_workers_where_each_has_few_samples_or_their_number_may_change(
    batch: int, workers: int, fewest: int, expected: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is decided once: a resumed run keeps it, and says so where that makes its number of workers matter."""
    config = Train(name="run", runs=str(tmp_path), batch=batch, cluster=ClusterConfig(workers=workers, fewest=fewest))
    first = resolved(config, "")
    assert first.optim.sync_batch_norm is expected
    for chosen in (True, False):
        assert resolved(replace(config, optim=replace(config.optim, sync_batch_norm=chosen)), "").optim.sync_batch_norm is chosen
    Run(str(tmp_path), "run").write_text(CONFIG, to_json(first))
    for others in (1, 2, 4):
        resumed = resolved(replace(config, resume=True, cluster=ClusterConfig(workers=others)), "")
        assert resumed.optim.sync_batch_norm is expected
        start_run(resumed)
        noted = "another number of workers changes the results" in capsys.readouterr().out
        assert noted == (not expected and others != workers)
    changed = replace(resumed, optim=replace(resumed.optim, sync_batch_norm=not expected))
    with pytest.raises(InputError, match=r"another optim\.sync_batch_norm"):
        start_run(changed)


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe\xfa", b"{", b"[" * 100_000])
def test_a_damaged_file_of_a_run_is_one_line(damaged: bytes, tmp_path: Path) -> None:
    run = Run(str(tmp_path), "run")
    run.write_text(CONFIG, to_json(Train()))
    run.objects.put(METRICS, damaged)
    with pytest.raises(InputError, match=r"metrics\.json") as error:
        run.read_json(METRICS)
    assert str(error.value).isprintable()
