"""The command line of a job: verbs, made from their config dataclasses; `train` when none is named."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import tyro

from datasets.errors import InputError, run_main


class Verb(Protocol):
    """A frozen dataclass whose fields are the verb's options."""

    def run(self) -> None:
        """Do it."""


def run_job(program: str, about: str, verbs: Mapping[str, type[Any]], defaults: Callable[[str, list[str]], Any]) -> NoReturn:
    """Run the verb that the command line names, to its exit code (0 done, 2 the input is wrong, 1 a fault).

    ``defaults(verb, arguments)`` may give the object whose values the options default to (a resumed run's), or None.
    """

    def main() -> None:
        arguments = sys.argv[1:]
        if arguments[:1] in (["-h"], ["--help"]):
            lines = [f"  {name:10} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in verbs.items()]
            print(f"usage: {program} [VERB] [OPTIONS]\n\n{about.strip()}\n")
            print(f"verbs ({program} VERB --help tells a verb's options):", *lines, sep="\n")
            return
        verb = "train" if not arguments or arguments[0].startswith("-") else arguments.pop(0)
        if verb not in verbs:
            raise InputError(f"unknown verb '{verb}'", program, f"use one of {', '.join(verbs)}")
        default = defaults(verb, arguments)
        job: Verb = tyro.cli(verbs[verb], prog=f"{program} {verb}", args=arguments, **({"default": default} if default else {}))
        job.run()

    run_main(main)
