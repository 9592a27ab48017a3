"""What --help shows: options in plain words, none of the code's."""

import inspect
import re
import sys
from typing import Any

import pytest

from cluster import schedule
from cluster.status import Watch
from datasets.command_line import options_of, parse
from datasets.export import Export
from datasets.index import Command
from datasets.inspect import Inspect
from datasets.layouts.boxes import BOX_LAYOUTS
from datasets.layouts.faces import FACE_LAYOUTS
from datasets.layouts.identities import LAYOUTS
from datasets.pack import Pack
from datasets.pack_videos import PackVideos
from datasets.relabel import Relabel
from trainers import actions, attributes, detection, reid, sequences, sweep

JOBS = [reid, attributes, detection, actions, sequences]
VERBS = [getattr(job, verb) for job in JOBS for verb in ("Train", "Evaluate", "Predict", "Export", "Compare")]
SCHEDULE = [schedule.Add, schedule.List, schedule.Remove, schedule.History, schedule.Start]
COMMANDS = [*VERBS, sweep.Sweep, Pack, PackVideos, Command, Inspect, Export, Relabel, Watch, *SCHEDULE]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints for --help; it ends with 0."""

    def of(kind: type[Any], word: str = "--help") -> str:
        with pytest.raises(SystemExit) as ended:
            parse(kind, "command", [word])
        assert ended.value.code == 0
        return capsys.readouterr().out

    return of


@pytest.mark.parametrize("kind", COMMANDS)
def test_help_fits_a_screen_and_help_all_has_the_rest(kind: type[Any], shown: Any) -> None:
    short, full = shown(kind), shown(kind, "--help-all")
    assert inspect.cleandoc(kind.__doc__ or "") in short
    options = list(options_of(kind))
    hidden = getattr(kind, "sets", ())
    listed = re.findall(r"^  (--[\w.-]+|[A-Z]+\b)", full, re.MULTILINE)
    assert sorted(listed) == sorted(o.spelled for o in options if o.name.replace("-", "_") not in hidden)
    few = re.findall(r"^  (?:--[\w.-]+|[A-Z]+\b)", short, re.MULTILINE)
    assert 1 <= len(few) <= 16
    assert (f"all {len(listed)} options: command --help-all" in short) == (len(few) < len(listed))
    assert not re.search(r"Raises|InputError|[─│╭]", full)


@pytest.mark.parametrize("kind", VERBS)
def test_the_options_that_matter_first_are_the_jobs_own_and_the_runs(kind: type[Any], shown: Any) -> None:
    text = shown(kind)
    assert "--name" in text
    assert "--runs" in text
    names = {option.name.replace("-", "_") for option in options_of(kind)}
    assert {*getattr(kind, "first", ())} <= names


def test_an_option_that_a_job_does_not_take_is_not_offered(shown: Any) -> None:
    text = shown(attributes.Train, "--help-all")
    assert "--optim.kind" in text
    assert not re.search(r"--optim\.(lr|steps|warmup)", text)  # each stage has its own
    assert "--arm " not in shown(attributes.Compare, "--help-all")  # a comparison trains all --arms


def test_pack_names_all_its_layouts(shown: Any) -> None:
    text = shown(Pack)
    assert all(re.search(rf"\b{name}\b", text) for name in LAYOUTS | FACE_LAYOUTS | BOX_LAYOUTS)
    assert "LAYOUT SOURCE DESTINATION" in text


def test_examples_keep_their_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--help"])
    with pytest.raises(SystemExit):
        sweep.main()
    assert "\n    python trainers/sweep.py reid --name search --resume " in capsys.readouterr().out
