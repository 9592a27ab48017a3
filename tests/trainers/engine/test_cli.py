"""Every command ends a usage error with one line and exit code 2; verbs, --resume and --config are understood."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_help import COMMANDS, JOBS

from datasets.command_line import options_of, parse
from datasets.errors import InputError
from trainers import actions, attributes, detection, reid, sequences
from trainers.engine.config import from_json, settings_of, to_json
from trainers.engine.job import JobConfig
from trainers.engine.run import CONFIG, Run
from trainers.tasks.reid.head_config import PairConfig

ROOT = Path(__file__).parents[3]
SCRIPTS = [f"trainers/{job}.py" for job in ("reid", "attributes", "detection", "actions", "sequences", "sweep")]
MODULES = [f"datasets.{name}" for name in ("pack", "pack_videos", "index", "inspect", "export")]
PROGRAMS = [*SCRIPTS, *MODULES, "cluster.status", "cluster.schedule"]


def refused(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a program that ends with 2; it is run as from the shell, in this process."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.delitem(sys.modules, program, raising=False)  # else runpy warns that it is imported
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    with pytest.raises(SystemExit) as ended:
        run(str(ROOT / program) if program.endswith(".py") else program, run_name="__main__")
    out = capsys.readouterr()
    assert (ended.value.code, out.out, out.err.count("\n")) == (2, "", 1), out
    return out.err.removesuffix("\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_ends_usage_errors_in_one_line(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = ["run"] if program == "cluster.schedule" else []
    line = refused(program, [*verb, "--no-such-option", "1"], monkeypatch, capsys)
    assert line.startswith("error: unknown option --no-such-option")
    if program in (*SCRIPTS[:-1], "cluster.schedule"):
        word = "histori" if program == "cluster.schedule" else "evalute"
        assert f"unknown verb '{word}', did you mean '" in refused(program, [word], monkeypatch, capsys)


@pytest.mark.parametrize("kind", COMMANDS)
def test_each_option_of_each_command_has_its_errors(kind: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    hidden = getattr(kind, "sets", ())
    options = [o for o in options_of(kind) if not o.positional and o.name.replace("-", "_") not in hidden]

    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse(kind, "command", arguments)
        out = capsys.readouterr()
        assert (ended.value.code, out.out, out.err.count("\n")) == (2, "", 1)
        return out.err

    for option in options:
        assert ": did you mean --" in error(f"{option.spelled}x", "1")
        if option.flag:
            assert f"give {option.spelled} or {option.refused}" in error(option.spelled, "True")
        elif not option.many:
            assert f"error: {option.spelled} lacks " in error(option.spelled)
        if not option.flag and option.wanted != "a text" and "a path" not in option.wanted and " a text" not in option.wanted:
            assert f"error: {option.spelled} is '?': give " in error(option.spelled, *["?"] * len(option.items))


@pytest.mark.parametrize("job", JOBS)
def test_booleans_have_one_form(job: Any) -> None:
    flags = [option for option in options_of(job.Train) if option.flag]
    assert any(option.optional for option in flags)
    for option in flags:
        for spelled, value in ((option.spelled, True), (option.refused, False)):
            read: Any = parse(job.Train, "command", [spelled])
            for name in option.path:
                read = getattr(read, name)
            assert read is value


def test_a_resumed_run_and_a_file_give_the_defaults(tmp_path: Path) -> None:
    ran = replace(reid.Train(), name="run", runs=str(tmp_path), seed=3, augment=replace(reid.Train().augment, flip=False))
    Run(str(tmp_path), "run").write_text(CONFIG, to_json(ran))

    def read(*arguments: str) -> JobConfig:
        return parse(reid.Train, "command", arguments, default=reid.defaults("train", list(arguments)))

    assert read("--name", "run", "--runs", str(tmp_path), "--resume") == replace(ran, resume=True)
    assert read("--name=run", f"--runs={tmp_path}", "--resume", "--augment.flip").augment.flip is True
    file = str(tmp_path / "run" / CONFIG)
    assert read("--config", file, "--seed", "4") == replace(ran, name="", runs="", config=file, seed=4)
    auto = ("--runs", str(tmp_path), "--resume", "auto", "--name")
    assert read(*auto, "run", "--config", file) == replace(ran, resume="auto", config=file)
    assert read(*auto, "new", "--config", file) == replace(ran, name="new", resume="auto", config=file)
    assert read(*auto, "new") == replace(reid.Train(), name="new", runs=str(tmp_path), resume="auto")
    assert read("--name", "run", "--runs", str(tmp_path), "--resume-from=4") == replace(ran, resume=True, resume_from=4)
    went_back = replace(ran, name="back", resume=True, resume_from=4)
    Run(str(tmp_path), "back").write_text(CONFIG, to_json(went_back))
    assert read("--name", "back", "--runs", str(tmp_path), "--resume").resume_from is None
    for arguments in (
        ("--resume",), ("--resume-from", "4"), ("--resume", "--name", "other"), ("--config", "nowhere.json"),
        ("--resume", "auto", "--resume-from", "4", "--name", "run", "--runs", str(tmp_path)),
        ("--resume-from", "4", "--config", file, "--name", "run", "--runs", str(tmp_path)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            read(*arguments)


def test_a_comparison_sets_its_arms_itself() -> None:
    with pytest.raises(InputError, match="give --arms"):
        attributes.defaults("compare", ["--arm", "joint"])
    with pytest.raises(InputError, match="a comparison sets this itself: --fold; give --only-folds"):
        detection.defaults("compare", ["--folds", "6", "--fold", "1"])


PRESETS = [(job, name) for job in (reid, detection, actions, sequences) for name in sorted(job.Train.presets)]


@pytest.mark.parametrize(("job", "name"), PRESETS)
def test_a_preset_gives_defaults_that_options_override(job: Any, name: str) -> None:
    arguments = ["--preset", name, "--optim.steps", "7", "--model.weights", ""]
    read = parse(job.Train, "command", arguments, default=job.defaults("train", arguments))
    given = {path: value for path, value, _ in settings_of(read)}
    assert read.preset == name
    expected = {**job.Train.presets[name], "optim.steps": 7, "model.weights": ""}
    assert {path: given[path] for path in expected} == expected
    plain = {path: value for path, value, _ in settings_of(job.Train())}
    assert {path for path in plain if given[path] != plain[path]} <= {*expected, "preset"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "strong"], "unknown preset: strong; use one of strong-baseline, "),
        (["--preset", "faces", "--config", "x.json"], "--config, --preset; give one"),
        (["--preset=faces", "--resume", "--name", "x"], "--resume, --preset; give one"),
    ],
)
def test_a_preset_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reid.defaults("train", arguments)


def test_settings_of_an_earlier_version_are_read() -> None:
    older = json.loads(to_json(reid.Train()))
    del older["pair"]
    older["head"] |= {"triplet": 0.0, "triplet_margin": 0.3}
    assert from_json(reid.Train, json.dumps(older), "") == reid.Train()
    older["head"]["triplet"], older["sampler"]["kind"] = 0.5, "pk"
    assert from_json(reid.Train, json.dumps(older), "").pair == PairConfig("triplet", weight=0.5, margin=0.3)
