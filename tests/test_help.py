"""What --help tells: options in plain words, none of the code's."""

import contextlib
import io
import re
import sys
from collections.abc import Callable

import pytest
import tyro

from datasets.layouts.boxes import BOX_LAYOUTS
from datasets.layouts.faces import FACE_LAYOUTS
from datasets.layouts.identities import LAYOUTS
from datasets.pack import Pack
from trainers import actions, attributes, detection, reid, sequences, sweep


def told(command: Callable[[], object]) -> str:
    """What a command prints before it ends with 0."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 0
    return out.getvalue()


@pytest.mark.parametrize("job", [reid, attributes, detection, actions, sequences])
def test_options_speak_to_the_user(job: object) -> None:
    for verb in ("Train", "Evaluate", "Predict", "Export", *(["Compare"] if job is not reid else [])):
        kind = getattr(job, verb)
        text = told(lambda kind=kind: tyro.cli(kind, args=["--help"]))
        assert "--runs" in text
        assert not re.search(r"Raises|InputError", text)


def test_an_option_that_a_job_does_not_take_is_not_offered() -> None:
    text = told(lambda: tyro.cli(attributes.Train, args=["--help"]))
    assert "--optim.kind" in text
    assert not re.search(r"--optim\.(lr|steps|warmup)", text)  # the stages say these


def test_pack_names_all_its_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = told(lambda: tyro.cli(Pack, args=["--help"]))
    assert all(re.search(rf"\b{name}\b", text) for name in LAYOUTS | FACE_LAYOUTS | BOX_LAYOUTS)
    assert re.search(r"LAYOUT SOURCE DESTINATION", text)


def test_examples_keep_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--help"])
    assert "\n    python trainers/sweep.py attributes --name search --resume " in told(sweep.main)
