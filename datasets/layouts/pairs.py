"""Layouts of verification sets: pairs of images that show the same person, or two.

They have one split, `datasets.splits.PAIRS`: the images at positions 2i and 2i + 1 are pair i of the published order; an image is
stored as often as it occurs. A pair is "same" where both have the same identity. `datasets.shards.pairs` finds the pairs again.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

from datasets.errors import InputError
from datasets.layouts.archive import Archive
from datasets.layouts.held_out import no_two_alike
from datasets.layouts.listed_files import ListedFiles
from datasets.layouts.listing import Listing, Sample, clean, ending_of, images_in, only_file, root_above
from datasets.pickle_files import Bytes, read_pickle
from datasets.splits import PAIRS, HeldOut


def bin_pairs(archive: Archive, _: HeldOut) -> Listing:
    """Read a .bin as insightface publishes them (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin``), without unpickling.

    It is a pickle of (2 n image files, n booleans: whether a pair is "same"). The identity of pair 12 is ``00012``, or ``00012a``
    and ``00012b``.
    """
    name = only_file(archive, ".bin")
    stream = archive.open(name)
    images, same = _images_and_same(read_pickle(stream, archive.place(name)), archive.place(name))
    width, places, samples = max(len(str(len(same) - 1)), 5), {}, []
    for position, image in enumerate(images):
        pair, side = divmod(position, 2)
        file = f"{position:07d}{ending_of(image.head)}"
        identity = f"{pair:0{width}d}" + ("" if same[pair] else "ab"[side])
        samples.append(Sample(PAIRS, identity, PAIRS, file, position=position))
        places[file] = image

    def read(file: str) -> bytes:
        stream.seek(places[file].offset)
        return stream.read(places[file].size)

    inside = replace(archive, sizes={file: image.size for file, image in places.items()}, _read=read)
    return Listing(samples, (112, 112), mirror=True, splits_by=f"the pairs of {name}", archive=inside)


def lfw(archive: Archive, _: HeldOut) -> Listing:
    """Read LFW: ``Name/Name_0001.jpg`` and ``pairs.txt``, or a list in its form.

    The first line has the number of folds, 1 if there is only one number, and of pairs of each kind in a fold. In each fold the
    "same" pairs come first: ``name n m``, then the others: ``name n name m``.
    """
    listed = root_above(archive, "pairs.txt", "LFW has its pairs.txt") + "pairs.txt"
    stems = {str(PurePosixPath(name).with_suffix("")): name for name in images_in(archive, list(archive.sizes))}
    places, samples, people = ListedFiles(stems), [], set()
    for pair, line in enumerate(_pairs_of_list(archive, listed)):
        for side, (person, number) in enumerate(line.images):
            image = stems[places.find(f"{person}/{person}_{number:04d}", line.where)]
            samples.append(Sample(PAIRS, clean(person), PAIRS, image, position=2 * pair + side))
            people.add(person)
    no_two_alike(people, archive)
    return Listing(samples, (112, 112), mirror=True, splits_by=listed, others=f"not named by {listed}")


PairName = Literal["bin", "lfw"]
PAIR_LAYOUTS: dict[PairName, Callable[[Archive, HeldOut], Listing]] = dict(zip(get_args(PairName), (bin_pairs, lfw), strict=True))


class _Pair(NamedTuple):
    """A line of a list of pairs: person and number of both images."""

    images: tuple[tuple[str, int], tuple[str, int]]
    where: str


def _images_and_same(found: Any, where: str) -> tuple[list[Bytes], list[bool]]:
    """Check what a .bin holds, and return it; raises InputError."""
    wrong = "is it a verification set of insightface?"
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(part, tuple | list) for part in found):
        raise InputError("not two lists, of images and of booleans", where, wrong)
    images, same = found
    if not all(isinstance(image, Bytes) for image in images) or not all(answer in (0, 1) for answer in same):
        raise InputError("not a list of image files and one of booleans", where, wrong)
    if not same or len(images) != 2 * len(same):
        raise InputError(f"{len(images):,} images of {len(same):,} pairs", where, "two images for each pair are expected")
    return list(images), [bool(answer) for answer in same]


def _pairs_of_list(archive: Archive, listed: str) -> Iterator[_Pair]:
    """Yield the pairs of a list in LFW's form; raises InputError where a line, or their number, is wrong."""
    place = archive.place(listed)
    lines = [(f"line {number} of {place}", line.split()) for number, line in enumerate(archive.text(listed).splitlines(), 1)]
    lines = [(where, words) for where, words in lines if words]
    first = lines[0][1] if lines else []
    if not 1 <= len(first) <= 2 or not all(re.fullmatch(r"[0-9]{1,6}", word) for word in first):
        raise InputError("no number of folds and pairs in its first line", place, "`10 300` is expected, as in LFW's pairs.txt")
    folds, of_a_kind = (int(word) for word in (["1", *first] if len(first) == 1 else first))
    if len(lines) - 1 != 2 * folds * of_a_kind:
        what = f"{len(lines) - 1:,} pairs where its first line counts {2 * folds * of_a_kind:,}"
        raise InputError(what, place, "is the list whole?")
    for number, (where, words) in enumerate(lines[1:]):
        same = number // of_a_kind % 2 == 0
        people, numbers = (words[:1] * 2, words[1:]) if same else (words[::2], words[1::2])
        if len(words) != (3 if same else 4) or not all(re.fullmatch(r"[0-9]{1,6}", word) for word in numbers):
            expected = "`name n m`" if same else "`name n name m`"
            raise InputError("a line that cannot be read", where, f"{expected} is expected here")
        if not same and people[0] == people[1]:
            raise InputError(f"{people[0]} twice in a pair of different people", where, "correct the list")
        yield _Pair(((people[0], int(numbers[0])), (people[1], int(numbers[1]))), where)
