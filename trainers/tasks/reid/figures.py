"""The figures of evaluations in tables and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.reports.console import summary_table

MAIN = ("mAP", "mINP", "rank1", "rank5", "rank10", "pairs_accuracy")
TARS = ("TAR@1e-1", "TAR@1e-2", "TAR@1e-3", "TAR@1e-4")
VERIFICATION = ("verification", *TARS, "pairs_accuracy", "pairs_accuracy_std", "pairs_AUC", *(f"pairs_{name}" for name in TARS))
Rows = Sequence[Mapping[str, Any]]


def summary_of(evaluation: Mapping[str, Any]) -> str:
    """The figures that a line on the console has; empty where there are none, as on all ranks but the first."""
    if "sets" in evaluation:
        return "; ".join(f"{summary_of(figures)} on {url}" for url, figures in evaluation["sets"].items())
    words = {"mAP": "mAP", "rank1": "Rank-1", "mAP_reranked": "re-ranked mAP", "pairs_accuracy": "accuracy of pairs"}
    return ", ".join(f"{words[name]} {evaluation[name]:.1%}" for name in words if name in evaluation)


def joined_figures(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An evaluation of several sets, by their addresses: the figures of the first, and those of each as "sets"."""
    first = dict(next(iter(sets.values())))
    return {**first, "sets": dict(sets)} if len(sets) > 1 else first


def rows_of_sets(evaluations: Rows) -> list[dict[str, Any]]:
    """A row of figures for each set of the last evaluation, which begins with its address as "set"; none of a single set."""
    return [{"set": url, **figures} for each in evaluations[-1:] for url, figures in each.get("sets", {}).items()]


def main_figures(evaluations: Rows) -> list[str]:
    """The names of the main figures that all evaluations have, each with its re-ranked twin beside it."""
    names = [twin for name in MAIN for twin in (name, f"{name}_reranked")]
    return [name for name in names if all(name in each for each in evaluations)]


def print_evaluations(title: str, first: str, evaluations: Rows) -> None:
    """Print the main figures, one row per evaluation, which begins with what it has as ``first``."""
    if evaluations:
        _table(title, first, MAIN, evaluations)


def print_verification(title: str, first: str, evaluations: Rows) -> None:
    """As `print_evaluations`, the figures of verification."""
    if any("verification" in each or "pairs_accuracy" in each for each in evaluations):
        _table(f"{title}: verification", first, VERIFICATION, evaluations)


def _table(title: str, first: str, names: Sequence[str], evaluations: Rows) -> None:
    names = [name for name in names if any(name in each for each in evaluations)]
    reranked = {name for name in names if any(f"{name}_reranked" in each for each in evaluations)}
    columns = [f"{name} (re-ranked)" if name in reranked else name for name in names]
    summary_table(title, [first, *columns], [[each[first], *(_cell(each, name) for name in names)] for each in evaluations])


def _cell(evaluation: Mapping[str, Any], name: str) -> str | None:
    if name not in evaluation:  # of another protocol, or of an older version
        return None
    again = evaluation.get(f"{name}_reranked")
    return f"{evaluation[name]:.1%}" + (f" ({again:.1%})" if again is not None else "")
