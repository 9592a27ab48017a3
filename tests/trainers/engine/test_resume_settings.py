"""What a resumed run may change: every setting of every job is either listed here with a reason, or refused in one line."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from facedata import faces

from datasets.command_line import parse
from datasets.errors import InputError, run_main
from datasets.loading.batches import LoaderConfig
from datasets.pack import Options, pack
from trainers import actions, attributes, detection, reid, sequences
from trainers.engine.config import to_json
from trainers.engine.job import JobConfig, start_run
from trainers.engine.run import CONFIG, Run

JOBS = {"reid": reid, "attributes": attributes, "detection": detection, "actions": actions, "sequences": sequences}
EVERYWHERE = {
    "resume", "resume_from", "config",  # how the command was given
    "evaluate_every", "checkpoint_every", "record_every",  # what is noted, and when
    "loader.workers", "loader.ahead", "loader.bad_share",  # who prepares the batches; when a run gives up
    *(f"cache.{name}" for name in ("folder", "gib", "fill")),  # from where bytes come
    # Other workers share the same batch. The driver's promise of equal results has its own tests.
    *(f"cluster.{name}" for name in ("local", "workers", "fewest", "cpus", "gpu", "max_failures", "stuck_s", "keep_checkpoints")),
    *(f"cluster.metrics_{name}" for name in ("port", "host", "file")),  # where figures can be read
    "optim.amp",  # how exactly is computed
    "preset",  # the name alone; its settings count
}  # fmt: skip
SCHEDULE = {"optim.steps", "optim.lr", "optim.warmup"}  # train longer, or lower the rate that diverged
STAGE = ("threshold", "least", "most", "lr", "warmup")  # the same of a stage; what it has taken stands in the journal
OWN = {
    "reid": {
        *SCHEDULE,
        "sampler.mode",
        "sampler.patience",  # whether and how long a draw waits for its version
        *(f"evaluation.{name}" for name in ("flip", "rerank", "rerank_k1", "rerank_k2", "rerank_lambda")),  # no weight
    },
    "detection": {*SCHEDULE, "adversary_lr"},
    "attributes": {f"stage{number}.{name}" for number in (1, 2, 3) for name in STAGE},
    "actions": set[str](),  # one schedule from beginning to end
    "sequences": {"beam"},  # of evaluations alone; the flat start is a share of the steps, which therefore stay
}
RUN = ("name", "runs")  # which run is meant: another name is another run


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def with_another(config: Any, path: str) -> Any:
    """A copy in which one setting has another value, of the same type where it has one, in range or not."""
    head, _, rest = path.partition(".")
    value = getattr(config, head)
    if rest:
        value = with_another(value, rest)
    elif isinstance(value, bool) or value is None:
        value = not value
    elif isinstance(value, int | float):
        value = value + 1
    else:
        value = (*value, "x") if isinstance(value, tuple) else f"{value}x"
    out = copy.copy(config)
    object.__setattr__(out, head, value)
    return out


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], run: Any) -> str:
    """The one line on stderr with which a command ends at exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run_main(run)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("job", JOBS)
def test_every_setting_may_change_or_is_refused(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = JOBS[job].Train(name="run", runs=str(tmp_path), resume=True)
    Run(str(tmp_path), "run").write_text(CONFIG, to_json(config))
    before = files(tmp_path)
    free = EVERYWHERE | OWN[job]
    assert free <= set(leaves(config))
    for name in leaves(config):
        if name in RUN:
            continue
        other = with_another(config, name)
        if name == "resume":
            assert f"the run 'run' exists: {tmp_path}" in refused(capsys, lambda other=other: start_run(other))
        elif name in free:
            assert start_run(other).name == "run", name
        else:
            line = refused(capsys, lambda other=other: start_run(other))
            assert line.startswith(f"error: the run was trained with another {name}: "), name
            assert line.endswith(f": {tmp_path}/run; resume without changing it, or start a new run\n")
    assert files(tmp_path) == before


@pytest.mark.parametrize("job", JOBS)
def test_a_run_of_another_version_goes_on_or_is_refused_in_a_line(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that the run did not know yet has its default; one that is gone is named."""
    config: JobConfig = JOBS[job].Train(name="run", runs=str(tmp_path), resume=True)
    run = Run(str(tmp_path), "run")
    older = json.loads(to_json(config))
    del older["optim"]["weight_decay"], older["seed"]
    run.write_text(CONFIG, json.dumps(older))
    assert start_run(config).url == run.url
    line = refused(capsys, lambda: start_run(replace(config, seed=3)))
    assert "the run was trained with another seed: 0" in line
    run.write_text(CONFIG, json.dumps(older | {"gone": 1}))
    assert "unknown settings: gone" in refused(capsys, lambda: start_run(config))


@pytest.fixture(scope="module")
def face_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("faces")
    pack("attributes_csv", faces(root / "images", 60, ("gender", "mask", "age")), str(root / "set"), Options())
    return str(root / "set")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stage2.tasks", "gender"], "stage2.tasks: ('gender', 'age')"),
        (["--stage1.freeze", "backbone"], "stage1.freeze: ()"),
        (["--stage3.weights.age", "0"], "stage3.weights.age: 1.0"),
    ],
)
def test_a_face_run_is_not_resumed_with_another_curriculum(
    face_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    """As the command does it: nothing is started, and nothing written."""
    config = attributes.Train(
        data=(face_set,), name="run", runs=str(tmp_path), batch=8, loader=LoaderConfig(size=(32, 32)),
        stage2=attributes.Stage(tasks=("gender", "age")),
    )  # fmt: skip
    config.check()
    Run(str(tmp_path), "run").write_text(CONFIG, to_json(config))
    before = files(tmp_path)
    arguments = ["--name", "run", "--runs", str(tmp_path), "--resume", *options]

    def command() -> None:
        parse(attributes.Train, "attributes.py", arguments, default=attributes.defaults("train", arguments)).run()

    assert f"the run was trained with another {told}" in refused(capsys, command)
    assert files(tmp_path) == before
    with pytest.raises(InputError, match="exists"):
        config.run()
