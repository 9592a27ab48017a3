"""Suspected label faults of a training set: found with a run's model, written as a csv of decisions and a page to decide on."""

import csv
import io
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from datasets.decisions import COLUMNS, Kind, Training
from datasets.errors import InputError
from datasets.loading.batches import SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.store import read_samples, shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import resize
from datasets.media.decode import decode
from datasets.shards.index import Int64s, Split, split_of
from trainers.engine.run import Run
from trainers.reports.console import summary_table
from trainers.reports.page import Choice, Page
from trainers.tasks.reid.data import open_index
from trainers.tasks.reid.label_faults import NEAREST, suspicions
from trainers.tasks.reid.retrieval import ALONE, CHUNK, Embedded, embed

DECISIONS, PAGE = "decisions.csv", "clean.html"
LEAST = 0.1  # suspicions that are less probable are not listed
SIDE = 4  # images of an identity on the page
HEIGHT = 144  # of an image on the page at most: 72 CSS pixels
TITLES: dict[Kind, tuple[str, str]] = {
    "same": ("Two identities that are one", "Accepted, both become one identity."),
    "mixture": ("One identity that is two", "Accepted, the images on the right become an identity of their own."),
    "wrong": ("Wrong images", "Accepted, the image moves to the other identity; where none is named, it is left out."),
}


class Finding(NamedTuple):
    """A suspicion: labels of identities in the training split (``other``: -1 for none), and positions of images in it."""

    accept: bool
    kind: Kind
    probability: float
    identity: int
    other: int
    positions: tuple[int, ...]


def cleaned_set(given: str, own: Sequence[str]) -> Split:
    """The training split of the set that is given, else of the run's own.

    Raises:
        InputError: there is no such set or split, the run has several sets, or there are too few identities.
    """
    if not given and len(own) > 1:
        raise InputError(f"the run has {len(own)} training sets", " ".join(own), "name one with --data")
    index = open_index(given or next(iter(own), ""))
    train = split_of(index, "train")
    if len(train.counts) < NEAREST + 2:
        raise InputError(f"only {len(train.counts)} training identities", index.url, f"clean needs {NEAREST + 2} or more")
    return train


def embedded_training(
    embedder: nn.Module, train: Split, size: tuple[int, int], cache: CacheConfig, device: torch.device, workers: int
) -> tuple[Embedded, list[str]]:
    """The features of all training images, and what could not be read."""
    bad = list[str]()
    stream = SplitStream(train, size, cache, shard_etags(train.index), ALONE, CHUNK)
    return embed(embedder, train, load_in_workers(stream, workers), device, None, bad), bad


def suspected(found: Embedded, train: Split, accept: float) -> list[Finding]:
    """The suspicions of each kind, the most probable first. Identities with images in another split, too, are left out."""
    labels, numbers = np.unique(train.labels_of(found.positions.numpy()), return_inverse=True)
    names, held_out = train.names, Training(train.index).held_out
    findings = []
    for each in suspicions(found.features, numbers, accept=accept, least=min(LEAST, accept)):
        identity, other = int(labels[each.identity]), int(labels[each.other]) if each.other >= 0 else -1
        if held_out.keys().isdisjoint({names[identity], *([names[other]] if other >= 0 else [])}):
            positions = tuple(found.positions[list(each.images)].tolist())
            findings.append(Finding(each.probability >= accept, each.kind, each.probability, identity, other, positions))
    return sorted(findings, key=lambda finding: (list(TITLES).index(finding.kind), -finding.probability))


def write_findings(run: Run, train: Split, findings: Sequence[Finding], top: int) -> None:
    """Put ``decisions.csv`` and ``clean.html`` into the run's folder; the page shows the ``top`` of each kind."""
    rows = list(_rows(train, findings))
    lines = [_line(["yes" if finding.accept else "no", *row]) for finding, row in zip(findings, rows, strict=True)]
    header = _line(COLUMNS)
    run.write_text(DECISIONS, "".join([header, *lines]))
    page = Page(
        f"Label faults of {run.name}",
        f"suspected in {train.index.url}: {len(train):,} images of {len(train.counts):,} identities",
    )
    shown = set[int]()
    for kind, (title, note) in TITLES.items():
        places = [place for place, finding in enumerate(findings) if finding.kind == kind]
        shown.update(places[:top])
        choices = _choices(train, [(findings[place], rows[place]) for place in places[:top]])
        hidden = f" {len(places) - top:,} less probable ones are not shown; they stay as filled in." if len(places) > top else ""
        page.choices(title, choices, note + hidden)
    rest = "".join(line for place, line in enumerate(lines) if place not in shown)
    page.download(f"Download {DECISIONS}", DECISIONS, header.rstrip("\n"), rest)
    run.write_text(PAGE, page.html())


def print_findings(run: Run, train: Split, findings: Sequence[Finding]) -> None:
    """Print how many there are of each kind, and the command that applies the accepted ones."""
    rows = []
    for kind, (title, _) in TITLES.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        accepted = [finding.probability for finding in of_kind if finding.accept]
        rows.append([kind, title.lower(), len(of_kind), len(accepted), f"{sum(accepted):,.1f}"])
    summary_table(f"{run.name}: suspected label faults", ["kind", "", "suspected", "accepted", "of these right, expected"], rows)
    print(f"decide on: {run.url}/{PAGE}")
    target = train.index.url.rstrip("/") + "-cleaned"
    print("then: python -m datasets.relabel " + shlex.join([train.index.url, f"{run.url}/{DECISIONS}", target]))


def _rows(train: Split, findings: Sequence[Finding]) -> Iterator[list[str]]:
    """The columns of the csv after the first."""
    names, keys = train.names, train.index.keys
    for finding in findings:
        of = " ".join(keys[sample] for sample in train.samples(np.array(finding.positions, np.int64)))
        other = names[finding.other] if finding.other >= 0 else ""
        probability = f"{finding.probability:.4f}"
        yield [finding.kind, probability, names[finding.identity], other, of]


def _line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _choices(train: Split, found: Sequence[tuple[Finding, list[str]]]) -> list[Choice]:
    groups = [_groups(train, finding) for finding, _ in found]
    wanted = np.unique(np.array([place for each in groups for _, places in each for place in places], np.int64))
    images = dict(zip(wanted.tolist(), _thumbnails(train, wanted), strict=True))
    choices = []
    for (finding, row), each in zip(found, groups, strict=True):
        pictures = [(caption, [images[place] for place in places if images[place]]) for caption, places in each]
        remark = f"probability {finding.probability:.2f}"
        title = " / ".join(name for name in row[2:4] if name)
        choices.append(Choice(title, remark, _line(row).rstrip("\n"), finding.accept, pictures))
    return choices


def _groups(train: Split, finding: Finding) -> list[tuple[str, list[int]]]:
    """What the page shows of a finding: captions with positions of images."""
    names, chosen = train.names, set(finding.positions)
    own = [place for place in _places(train, finding.identity) if place not in chosen]
    if finding.kind == "mixture":
        return [(f"{names[finding.identity]}, {len(own)} images", _some(own)), (f"{len(chosen)} images", _some(sorted(chosen)))]
    shown = [(names[finding.identity], _some(own))]
    if finding.other >= 0:
        shown.append((names[finding.other], _some(list(_places(train, finding.other)))))
    return [("the image", list(finding.positions)), *shown] if finding.kind == "wrong" else shown


def _places(train: Split, label: int) -> range:
    return range(int(train.identity_starts[label]), int(train.identity_starts[label + 1]))


def _some(places: Sequence[int]) -> list[int]:
    """At most `SIDE` of them, evenly spaced."""
    return [places[place] for place in np.unique(np.linspace(0, len(places) - 1, SIDE).round().astype(int))] if places else []


def _thumbnails(train: Split, positions: Int64s) -> list[bytes]:
    """The images as small JPEG files; empty where one cannot be read."""
    found = []
    for data in read_samples(train.index, train.samples(positions)):
        try:
            image = decode(b"" if isinstance(data, ValueError) else data)
        except ValueError:
            found.append(b"")
            continue
        height, width = image.shape[:2]
        small = min(HEIGHT / height, 1.0)
        image = resize(image, (max(round(height * small), 1), max(round(width * small), 1)))
        found.append(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return found
