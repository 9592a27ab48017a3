"""The command line of a job: verbs, whose options are the fields of dataclasses; `train` when no verb is given."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from datasets.command_line import parse, take_verb
from datasets.errors import run_main


class Verb(Protocol):
    """A frozen dataclass whose fields are the verb's options."""

    def run(self) -> None:
        """Run the verb with these options."""


def run_job(program: str, about: str, verbs: Mapping[str, type[Any]], defaults: Callable[[str, list[str]], Any]) -> NoReturn:
    """Run the verb that the command line names; exits with 0 (done), 2 (wrong input) or 1 (a fault).

    ``defaults(verb, arguments)``: an object whose values the options default to, such as a resumed run's settings, or None.
    """

    def main() -> None:
        arguments = sys.argv[1:]
        verb = take_verb(program, about, verbs, arguments, default="train")
        job: Verb = parse(verbs[verb], f"{program} {verb}", arguments, default=defaults(verb, arguments))
        job.run()

    run_main(main)
