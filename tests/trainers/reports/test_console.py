import io
import math
import os
import select

import pytest
from rich.console import Console

from trainers.reports.console import LiveLine, duration, open_console, state_parts, summary_table
from trainers.reports.formatting import cell_text, table_cells

RECORD = {
    "step": 1240, "steps": 2400, "loss": 3.21436, "accuracy": 0.6127, "samples_per_s": 1812.4,
    "eta_s": 83.2, "version": 4, "wait": 0.034, "lr": 3e-4,
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 160) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"}, highlight=False, markup=False
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (0.61834, "0.6183"),
        (-0.0, "-0"),
        (1e-7, "1e-07"),
        (math.inf, "inf"),
        ("as it is", "as it is"),
        ("not utf-8: \udcff", "not utf-8: ?"),
    ],
)
def test_a_value_reads_the_same_everywhere(value: object, text: str) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("column", "numeric"),
    [
        ([1, 2.5, None], True),
        (["61.8 %", "+58.4%", "1,200 samples/s", "3e-4", "2x", "12 ms"], False),  # "samples/s" is a word, not a unit
        (["61.8 %", "+58.4%", "3e-4", "2x", "12 ms"], True),
        ([1, "cosface"], False),
        (["0001_c2"], False),
        ([None, ""], False),
        ([], False),
    ],
)
def test_columns_of_numbers_are_told_from_words(column: list[object], numeric: bool) -> None:
    assert table_cells(["column"], [[value] for value in column])[1] == [numeric]


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells in a table of 3 columns"):
        table_cells(["a", "b", "c"], [[1, 2, 3], [1, 2]])


def test_table_shows_every_cell_numbers_flush_right() -> None:
    console = open_console(io.StringIO())
    summary_table("Retrieval", ["metric", "before", "after"], [["mAP", 0.0342, 0.6183], ["Rank-1 [bold]", None, 0.8]], console)
    lines = [line.rstrip() for line in written(console).splitlines() if line.strip()]
    assert lines[0].strip() == "Retrieval"
    assert lines[1].split() == ["metric", "before", "after"]
    rows = lines[3:]
    assert [row.split() for row in rows] == [["mAP", "0.0342", "0.6183"], ["Rank-1", "[bold]", "–", "0.8"]]
    assert len(rows[0]) == len(rows[1])  # the last column ends flush


def test_table_without_rows_shows_its_columns() -> None:
    console = open_console(io.StringIO())
    summary_table("Nothing", ["a", "b"], [], console)
    assert "a" in written(console)


def test_long_cells_are_whole_in_a_log() -> None:
    console = open_console(io.StringIO())
    name = "x" * 150
    summary_table("t", ["name"], [[name]], console)
    assert name in written(console)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_stream_cannot_carry_does_not_end_the_run(encoding: str) -> None:
    raw = io.BytesIO()
    console = open_console(io.TextIOWrapper(raw, encoding=encoding))
    summary_table("中文 – title", ["naïve"], [["中 \udcff"], [None]], console)
    with LiveLine(console) as line:
        line.say("skipped 中\udcff.jpg")
        line.update({"step": 1})
    console.file.flush()
    text = raw.getvalue().decode(encoding)
    assert "title" in text
    assert "skipped" in text
    assert ("中" in text) == (encoding == "utf-8")


def test_line_tells_everything_the_record_holds() -> None:
    said = "step 1,240/2,400|loss 3.2144|accuracy 61.3%|1,812 samples/s|ETA 1:24|vector v4|data wait 3%|lr 3.00e-04"
    assert [text for text, _ in state_parts(RECORD)] == said.split("|")


def test_line_leaves_out_what_is_not_known() -> None:
    assert state_parts({}) == []
    assert [text for text, _ in state_parts({"step": 0, "loss": None, "version": None})] == ["step 0", "vector none"]


def test_line_warns_of_a_broken_loss_and_of_waiting_for_data() -> None:
    assert ("loss nan", "bold red") in state_parts({"loss": math.nan})
    assert dict(state_parts({"wait": 0.24}))["data wait 24%"] == "dim"
    assert dict(state_parts({"wait": 0.25}))["data wait 25%"] == "yellow"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (6.2, "0:07"),
        (59.5, "1:00"),
        (754, "12:34"),
        (3599.5, "1:00:00"),
        (3723, "1:02:03"),
        (86399, "23:59:59"),
        (86400, "1d 00h"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
        (math.inf, "?"),
        (math.nan, "?"),
        (-1, "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_log_holds_the_first_the_last_and_a_line_every_ten_seconds() -> None:
    clock = Clock()
    console = open_console(io.StringIO())
    with LiveLine(console, clock=clock) as line:
        for step in range(1, 36):  # a step a second
            line.update({"step": step})
            clock.now += 1.0
    assert written(console).split("\n") == ["step 1", "step 11", "step 21", "step 31", "step 35", ""]


def test_log_does_not_repeat_the_last_line() -> None:
    console = open_console(io.StringIO())
    with LiveLine(console, clock=Clock()) as line:
        line.update({"step": 1})
    assert written(console) == "step 1\n"


def test_a_record_changed_afterwards_is_printed_as_it_was() -> None:
    console = open_console(io.StringIO())
    record = {"step": 1}
    with LiveLine(console, clock=Clock()) as line:
        for step in (1, 2):
            record["step"] = step
            line.update(record)
        record["step"] = 99
    assert written(console) == "step 1\nstep 2\n"


def test_log_of_a_run_that_never_stepped_is_empty() -> None:
    console = open_console(io.StringIO())
    with LiveLine(console):
        pass
    assert written(console) == ""


def test_log_lines_are_never_folded_nor_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    console = open_console(io.StringIO())
    notice = "skipped s3://bucket/prefix/" + "x" * 400 + " [red]: not an image"
    with LiveLine(console) as line:
        line.say(notice)
        line.update(RECORD)
    assert written(console).splitlines() == [notice, "  ".join(text for text, _ in state_parts(RECORD))]


def test_a_log_stays_a_log_when_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = open_console(io.StringIO())
    with LiveLine(console) as line:
        line.update({"step": 1})
        line.update({"step": 2})
    assert "\x1b[2K" not in written(console)  # erases a line
    assert written(console).count("\n") == 2


def test_an_error_passes_through_after_the_last_line() -> None:
    console = open_console(io.StringIO())

    def run() -> None:
        with LiveLine(console, clock=Clock()) as line:
            line.update({"step": 1})
            line.update({"step": 2})
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        run()
    assert written(console) == "step 1\nstep 2\n"


def test_terminal_keeps_one_line_and_puts_notices_above() -> None:
    clock = Clock()
    console = terminal()
    with LiveLine(console, clock=clock) as line:
        for step in range(20):
            line.update(RECORD | {"step": step})
            clock.now += 1.0
        line.say("vector [v5] is here")
        line.update(RECORD | {"step": 2400})
    text = written(console)
    assert text.count("\n") == 2  # below the notice, and below the line when it is left
    assert "vector [v5] is here" in text
    assert "2,400/2,400" in text[text.index("vector [v5]") :]
    assert "━" in text
    assert text.endswith("\x1b[?25h")  # the cursor is shown again


def test_terminal_is_redrawn_at_most_ten_times_a_second() -> None:
    clock = Clock()
    console = terminal()
    with LiveLine(console, clock=clock) as line:
        for step in range(1, 9):
            line.update({"step": step})
            clock.now += 0.04
        drawn = written(console)
        assert [step for step in range(1, 9) if f"step {step}" in drawn] == [1, 4, 7]
    assert "step 8" in written(console)  # the last is always drawn


@pytest.mark.parametrize("width", [12, 40, 80, 109, 110])
def test_terminal_line_fits_whatever_the_width(width: int) -> None:
    console = terminal(width)
    with LiveLine(console, clock=Clock()) as line:
        line.update(RECORD)
    assert written(console).count("\n") == 1
    assert ("━" in written(console)) == (width >= 110)


def test_a_real_terminal_is_told_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    with os.fdopen(master, "rb") as screen, os.fdopen(slave, "w") as stream:
        with LiveLine(open_console(stream), clock=Clock()) as line:
            line.update({"step": 7, "steps": 9})
        stream.flush()
        seen = b""
        while b"step 7/9" not in seen and select.select([screen], [], [], 5)[0]:  # it may come in pieces
            seen += os.read(screen.fileno(), 4096)
        assert b"step 7/9" in seen
        assert open_console(stream).is_interactive
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        assert not open_console(stream).is_interactive
