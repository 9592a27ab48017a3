"""How a command ends when the reader of its output has gone, as in `command | head`."""

import subprocess
import sys

import pytest

PRINTS = """
from datasets.errors import run_main
def main():
    while True:
        print("a line, " * 2000)
run_main(main)
"""
SENDS = """
from datasets.errors import run_main
def main():
    raise BrokenPipeError("of a socket")
run_main(main)
"""


@pytest.mark.parametrize(("code", "status", "told"), [(PRINTS, 141, b""), (SENDS, 1, b"BrokenPipeError: of a socket\n")])
def test_a_reader_that_has_gone_ends_a_command_quietly(code: str, status: int, told: bytes) -> None:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        assert error.endswith(told) if told else not error
    assert process.returncode == status
