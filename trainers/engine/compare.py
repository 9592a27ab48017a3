"""Compares arms over seeds: all are trained with the same settings and shown in one table."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from datasets.errors import InputError
from trainers.engine.job import C, check_same, named, resolved, resumed_defaults
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.engine.side_by_side import train_side_by_side
from trainers.reports.arm_curves import arm_curves

PICTURE = "comparison.png"
BEFORE_AND_AFTER = 2  # evaluations of a run that was not evaluated on the way
S = TypeVar("S")  # a seed, or what a job repeats its arms by: a fold and a seed
Figures = dict[str, list[dict[str, float]]]  # of each arm: a run for each seed


def compare(
    train: Any, arms: Sequence[str], seeds: Sequence[S], configs: Callable[[Any, S], Iterator[tuple[str, Any]]],
    show: Callable[[str, Any], None], *, jobs: int, connect: Callable[[Any], None], curves: Mapping[str, str],
    read: Callable[[Run], Any] | None = None, remedy: str = "",
    more: Callable[[Any, S], Mapping[str, Any]] = lambda base, seed: {}, **settings: Any,
) -> None:  # fmt: skip
    """Train the runs that ``configs`` yields for each seed, unless they have ended; print a table, store its figures as JSON.

    ``show`` prints the table. ``jobs``: runs that are trained at once, on the cluster that ``connect`` joins. ``curves``: figures
    to draw over the steps, with titles, if the runs were evaluated on the way. ``read``: what the table shows of a run; None: its
    last figures. ``more``: figures of arms that are made of other arms' runs. ``remedy``: what to do if nothing was held out.
    ``settings``: what the JSON holds besides.

    Raises:
        InputError: there is nothing to compare, or nothing was held out to compare by.
    """
    if not arms or len(seeds) < 2:
        raise InputError("a comparison needs an arm and two seeds or more", "compare", "give --arms and --seeds")
    if jobs < 1:
        raise InputError(f"jobs is {jobs}", "--jobs", "give the number of runs to train at once, at least 1")
    base, figures = named(train, "compare"), {arm: list[Any]() for arm in arms}
    wanted = {seed: list(configs(base, seed)) for seed in seeds}  # all of them first: an impossible arm is an error at once
    compared = Run(base.runs, base.name)
    if jobs > 1:
        missing = [config for seed in seeds for _, config in wanted[seed] if not has_ended(config)]
        train_side_by_side(missing, jobs, compared, connect)
    evaluations = {arm: list[Any]() for arm in arms}
    for seed in seeds:
        for arm, config in wanted[seed]:
            run = ended_run(config)
            if arm in figures:
                figures[arm].append(read(run) if read else at_the_end(run, remedy))
                evaluations[arm].append(run.read_json(HISTORY)["evaluations"])
        for arm, found in more(base, seed).items():
            figures[arm].append(found)
    show(base.name, figures)
    document = {"seeds": seeds, "settings": asdict(base), **settings, "figures": figures}
    compared.write_json("comparison.json", document)
    if any(len(of_run) > BEFORE_AND_AFTER for runs in evaluations.values() for of_run in runs):
        compared.objects.put(PICTURE, arm_curves(evaluations, curves))
        print(f"curves: {compared.url}/{PICTURE}")
    print(f"figures of all runs: {compared.url}/comparison.json")


def at_the_end(run: Run, remedy: str) -> dict[str, float]:
    """A run's last figures; raises InputError with ``remedy`` if nothing was held out."""
    figures: dict[str, float] | None = run.read_json(METRICS).get("after")
    if figures is None:
        raise InputError("nothing was held out to compare by", run.url, remedy)
    return figures


def has_ended(config: Any) -> bool:
    """Whether a run with these settings has ended; raises InputError if a run of that name was trained with others."""
    run = Run(config.runs, config.name)
    if run.exists():
        check_same(resolved(replace(config, resume=True), ""), run, ("harmless",), "compare under another --name")
    return run.exists() and run.objects.exists(METRICS)


def ended_run(config: Any) -> Run:
    """A run with these settings that has ended. It is trained, or continued, unless it has ended before.

    Raises:
        InputError: what `has_ended` raises, or what its training raises.
    """
    run = Run(config.runs, config.name)
    if not has_ended(config):
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
            remedy = {"seed": "--seeds", "fold": "--only-folds"}.get(name, "--arms")
            raise InputError("a comparison sets this itself", argument, f"give {remedy}")
    train = resumed_defaults(kind, "train", [argument for argument in arguments if argument != "--resume"])
    return compare(train) if train else None
