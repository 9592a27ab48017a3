"""What a comparison takes for a run that it need not train."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch import ClusterConfig
from datasets.errors import InputError
from trainers.attributes import Stage, Train
from trainers.engine.config import to_json
from trainers.engine.job import ended_run
from trainers.engine.run import CONFIG, METRICS, Run


def test_an_ended_run_is_read_if_its_settings_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Train(data=("set",), name="run", runs=str(tmp_path), arm="joint")
    run = Run(str(tmp_path), "run")
    run.write_text(CONFIG, to_json(replace(asked, data=(str(tmp_path / "set"),), resume=True)))  # as a run stores it
    run.write_text(METRICS, json.dumps({"step": 1}))
    assert ended_run(asked).url == run.url
    assert ended_run(replace(asked, cluster=ClusterConfig(workers=1), record_every=20)).url == run.url
    for other, told in [
        (replace(asked, data=("another",)), "another data"),
        (replace(asked, seed=1), "another seed: 0"),
        (replace(asked, stage3=replace(asked.stage3, most=77)), "another stage3.most: 300"),
        (replace(asked, stage1=Stage(tasks=("mask",))), "another stage1.tasks"),
    ]:
        with pytest.raises(InputError, match=f"trained with {told}.*another --name"):
            ended_run(other)
