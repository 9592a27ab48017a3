"""Search spaces of sweeps, as Ray Tune's domains by the settings' dotted names: those of the jobs, and those that a user writes.

    optim.lr=log:1e-4:1e-2          a number between these bounds, evenly on a logarithmic scale
    model.dropout=uniform:0:0.5     evenly
    optim.warmup=int:50:500         a whole number, both bounds included
    sampler.kind=pk,proportional    one of these values

What is switched off in a job's settings (0, or a loss without a margin) is in no job's own space.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Integer

from cluster.errors import ClusterError
from datasets.command_line import Option, options_of, unknown
from datasets.errors import InputError
from trainers.engine.config import changed, settings_of
from trainers.tasks.attributes.losses import TASKS

Space = dict[str, Domain]
STAGES = ("stage1", "stage2", "stage3")
FLAGS = {"yes": True, "no": False}
WRITTEN = "write --space optim.lr=log:1e-4:1e-2, or uniform:, int:, or the values with commas"


def around(value: float, factor: float) -> Domain:
    """Log-uniform from ``value / factor`` to ``value * factor``; ``value`` is above 0."""
    return tune.loguniform(value / factor, value * factor)


def optimiser_space(base: Any) -> Space:
    """Learning rate and weight decay."""
    decay = {"optim.weight_decay": around(base.optim.weight_decay, 10)} if base.optim.weight_decay else {}
    return {"optim.lr": around(base.optim.lr, 4), **decay}


def reid_space(base: Any) -> Space:
    """Learning rate, weight decay, and the margin of a cosine or angle; SphereFace's is a whole number, which hardly varies."""
    margin = base.head.resolved(2)[0] if base.head.kind in ("cosface", "arcface", "adaface") else 0
    drawn = {"head.margin": tune.uniform(margin / 2, min(1.5 * margin, max(margin, 1.0)))} if margin else {}
    return {**optimiser_space(base), **drawn}


def clips_space(base: Any) -> Space:
    """Learning rate, weight decay and dropout."""
    return {**optimiser_space(base), **({"model.dropout": tune.uniform(0.0, 0.7)} if base.model.dropout else {})}


def attributes_space(base: Any) -> Space:
    """Length, threshold and learning rate of each stage, and the tasks' loss weights: a weight that is the same in all stages is
    drawn once, any other stage by stage."""
    space: Space = {}
    for name in STAGES:
        stage = getattr(base, name)
        space[f"{name}.most"] = tune.randint(max(stage.least, stage.most // 2), stage.most * 3 // 2 + 1)
        space[f"{name}.threshold"] = tune.uniform(0, 2)
        space[f"{name}.lr"] = around(stage.lr, 4)
    for task in TASKS:
        weights = {name: getattr(getattr(base, name).weights, task) for name in STAGES}
        if len(set(weights.values())) == 1:
            weights = {"stage*": weights[STAGES[0]]}
        space |= {f"{name}.weights.{task}": around(weight, 3) for name, weight in weights.items() if weight}
    return space


def detection_space(base: Any) -> Space:
    """The detector's learning rate and, if the arm has them: lambda and the adversaries' rate; K (m = regions / K follows) and
    weighting; the weight of what the moving mean teaches."""
    space, recipe = {"optim.lr": around(base.optim.lr, 2)}, base.recipe
    if recipe.align or recipe.classify:
        space |= {"align.strength": tune.loguniform(0.01, 1)} if base.align.strength else {}
        space |= {"adversary_lr": around(base.adversaries_optim().lr, 4)}
    if recipe.align:
        clusters = [number for number in (2, 4, 8) if number == 2 or number <= base.model.regions]
        space |= {"align.clusters": tune.choice(clusters), "align.weighting": tune.choice([True, False])}
    if (recipe.pseudo or recipe.distil) and base.teacher.weight:
        space |= {"teacher.weight": around(base.teacher.weight, 4)}
    return space


SPACES: dict[str, Callable[[Any], Space]] = {
    "reid": reid_space, "attributes": attributes_space, "detection": detection_space, "actions": clips_space,
    "sequences": clips_space,
}  # fmt: skip


def space_of(texts: Sequence[str], base: Any, program: str) -> Space:
    """The space that a user wrote, each setting as at the top of this module. Ends the command at an unknown setting or a value
    of another type. ``program``: the job, for the message.

    Raises:
        InputError: a text is no such range, or no result depends on the setting.
    """
    options = {option.name: option for option in options_of(type(base))}
    harmless = {name for name, _, change in settings_of(base) if change == "harmless"}
    space: Space = {}
    for text in texts:
        name, _, drawn = text.partition("=")
        name = name.removeprefix("--").replace("_", "-")
        if not drawn:
            raise InputError("not a setting with what to draw", text, WRITTEN)
        if name not in options:
            unknown(name, list(options), program)
        path = ".".join(options[name].path)
        if path in harmless or path in space:
            what = "given twice" if path in space else "no result depends on this setting"
            raise InputError(what, text, "leave it out")
        space[path] = _domain(options[name], drawn, text)
    return space


def _domain(option: Option, drawn: str, text: str) -> Domain:
    scale, *bounds = drawn.split(":")
    if scale not in ("log", "uniform", "int"):
        return _choice(option, drawn.split(","), text)
    whole = option.kind is int
    if option.kind not in (int, float) or (scale == "int" and not whole):
        raise InputError(f"{option.name} is not a {'whole ' * (scale == 'int')}number", text, "list its values: a,b,c")
    if len(bounds) != 2:
        raise InputError("a range needs two bounds", text, f"give {scale}:LOW:HIGH")
    low, high = (option.value([bound]) for bound in bounds)
    if None in (low, high) or not -math.inf < low < high < math.inf or (scale == "log" and low <= 0):
        above = " and above 0" if scale == "log" else ""
        raise InputError("not a range", text, f"the first bound must be below the second{above}")
    if whole:
        return (tune.lograndint if scale == "log" else tune.randint)(low, high + 1)
    return (tune.loguniform if scale == "log" else tune.uniform)(low, high)


def _choice(option: Option, words: list[str], text: str) -> Domain:
    if len(option.items) > 1 or option.many:
        raise InputError(f"{option.name} has several values", text, "only settings with one value can be searched")
    if option.flag and not set(words) <= set(FLAGS):
        raise InputError(f"{option.name} is yes or no", text, f"give {option.name}=yes,no")
    values = list(dict.fromkeys(FLAGS[word] if option.flag else option.value([word]) for word in words))
    if len(values) < 2:
        raise InputError("one value: there is nothing to search", text, f"{WRITTEN}; a fixed value stands after --")
    return tune.choice(values)


def ends(domain: Domain) -> tuple[Any, ...]:
    """The choices of a domain, or its least and greatest value."""
    if isinstance(domain, Categorical):
        return tuple(domain.categories)
    return domain.lower, domain.upper - 1 if isinstance(domain, Integer) else domain.upper


def check_space(space: Mapping[str, Domain], base: Any) -> int:
    """Change each setting alone to its ends or choices; returns the most steps that a trial can take.

    Raises:
        InputError: the job refuses one of these values.
    """
    most = base.steps
    for name, domain in space.items():
        steps = []
        for value in ends(domain):
            try:
                steps.append(changed(base, {name: value}).steps)
            except (InputError, ClusterError) as error:
                raise InputError(f"the job takes no {name} of {value}", "the search space", str(error)) from error
        most += max(0, max(steps) - base.steps)
    return int(most)
