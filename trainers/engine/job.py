"""What runs of all jobs have in common: a name, a folder, a seed, and the rules for starting and resuming."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, overload

from datasets.errors import InputError
from datasets.object_storage import read_file
from datasets.text_files import text_of
from trainers.engine.config import HARMLESS, changed, from_json, settings_of, to_json
from trainers.engine.run import CONFIG, Run
from trainers.engine.tensorboard import Scalars
from trainers.reports.console import LiveLine

ENOUGH = 32  # samples at a time that a worker needs for good batch-norm statistics of its own
C = TypeVar("C", bound="JobConfig")
Resume = bool | Literal["auto"]


@dataclass(frozen=True)
class JobConfig:
    """Settings of any job's run; a job's own config adds to them."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by name: settings, named as on the command line
    first: ClassVar[tuple[str, ...]] = (
        "name",
        "runs",
        "resume",
        "cluster.workers",
        "cluster.local",
        "preset",
    )  # --help begins with these
    name: str = field(default="", metadata=HARMLESS)
    """The run's name; empty: made from the time and a random part."""
    config: str = field(default="", metadata=HARMLESS)
    """A JSON file of settings, such as a run's config.json or a sweep's best.json, or its s3:// address; options not given are
    taken from it."""
    runs: str = field(default="", metadata=HARMLESS)
    """Where runs are kept: a folder that all nodes see, or s3://bucket/prefix; empty: ./runs, in a Ray job ~/runs."""
    preset: str = field(default="", metadata=HARMLESS)
    """Settings that are kept under this name, and that options given besides override; an unknown name shows all."""
    resume: Resume = field(default=False, metadata=HARMLESS)
    """Continue the run of that name; auto: if there is one, else start it. Options not given are as in that run."""
    resume_from: int | None = field(default=None, metadata=HARMLESS)
    """Continue the run of that name from its checkpoint of this step; 0: from the start. Later checkpoints are then not used."""
    seed: int = 0
    """Seed of initial weights, batches and augmentation. The same seed and settings give the same run."""
    evaluate_every: int = field(default=0, metadata=HARMLESS)
    """Steps between evaluations; 0: only before and after training."""
    checkpoint_every: int = field(default=200, metadata=HARMLESS)
    """Steps between checkpoints."""
    record_every: int = field(default=10, metadata=HARMLESS)
    """Steps between records of loss and speed."""

    def __post_init__(self) -> None:
        if self.resume_from is not None and self.resume_from < 0:
            raise InputError(f"resume_from is {self.resume_from}", remedy="give the step of a checkpoint, or 0")
        if self.resume_from is not None and self.resume == "auto":
            raise InputError(
                "with --resume auto each retry would go back to the step of --resume-from", remedy="give one of them"
            )
        if self.checkpoint_every < 1 or self.record_every < 1 or self.evaluate_every < 0 or self.seed < 0:
            raise InputError("checkpoint_every and record_every must be at least 1, evaluate_every and seed at least 0")
        if self.checkpoint_every % self.record_every:
            what = f"checkpoint_every is {self.checkpoint_every} and record_every {self.record_every}"
            raise InputError(
                what, remedy="make checkpoint_every a multiple of record_every: else a resumed run would lose records"
            )

    @property
    def steps(self) -> int:
        """The most steps that the run takes."""
        return int(self.optim.steps)  # type: ignore[attr-defined]  # every job has it


def named(config: C, job: str) -> C:
    """The config with a name, with absolute addresses, and with ``resume`` decided: True or False.

    Raises:
        InputError: ``resume`` is "auto" and there is no name to look for.
    """
    if config.resume == "auto" and not config.name:
        raise InputError("--resume auto needs the --name of a run", remedy="without a name every start is a new run")
    name, runs = config.name or f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}", absolute(config.runs)
    resume = Run(runs, name).exists() if config.resume == "auto" else config.resume or config.resume_from is not None
    return replace(config, name=name, runs=runs, resume=resume, **_addresses(config))


def resolved(config: C, job: str) -> C:
    """As `named`, and with ``optim.sync_batch_norm`` set where it is not given: for a resumed run as stored, else by its workers.

    It is stored with the run, so it does not change when the run is resumed on another number of workers.
    """
    config = named(config, job)
    each: Any = config  # every job has these
    if each.optim.sync_batch_norm is not None:
        return config
    run = Run(config.runs, config.name)
    if config.resume and run.exists():
        sync = stored_config(type(each), run).optim.sync_batch_norm
    else:
        most = max(each.cluster.sizes)
        sync = most == 1 or each.cluster.fewest > 0 or each.batch < ENOUGH * most * each.optim.accumulate
    return replace(each, optim=replace(each.optim, sync_batch_norm=sync))  # type: ignore[no-any-return]


def _addresses(config: Any) -> dict[str, Any]:
    """The settings that are addresses, in full: workers have other working directories."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("address")}
    return {name: absolute(value) for name, value in values.items() if value}


@overload
def absolute(urls: str) -> str: ...
@overload
def absolute(urls: tuple[str, ...]) -> tuple[str, ...]: ...
def absolute(urls: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """One address or several, as absolute paths or URLs. Empty: the default folder of runs."""
    if not isinstance(urls, str):
        return tuple(absolute(url) for url in urls)
    if not urls:  # a Ray job's working directory is a copy that is thrown away
        return str((Path.home() if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()) / "runs")
    return urls if "://" in urls else str(Path(urls).absolute())


def start_run(config: JobConfig) -> Run:
    """The folder of a run that is about to start. A name that is in use needs --resume, and then only settings that may change
    (`trainers.engine.config.settings_of`) may differ.

    Raises:
        InputError: the run may not start; nothing was written.
    """
    run = Run(config.runs, config.name)
    if not run.exists():
        if config.resume:
            raise InputError(f"no run '{config.name}' to resume", config.runs, "is --runs right?")
        return run
    _check_resumed(config, run)
    check_same(config, run, ("harmless", "allowed"), "resume without changing it, or start a new run")
    was, now = stored_config(type(config), run).cluster.sizes, config.cluster.sizes  # type: ignore[attr-defined]
    if not config.optim.sync_batch_norm and {*was, *now} != {now[0]}:  # type: ignore[attr-defined]
        print("note: batch norm is not synchronised in this run, so another number of workers changes the results")
    return run


def _check_resumed(config: JobConfig, run: Run) -> None:
    """Raises InputError when the name is in use and the run is not to be resumed."""
    if not config.resume and run.exists():
        raise InputError(f"the run '{config.name}' exists", run.url, "continue it with --resume, or choose another --name")


def stored_config(kind: type[C], run: Run) -> C:
    """The config that a run was last started with; raises InputError."""
    return from_json(kind, run.read_text(CONFIG), f"{run.url}/{CONFIG}")


def resumed_defaults(kind: type[C], verb: str, arguments: list[str]) -> C | None:
    """The settings that options default to: those of the run that is resumed, of the file that --config names, or of the
    preset that --preset names; None: the options' own defaults.

    Raises:
        InputError: there is no such run, file or preset, it is damaged, or two of them are given.
    """
    if verb != "train":
        return None
    given = _given(arguments)
    auto = given.get("--resume") == "auto"
    resume = [name for name in ("--resume", "--resume-from") if name in given or name in arguments][:1]
    sources = [name for name in (*([] if auto else resume), "--config", "--preset") if name in given or name in arguments]
    if len(sources) > 1:
        raise InputError("each of them brings all settings", ", ".join(sources), "give one, and single options besides")
    if resume and (not auto or ("--name" in given and _run_named(given).exists())):
        stored = config_of_named(kind, arguments)
        if stored is None:
            raise InputError(f"{resume[0]} needs the --name of a run", "train")
        return replace(stored, resume=True, resume_from=None)
    if "--config" in given:
        return config_file(kind, given["--config"])
    return preset_config(kind, given["--preset"]) if "--preset" in given else None


def config_of_named(kind: type[C], arguments: list[str]) -> C | None:
    """The config of the run that a command line names; None: it names none. Raises what `stored_config` raises."""
    given = _given(arguments)
    return stored_config(kind, _run_named(given)) if "--name" in given else None


def _run_named(given: dict[str, str]) -> Run:
    return Run(absolute(given.get("--runs", "")), given["--name"])


def _given(arguments: list[str]) -> dict[str, str]:
    words = [word for argument in arguments for word in argument.split("=", 1)]  # --name market, or --name=market
    return dict(pairwise(words))


def check_same(config: JobConfig, run: Run, may: Sequence[str], remedy: str) -> None:
    """Compare settings with those that the run was last started with.

    Raises:
        InputError: one differs whose metadata's "change" is not in ``may``; the first is named.
    """
    stored, addresses = stored_config(type(config), run), _addresses(config)
    before = {name: value for name, value, _ in settings_of(stored)} | _addresses(stored)
    for name, value, change in settings_of(config):
        if change not in may and addresses.get(name, value) != before[name]:
            was = before[name] or repr(before[name])  # not an empty text
            raise InputError(f"the run was trained with another {name}: {was}", run.url, remedy)


def config_file(kind: type[C], path: str) -> C:
    """The settings in a file, local or in S3, for a run of another name.

    Raises:
        InputError: the file cannot be read, or is not such a config.
    """
    text = text_of(read_file(path), path)
    defaults = kind()
    settings = replace(from_json(kind, text, path), name=defaults.name, runs=defaults.runs, config=path)
    return replace(settings, resume=defaults.resume, resume_from=defaults.resume_from)


def preset_config(kind: type[C], name: str) -> C:
    """The settings of a preset; raises InputError if the job has none of that name."""
    if name not in kind.presets:
        raise InputError("unknown preset", name, f"use one of {', '.join(kind.presets)}")
    return replace(changed(kind(), kind.presets[name]), preset=name)


@contextmanager
def shown(run: Run, config: JobConfig) -> Iterator[Any]:
    """Store the run's config; within, the function that this yields shows records and notices on the console and in
    TensorBoard. Call it when this driver has the run's folder to itself.

    Raises:
        InputError: another driver has trained a run of this name since `start_run`.
    """
    _check_resumed(config, run)
    run.write_text(CONFIG, to_json(config))
    with LiveLine() as line, Scalars(run, line.say) as scalars:

        def show(records: list[dict[str, Any]], notices: list[str]) -> None:
            for notice in notices:
                line.say(notice)
            for record in records:
                line.update(record)
                scalars.add(record)

        yield show
