"""Plant label faults in a set, and score what `trainers/reid.py clean` suspects in a run that was trained on it.

    python -m benchmarks.label_faults SHARDS NEW_INDEX [--split 0.1] [--merge 0.05] [--wrong 0.03] [--seed 0]
    python -m benchmarks.label_faults SHARDS NEW_INDEX --score RUN

The first command writes an index over the same shards, in which a tenth of the training identities is split in two, a twentieth
is merged with another one, and 3% of the training images have the name of another identity; and NEW_INDEX/truth.csv, which says
which. All draws are even: the pairs that are merged need not look alike. The second command compares the run's decisions.csv with
it: precision and recall of what is accepted, and how many suspicions of each probability are true.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from datasets.command_line import POSITIONAL, parse
from datasets.decisions import KINDS
from datasets.errors import InputError, run_main
from datasets.object_storage import open_objects
from datasets.relabel import write_relabelled
from datasets.shards.index import read_index, split_of
from datasets.text_files import text_of
from trainers.reports.console import summary_table
from trainers.tasks.reid.cleaning import DECISIONS

TRUTH = "truth.csv"
BINS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.01)
LEAST = 4  # images of an identity that is split


class Fault(NamedTuple):
    """A planted fault, of names in the new index; ``keys``: the images of ``other`` that lie under ``identity``."""

    kind: str
    identity: str
    other: str
    keys: tuple[str, ...] = ()


def plant(
    keys: Sequence[str], names: Sequence[str], split: float, merge: float, wrong: float, seed: int
) -> tuple[list[str], list[Fault]]:
    """Return a name for each training image, and the faults. ``keys``, ``names``: of each image, ``M`` of them.

    No identity is split and merged; a part has 3 to 7 tenths of a split identity's images.

    Raises:
        InputError: there are too few identities for so many faults.
    """
    rng, names = np.random.default_rng(seed), list(names)
    of: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        of.setdefault(name, []).append(place)
    drawn = [str(name) for name in rng.permutation(sorted(of))]
    splits, merges = round(split * len(drawn)), round(merge * len(drawn))
    if splits + 2 * merges > len(drawn):
        raise InputError(
            f"too few identities ({len(drawn)}) for {splits} splits and {merges} merges", "", "lower --split or --merge"
        )
    faults, second, joined = list[Fault](), dict[str, str](), dict[str, str]()
    for name in drawn[:splits]:
        if len(of[name]) >= LEAST:
            part = rng.permutation(of[name])[: max(round(rng.uniform(0.3, 0.7) * len(of[name])), 1)]
            second[name] = f"{name}-second"
            for place in part:
                names[place] = second[name]
            faults.append(Fault("same", name, second[name]))
    for name, other in zip(drawn[splits : splits + merges], drawn[splits + merges : splits + 2 * merges], strict=True):
        for place in of[other]:
            names[place] = name
        joined[other] = name
        faults.append(Fault("mixture", name, other, tuple(keys[place] for place in of[other])))
    present = sorted(set(names))
    moved = {}
    for place in rng.permutation(len(names))[: round(wrong * len(names))].tolist():
        own = names[place]
        near = {own, second.get(own, own), own.removesuffix("-second")}
        while (name := present[int(rng.integers(len(present)))]) in near:
            pass
        moved[place] = name
        faults.append(Fault("wrong", name, own, (keys[place],)))
    for place, name in moved.items():
        names[place] = name
    return names, faults


class Scored(NamedTuple):
    """A suspicion of a csv of decisions: what it says, and whether it is true."""

    kind: str
    accepted: bool
    probability: float
    true: bool


def scored(truth: Sequence[Mapping[str, str]], decisions: Sequence[Mapping[str, str]]) -> list[Scored]:
    """Compare rows of decisions with rows of planted faults.

    Two identities are the same if they are the halves of one; an identity is a mixture if it is two; a wrong image is true if it
    is wrong and belongs to the identity named, or to the other half of it, or if none is named.
    """
    halves = {frozenset((row["identity"], row["other"])) for row in truth if row["kind"] == "same"}
    mixed = {row["identity"] for row in truth if row["kind"] == "mixture"}
    owners = {row["keys"]: row["other"] for row in truth if row["kind"] == "wrong"}

    def true(row: Mapping[str, str]) -> bool:
        if row["kind"] == "same":
            return frozenset((row["identity"], row["other"])) in halves
        if row["kind"] == "mixture":
            return row["identity"] in mixed
        owner, other = owners.get(row["keys"]), row["other"]
        return owner is not None and (other in ("", owner) or frozenset((owner, other)) in halves)

    return [Scored(row["kind"], row["accept"] == "yes", float(row["probability"]), true(row)) for row in decisions]


def print_scores(index: str, run: str) -> None:
    """Print two tables: precision and recall of what is accepted, and the share of true suspicions by probability."""
    planted, found = (_rows(folder, name) for folder, name in ((index, TRUTH), (run, DECISIONS)))
    rows, bins = [], []
    for kind in KINDS:
        total = sum(row["kind"] == kind for row in planted)
        of_kind = [each for each in scored(planted, found) if each.kind == kind]
        accepted = [each.true for each in of_kind if each.accepted]
        precision = f"{sum(accepted) / len(accepted):.3f}" if accepted else "-"
        rows.append([kind, total, len(accepted), precision, f"{sum(accepted) / max(total, 1):.3f}"])
        for low, high in pairwise(BINS):
            some = [each for each in of_kind if low <= each.probability < high]
            if some:
                mean, share = (sum(values) / len(some) for values in ([e.probability for e in some], [e.true for e in some]))
                bins.append([kind, f"{low:.2f} to {min(high, 1):.2f}", len(some), f"{mean:.2f}", f"{share:.2f}"])
    summary_table("What is accepted", ["kind", "planted", "accepted", "precision", "recall"], rows)
    summary_table("By probability", ["kind", "probability", "suspicions", "mean", "true"], bins)


def _rows(folder: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text_of(open_objects(folder).get(name), f"{folder}/{name}").splitlines()))


@dataclass(frozen=True)
class Plant:
    """Plant label faults, or score a run's decisions against those planted."""

    shards: str = field(metadata=POSITIONAL)
    """The set."""
    index: str = field(metadata=POSITIONAL)
    """Where the index with the faults is, or is written."""
    split: float = 0.1
    """Share of the identities that are split in two."""
    merge: float = 0.05
    """Share of the identities that are merged with another one."""
    wrong: float = 0.03
    """Share of the images that get another identity's name."""
    seed: int = 0
    score: str = ""
    """A run's folder: score its decisions.csv."""

    def __post_init__(self) -> None:
        for name in ("split", "merge", "wrong"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise InputError(f"--{name} is {share}", remedy="give a share from 0 to 1")


def main(options: Plant) -> None:
    """Write the index and the truth, or print the scores."""
    if options.score:
        print_scores(options.index, options.score)
        return
    index = read_index(options.shards)
    train = split_of(index, "train")
    samples = train.samples(np.arange(len(train)))
    names = [index.identities[i] for i in index.identity_of(np.arange(len(index)))]
    keys = [index.keys[sample] for sample in samples]
    planted, faults = plant(
        keys, [names[sample] for sample in samples], options.split, options.merge, options.wrong, options.seed
    )
    for sample, name in zip(samples, planted, strict=True):
        names[sample] = name
    write_relabelled(index, names, options.index)
    table = StringIO()
    writer = csv.writer(table)
    writer.writerow(Fault._fields)
    writer.writerows((fault.kind, fault.identity, fault.other, " ".join(fault.keys)) for fault in faults)
    open_objects(options.index).put(TRUTH, table.getvalue().encode())
    print(f"{len(faults):,} faults planted: {options.index}/{TRUTH}")


if __name__ == "__main__":
    run_main(lambda: main(parse(Plant, "python -m benchmarks.label_faults")))
