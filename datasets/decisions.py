"""A csv of decisions about identities, as ``python trainers/reid.py clean`` writes it and people edit it.

    accept,kind,probability,identity,other,keys
    yes,same,0.98,0002,0007,                        both are one identity
    yes,mixture,0.91,0011,,0011/000004 0011/000005  these images leave 0011 and become a new identity, 0011~2
    yes,wrong,0.95,0020,0031,0020/000001            this image belongs to 0031; if other is empty, it is left out
    no,same,0.31,0002,0040,                         not applied

Only training images can change. A line may name several images, with spaces between their keys.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Literal, get_args

import numpy as np

from datasets.errors import InputError
from datasets.shards.index import Index, split_of
from datasets.text_files import csv_rows, number_of

Kind = Literal["same", "mixture", "wrong"]
COLUMNS = ("accept", "kind", "probability", "identity", "other", "keys")
REFUSE = "correct the line, or set its accept to no"


@dataclass(frozen=True)
class Decision:
    """An accepted line. ``samples``: its images by their numbers in the index; none for ``same``."""

    kind: Kind
    identity: str
    other: str
    samples: tuple[int, ...]


class Training:
    """The training identities of a set, and where each of their images is."""

    def __init__(self, index: Index) -> None:
        self.index, self.split = index, split_of(index, "train")
        self.labels = {name: label for label, name in enumerate(self.split.names)}

    @cached_property
    def held_out(self) -> dict[str, str]:
        """A split that is not for training, by the identities that have images there."""
        index, blocks = self.index, self.index.blocks
        pairs = sorted({*zip(blocks["identity"].tolist(), blocks["split"].tolist(), strict=True)}, reverse=True)
        return {index.identities[i]: index.splits[split] for i, split in pairs if index.splits[split] != "train"}

    def check(self, identity: str, place: str) -> None:
        """Raise InputError for what is no training identity."""
        if identity in self.held_out:
            what = f"identity '{identity}' has images in split '{self.held_out[identity]}'"
            raise InputError(what, place, "only training images can be relabelled: set its accept to no")
        if identity not in self.labels:
            raise InputError(f"no training identity '{identity}'", place, REFUSE)

    def samples(self, identity: str, cell: str, place: str) -> list[int]:
        """Return the samples of the identity that a cell of keys names. A key may itself have spaces.

        Raises:
            InputError: no key, or one that no image or more than one of the identity has.
        """
        label = self.labels[identity]
        positions = np.arange(self.split.identity_starts[label], self.split.identity_starts[label + 1])
        own = [(self.index.keys[sample], sample) for sample in self.split.samples(positions).tolist()]
        found, word = list[int](), ""
        for piece in cell.split():
            word = f"{word} {piece}".lstrip()
            if named := [sample for key, sample in own if key == word]:
                if len(named) > 1:
                    raise InputError(
                        f"{len(named)} images have the key '{word}'", place, "name them apart, and index the set again"
                    )
                found, word = [*found, *named], ""
        if word or not found:
            what = f"no image '{word}' of identity '{identity}'" if word else "no keys"
            raise InputError(what, place, f"{REFUSE}; keys are those of the set's index, with a space between two")
        return found


def decisions_of(text: str, where: str, index: Index) -> tuple[list[Decision], int]:
    """Return the accepted decisions of a csv, checked against the set that they are about, and how many were not accepted.

    Raises:
        InputError: a column is missing; or a line has a fault, named by its number in the file ``where``.
    """
    training, found, refused = Training(index), list[Decision](), 0
    lines: dict[int, str] = {}
    for place, row in csv_rows(text, where, COLUMNS):
        accept, kind, probability, *cells = (row[name].strip() for name in COLUMNS)
        if accept not in ("yes", "no"):
            raise InputError(f"accept is '{accept}'", place, "write yes or no")
        if kind not in get_args(Kind):
            raise InputError(f"kind is '{kind}'", place, f"write {', '.join(get_args(Kind))}")
        if not 0 <= number_of(probability, "probability", place) <= 1:
            raise InputError(f"probability is {probability}", place, "write a number from 0 to 1")
        if accept == "no":
            refused += 1
            continue
        decision = _decision(kind, *cells, training, place)
        for sample in decision.samples:
            if sample in lines:
                what = f"image '{index.keys[sample]}' is named twice"
                raise InputError(what, f"{lines[sample]}, and {place}", "name it in one accepted line")
            lines[sample] = place
        found.append(decision)
    return found, refused


def _decision(kind: str, identity: str, other: str, keys: str, training: Training, place: str) -> Decision:
    training.check(identity, place)
    if kind == "mixture" and other:
        raise InputError(f"a mixture with another identity, '{other}'", place, "write kind wrong to give the images to it")
    if other or kind == "same":
        training.check(other, place)
    if other == identity:
        raise InputError(f"identity and other are both '{identity}'", place, REFUSE)
    return Decision(kind, identity, other, () if kind == "same" else tuple(training.samples(identity, keys, place)))


def renamed(decisions: Sequence[Decision], names: Sequence[str]) -> list[str | None]:
    """Return the identities after the decisions, given those before [M]; None for an image that is left out.

    First single images change (wrong), then new identities are made (mixture), then identities are joined (same): all of a group
    get the smallest of their names.
    """
    changed, taken = list[str | None](names), set(names)
    for decision in sorted(decisions, key=lambda each: each.kind == "mixture"):
        new: str | None = decision.other or None
        if decision.kind == "mixture":
            new = next(name for number in count(2) if (name := f"{decision.identity}~{number}") not in taken)
            taken.add(new)
        for sample in decision.samples:
            changed[sample] = new
    one = _joined((each.identity, each.other) for each in decisions if each.kind == "same")
    return [name if name is None else one.get(name, name) for name in changed]


def _joined(pairs: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """Return the smallest name of each name's group, given the pairs that are one."""
    groups: dict[str, set[str]] = {}
    for pair in pairs:
        group = set[str]().union(*(groups.get(name, {name}) for name in pair))
        groups |= dict.fromkeys(group, group)
    return {name: min(group) for name, group in groups.items()}
