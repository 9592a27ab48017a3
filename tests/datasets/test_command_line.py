"""The command line that dataclasses give: what it reads, its errors in one line, its help."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.command_line import FLAT, POSITIONAL, options_of, parse, take_verb
from datasets.errors import InputError


@dataclass(frozen=True)
class Optim:
    """How weights change."""

    steps: int = 10
    """Steps of the run."""
    lr: float = 0.1
    """Learning rate."""
    sync_norm: bool | None = None
    """Batch norm over all workers."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("steps must be at least 1", "--optim.steps")


@dataclass(frozen=True)
class Shared:
    """Options that stand among the command's own."""

    trials: int = 3


@dataclass(frozen=True)
class Command:
    """Do it."""

    first: ClassVar = ("source", "kind", "optim.lr")
    sets: ClassVar = ("hidden",)
    source: Path = field(metadata=POSITIONAL)
    """Where from."""
    name: str
    kind: Literal["uniform", "pk", 3] = "uniform"
    """How batches are drawn."""
    size: tuple[int, int] | None = None
    data: tuple[str, ...] = ()
    most: Annotated[int, "rooms, such as 3", int] = 1
    resume: bool = False
    """Go on with it."""
    hidden: int = 0
    optim: Optim = field(default_factory=Optim)
    """The optimiser's settings."""
    shared: Shared = field(default_factory=Shared, metadata=FLAT)


LEAST = ["here", "--name", "x"]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = words.filter(lambda word: not word.startswith("-"))
REQUIRED = {"source": texts.map(Path), "name": texts}
integers, numbers = st.integers(), st.floats(allow_nan=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(["uniform", "pk", 3]), "most": integers, "resume": st.booleans(),
    "size": st.none() | st.tuples(integers, integers), "data": st.lists(texts, max_size=3).map(tuple), "shared.trials": integers,
    "optim.steps": st.integers(1), "optim.lr": numbers, "optim.sync_norm": st.booleans(),
}  # fmt: skip


def written(name: str, value: Any, joined: bool) -> list[str]:
    """An option as a user types it."""
    group, _, leaf = name.removeprefix("shared.").rpartition(".")
    spelled = f"--{group}.{leaf}" if group else f"--{leaf}"
    if isinstance(value, bool):
        return [spelled if value else spelled.replace(leaf, f"no-{leaf}")]
    values = [str(each) for each in (value if isinstance(value, tuple) else (value,))]
    if name == "source":
        return values
    return [f"{spelled}={values[0]}", *values[1:]] if joined and values else [spelled.replace("_", "-"), *values]


@given(st.fixed_dictionaries(REQUIRED, optional=VALUES), st.booleans(), st.randoms())
def test_options_are_read_in_any_order(values: dict[str, Any], joined: bool, random: Any) -> None:
    order = [name for name in values if name != "source"]
    random.shuffle(order)
    arguments = [word for name in ["source", *order] for word in written(name, values[name], joined)]
    expected = Command(**{name: value for name, value in values.items() if "." not in name})
    for name, value in values.items():
        group, _, leaf = name.partition(".")
        if leaf:
            expected = replace(expected, **{group: replace(getattr(expected, group), **{leaf: value})})
    assert parse(Command, "it", arguments) == expected


def error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr that a command ends with, at exit code 2."""
    with pytest.raises(SystemExit) as ended:
        parse(Command, "it", arguments)
    out = capsys.readouterr()
    assert (ended.value.code, out.out, out.err.count("\n")) == (2, "", 1)
    return out.err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--optim.step", "1"], "unknown option --optim.step: did you mean --optim.steps?"),
        (["--lr", "1"], "unknown option --lr: did you mean --optim.lr?"),
        (["--no-resum"], "unknown option --no-resum: did you mean --no-resume?"),
        (["--qqqqqqqq"], "unknown option --qqqqqqqq; see it --help-all"),
        (["--hidden", "1"], "unknown option --hidden; see it --help-all"),
        (["-x"], "unknown option -x; see it --help-all"),
        (["--optim.steps"], "--optim.steps lacks its value: give a whole number"),
        (["--optim.steps", "--resume"], "--optim.steps lacks its value: give a whole number"),
        (["--size", "3"], "--size lacks values: give 2 values, each a whole number"),
        (["--optim.steps", "ten"], "--optim.steps is 'ten': give a whole number"),
        (["--optim.lr", "fast"], "--optim.lr is 'fast': give a number"),
        (["--most", "many"], "--most is 'many': give rooms, such as 3"),
        (["--kind", "kp"], "--kind is 'kp': give one of uniform, pk, 3"),
        (["--resume=yes"], "--resume takes no value: give --resume or --no-resume"),
        (["--optim.sync-norm", "False"], "--optim.sync-norm takes no value: give --optim.sync-norm or --optim.no-sync-norm"),
        (["there"], "unexpected argument 'there'; see it --help"),
        (["a\nb\x1b"], "unexpected argument 'a\\nb\\x1b'; see it --help"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert error(capsys, [*LEAST, *arguments]) == line


def test_all_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, []) == "missing SOURCE, --name; see it --help"


@given(st.lists(st.sampled_from(["--name", "--size", "--resume", "--optim.lr=", "--data", "--", "None", "-1", "x"]) | words))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_are_read_or_end_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    ended = None
    with suppress(InputError):
        try:
            parse(Command, "it", arguments)
        except SystemExit as exit_code:
            ended = exit_code.code
    out = capsys.readouterr()
    assert (ended, out.err.count("\n"), bool(out.out)) in ((None, 0, False), (0, 0, True), (2, 1, False))


def test_what_is_not_given_is_as_in_the_default() -> None:
    default = Command(Path("a"), "b", data=("c",), optim=Optim(7, 0.5, True))
    assert parse(Command, "it", [], default=default) == default
    read = parse(Command, "it", ["--optim.steps", "8", "--size", "None"], default=default)
    assert read == replace(default, optim=Optim(8, 0.5, True))


def test_a_value_out_of_range_is_an_input_error() -> None:
    with pytest.raises(InputError, match="at least 1"):
        parse(Command, "it", [*LEAST, "--optim.steps", "0"])


def test_negative_numbers_are_values() -> None:
    read = parse(Command, "it", [*LEAST, "--optim.lr", "-1e-3", "--most", "-1", "--data", "-1", "-2"])
    assert (read.optim.lr, read.most, read.data) == (-1e-3, -1, ("-1", "-2"))
    assert parse(Command, "it", [*LEAST, "--optim.lr", "-inf"]).optim.lr == -float("inf")


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(Command, "it", arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_shows_what_matters_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.command_line.FEW", 3)
    assert help_of(capsys, "--name", "--help") == (
        "usage: it [OPTIONS] SOURCE\n\nDo it.\n\n"
        "  SOURCE                  Where from.\n"
        "  --kind {uniform,pk,3}   How batches are drawn. (default: uniform)\n"
        "  --optim.lr FLOAT        Learning rate. (default: 0.1)\n\n"
        "all 11 options: it --help-all\n"
    )
    monkeypatch.setattr("datasets.command_line.FEW", 11)
    assert help_of(capsys, "--help") == help_of(capsys, "-h") == help_of(capsys, "--help-all")


def test_help_all_shows_every_option_in_its_group(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(capsys, "--help-all")
    for option in options_of(Command):
        assert (f"  {option.usage}" in text) == (option.name != "hidden")
    assert "\n\noptim: The optimiser's settings.\n  --optim.steps INT       Steps of the run. (default: 10)\n" in text
    assert (
        "  --optim.sync-norm, --optim.no-sync-norm\n                          Batch norm over all workers. (default: None)"
        in text
    )
    assert "  --name STR              (required)\n" in text
    assert "  --most ROOMS" in text
    monkeypatch.setenv("COLUMNS", "50")
    folded = help_of(capsys, "--help-all").splitlines()
    assert max(len(line) for line in folded if not line.startswith("  --")) < 50


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    verbs: dict[str, type[Any]] = {"train": Command, "evaluate": Optim}
    arguments = ["evaluate", "--x"]
    assert take_verb("it", "About.", verbs, arguments, "train") == "evaluate"
    assert arguments == ["--x"]
    assert take_verb("it", "About.", verbs, arguments, "train") == take_verb("it", "About.", verbs, [], "train") == "train"
    for words_given, line in (
        (["evalute"], "unknown verb 'evalute', did you mean 'evaluate'?"), (["q"], "unknown verb 'q': give train, evaluate"),
        ([], "missing verb: give train, evaluate"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            take_verb("it", "About.", verbs, words_given)
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"error: {line}\n"
    with pytest.raises(SystemExit) as ended:
        take_verb("it", "About.", verbs, ["--help"])
    assert ended.value.code == 0
    assert "usage: it VERB [OPTIONS]\n\nAbout.\n" in (out := capsys.readouterr().out)
    assert "  evaluate   How weights change.\n" in out


@dataclass(frozen=True)
class Resumed:
    """A command with a flag that may have a value."""

    resume: bool | Literal["auto"] = False
    """Go on with it."""
    seed: int = 0


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False), (["--resume"], True), (["--no-resume"], False), (["--resume", "auto"], "auto"), (["--resume=auto"], "auto"),
        (["--resume", "auto", "--resume"], True), (["--resume", "--seed", "0"], True),
    ],
)  # fmt: skip
def test_a_flag_may_have_a_word_as_its_value(words: list[str], value: bool | str) -> None:
    assert parse(Resumed, "command", words).resume == value


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--resume", "auot"], "unexpected argument 'auot'"),
        (["--resume=auot"], "--resume takes no value but auto: give --resume or --no-resume"),
        (["--resume", "True"], "--resume takes no value but auto: give --resume or --no-resume"),
        (["--no-resume", "auto"], "unexpected argument 'auto'"),
        (["--no-resume=auto"], "--no-resume takes no value: give --resume or --no-resume"),
    ],
)
def test_another_word_is_refused(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Resumed, "command", words)
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_the_help_names_the_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Resumed, "command", ["--help"])
    assert "--resume [auto], --no-resume" in capsys.readouterr().out
