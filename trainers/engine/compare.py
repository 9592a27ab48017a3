"""Compares arms over seeds: all are trained with the same settings and shown in one table."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from datasets.errors import InputError
from trainers.engine.job import C, check_same, named, resolved, resumed_defaults
from trainers.engine.run import METRICS, Run

Figures = dict[str, list[dict[str, float]]]  # of each arm: a run for each seed


def compare(
    train: Any, arms: Sequence[str], seeds: Sequence[int], configs: Callable[[Any, int], Iterator[tuple[str, Any]]],
    show: Callable[[str, Any], None], *, read: Callable[[Run], Any] | None = None, remedy: str = "",
    more: Callable[[Any, int], Mapping[str, Any]] = lambda base, seed: {}, **settings: Any,
) -> None:  # fmt: skip
    """Train the runs that ``configs`` yields for each seed, unless they have ended; print a table, and store its figures as JSON.

    ``show`` prints the table. ``read``: what it shows of a run; None: the run's last figures. ``more``: figures of arms that are
    made of other arms' runs. ``remedy``: what to do if nothing was held out. ``settings``: what the JSON holds besides.

    Raises:
        InputError: there is nothing to compare, or nothing was held out to compare by.
    """
    if not arms or len(seeds) < 2:
        raise InputError("a comparison needs an arm and two seeds or more", "compare", "give --arms and --seeds")
    base, figures = named(train, "compare"), {arm: list[Any]() for arm in arms}
    wanted = {seed: list(configs(base, seed)) for seed in seeds}  # all of them first: an impossible arm is an error at once
    for seed in seeds:
        for arm, config in wanted[seed]:
            run = ended_run(config)
            if arm in figures:
                figures[arm].append(read(run) if read else at_the_end(run, remedy))
        for arm, found in more(base, seed).items():
            figures[arm].append(found)
    show(base.name, figures)
    compared = Run(base.runs, base.name)
    document = {"seeds": seeds, "settings": asdict(base), **settings, "figures": figures}
    compared.write_json("comparison.json", document)
    print(f"figures of all runs: {compared.url}/comparison.json")


def at_the_end(run: Run, remedy: str) -> dict[str, float]:
    """A run's last figures; raises InputError with ``remedy`` if nothing was held out."""
    figures: dict[str, float] | None = run.read_json(METRICS).get("after")
    if figures is None:
        raise InputError("nothing was held out to compare by", run.url, remedy)
    return figures


def ended_run(config: Any) -> Run:
    """A run with these settings that has ended. It is trained, or continued, unless it has ended before.

    Raises:
        InputError: a run of that name was trained with other settings, or what its training raises.
    """
    run = Run(config.runs, config.name)
    if run.exists():
        check_same(resolved(replace(config, resume=True), ""), run, ("harmless",), "compare under another --name")
    if not (run.exists() and run.objects.exists(METRICS)):
        replace(config, resume=run.exists()).run()
    return run


def compared_defaults(kind: type[C], compare: Any, verb: str, arguments: list[str]) -> Any:
    """The settings that options default to (`trainers.engine.job.resumed_defaults`), for a job with a verb ``compare``.

    ``compare``: the verb's class. It takes all options of ``train``, except those that its attribute ``sets`` names.

    Raises:
        InputError: an option is given that a comparison sets itself.
    """
    if verb != "compare":
        return resumed_defaults(kind, verb, arguments)
    for argument in arguments:
        name = re.sub(r"(^|\.)no-", r"\1", argument.split("=")[0].removeprefix("--")).replace("-", "_")
        if name in ("seed", "resume_from", *compare.sets):
            raise InputError("a comparison sets this itself", argument, f"give {'--seeds' if name == 'seed' else '--arms'}")
    train = resumed_defaults(kind, "train", [argument for argument in arguments if argument != "--resume"])
    return compare(train) if train else None
