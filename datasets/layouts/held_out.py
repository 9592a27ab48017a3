"""Draws what layouts of identities hold out of training: identities, and queries and a gallery of their images."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.listing import Sample, clean, shuffled
from datasets.splits import HeldOut

QUERIES_IN = 5  # one in this many images of a held-out identity is a query


def evaluated(samples: list[Sample], queries: Callable[[list[Sample]], list[Sample]]) -> list[Sample]:
    """Make queries and gallery of the test samples, or of the val samples if there is no test; keep existing queries."""
    splits = {sample.split for sample in samples}
    of = "" if "query" in splits else "test" if "test" in splits else "val"
    return [s for s in samples if s.split != of] + queries([s for s in samples if s.split == of])


def first_of_each_camera(samples: list[Sample]) -> list[Sample]:
    """Make the first image of each identity in each camera a query, the rest, or an only image, the gallery."""
    by_camera: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_camera[sample.identity, sample.camera].append(sample)
    test = []
    for of_camera in by_camera.values():
        first, *rest = sorted(of_camera, key=lambda s: s.name)
        test += [replace(first, split="query" if rest else "gallery"), *(replace(s, split="gallery") for s in rest)]
    return test


def hold_out(samples: list[Sample], held_out: HeldOut) -> list[Sample]:
    """Draw at least one identity for testing; all others are for training."""
    identities = sorted({sample.identity for sample in samples})
    count = min(max(round(held_out.fraction * len(identities)), 1), len(identities) - 1) if held_out.fraction else 0
    test = set(shuffled(identities, held_out.seed, "held-out identities")[:count])
    train = [replace(sample, split="train") for sample in samples if sample.identity not in test]
    return train + draw_queries([sample for sample in samples if sample.identity in test], held_out.seed)


def draw_queries(samples: list[Sample], seed: int) -> list[Sample]:
    """Draw one of `QUERIES_IN` images of each identity as queries, at least one; the rest, or an only image, is the gallery."""
    by_identity: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.name):
        by_identity[sample.identity].append(sample)
    test = []
    for identity, own in by_identity.items():
        count = max(len(own) // QUERIES_IN, 1) if len(own) > 1 else 0
        drawn = shuffled(own, seed, f"queries of {identity}")
        test += [replace(sample, split="query") for sample in drawn[:count]]
        test += [replace(sample, split="gallery") for sample in drawn[count:]]
    return test


def no_two_alike(names: Iterable[str], archive: Archive) -> None:
    """Raise InputError where two identities get the same name in the shards."""
    by_clean: dict[str, str] = {}
    for name in sorted(names):
        other = by_clean.setdefault(clean(name), name)
        if other != name:
            what = f"identities '{other}' and '{name}' both become '{clean(name)}'"
            raise InputError(what, archive.where, "rename one of them")
