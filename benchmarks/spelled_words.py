"""Spelled words made of AVLetters: letters of one speaker joined in random order with pauses between them, for sequences.

    python -m benchmarks.spelled_words AVLETTERS.tar FOLDER [--letters AFILMOPRUW] [--apart rep | speaker] [--choose]
    python -m datasets.pack_videos frames_npz FOLDER SHARDS

Training words and test words share no recording: with ``--apart rep`` test words are of the third repetition, with ``--apart
speaker`` of speakers that training never saw. Frames carry their letter, for frame-wise baselines and the frames' F1. With
``--choose`` the words are for choosing settings: the recordings of those tests are left out, and others are held out.
"""

import csv
import io
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.layouts.archive import Archive, open_archive
from datasets.numpy_files import arrays_of

HELD_OUT_SPEAKERS = 2  # of the ten
NOISE = 2  # greatest change of a still frame's pixels in a pause
Voice = tuple[str, str]  # a speaker and a repetition
Recordings = dict[tuple[str, str, str], npt.NDArray[np.uint8]]  # by speaker, repetition, letter


@dataclass(frozen=True)
class Words:
    """Make words."""

    source: Path = field(metadata=POSITIONAL)
    """avletters.tar, or a folder of it."""
    folder: Path = field(metadata=POSITIONAL)
    letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    apart: Literal["rep", "speaker"] = "rep"
    choose: bool = False
    """Leave the test recordings out, and hold out others: repetition 2, or the two speakers before the last two."""
    train: int = 400
    """Training words."""
    more: int = 0
    """Further training words of the same recordings, drawn after the others, which therefore stay the same."""
    test: int = 100
    length: tuple[int, int] = (3, 6)
    """Letters of a word, least and most."""
    pause: tuple[int, int] = (2, 10)
    """Still frames between two letters, least and most."""
    seed: int = 0


def read(source: Archive) -> Recordings:
    """All recordings of AVLetters."""
    manifest = next((name for name in source.sizes if name.endswith("manifest.csv")), None)
    if manifest is None:
        raise InputError("no manifest.csv", source.where, "give AVLetters")
    recordings: Recordings = {}
    for row in csv.DictReader(io.StringIO(source.read(manifest).decode())):
        name = manifest.removesuffix("manifest.csv") + row["path"]
        arrays = arrays_of(io.BytesIO(source.read(name)), name, ("frames",))
        recordings[row["speaker"], row["rep"], row["label"]] = arrays["frames"]
    return recordings


def word_of(
    takes: list[tuple[str, npt.NDArray[np.uint8]]], pause: tuple[int, int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Takes (letter, frames [T, H, W]) one after the other: frames, and each frame's letter, empty in a pause. A pause holds the
    last frame of one take, then the first of the next, with a little noise."""
    frames, labels = [takes[0][1]], [takes[0][0]] * len(takes[0][1])
    for (_, before), (letter, after) in pairwise(takes):
        count = int(rng.integers(pause[0], pause[1] + 1))
        held = np.stack([before[-1] if place < count / 2 else after[0] for place in range(count)]).astype(np.int16)
        still = np.clip(held + rng.integers(-NOISE, NOISE + 1, held.shape), 0, 255).astype(np.uint8)
        frames += [still, after]
        labels += [""] * count + [letter] * len(after)
    return np.concatenate(frames), labels


def voices_of(voices: list[Voice], apart: Literal["rep", "speaker"], choose: bool) -> dict[str, list[Voice]]:
    """The training and the test recordings, by speaker and repetition; with ``choose`` those for choosing settings."""
    if apart == "rep":
        values, count = sorted({rep for _, rep in voices}), 1
    else:
        values, count = sorted({speaker for speaker, _ in voices}), HELD_OUT_SPEAKERS
    known = values[:-count] if choose else values
    place = 1 if apart == "rep" else 0
    parts = {"train": known[:-count], "test": known[-count:]}
    return {split: [voice for voice in voices if voice[place] in part] for split, part in parts.items()}


def main(options: Words) -> None:
    """Write the words as a folder for the layout frames_npz."""
    with open_archive(options.source) as source:
        recordings = read(source)
    by_voice: dict[tuple[str, str], list[str]] = defaultdict(list)
    for speaker, rep, letter in sorted(recordings):
        if letter in options.letters:
            by_voice[speaker, rep].append(letter)
    voices = voices_of(list(by_voice), options.apart, options.choose)
    if not all(voices.values()):
        raise InputError("no recording of these letters", str(options.source), "give letters from A to Z")
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    with (options.folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "labels", "split", "speaker", "rep"])
        first = {"train": range(options.train), "test": range(options.test)}
        for split, numbers in (*first.items(), ("train", range(options.train, options.train + options.more))):
            for number in numbers:
                speaker, rep = voices[split][int(rng.integers(len(voices[split])))]
                letters = rng.choice(by_voice[speaker, rep], int(rng.integers(options.length[0], options.length[1] + 1)))
                takes = [(str(letter), recordings[speaker, rep, str(letter)]) for letter in letters]
                frames, labels = word_of(takes, options.pause, rng)
                np.savez(options.folder / f"{split}{number:05d}.npz", frames=frames, actions=np.array(labels))
                rows.writerow([f"{split}{number:05d}.npz", ";".join(letters), split, speaker, rep])
    count = options.train + options.more
    print(f"{count} training words, {options.test} test words of {len(options.letters)} letters in {options.folder}")


if __name__ == "__main__":
    run_main(lambda: main(parse(Words, "python -m benchmarks.spelled_words")))
