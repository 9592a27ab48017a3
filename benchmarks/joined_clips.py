"""Long recordings made of JHMDB's skeletons: clips of single actions in random order, with blended transitions, for sequences.

    python -m benchmarks.joined_clips jhmdb_skeletons.tar FOLDER [--choose]
    python -m datasets.pack_videos skeletons_npz FOLDER SHARDS --stream skeletons

Training and test recordings share no clip: they are made of the set's own training and test clips. Between two clips the joints
move from the last pose of one to the first pose of the next in a straight line. Frames carry their action, none in a transition.
With ``--choose`` the recordings are for choosing settings: the test clips are left out, and a quarter of the training clips is
held out.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.command_line import POSITIONAL, parse
from datasets.errors import InputError, run_main
from datasets.layouts.archive import open_archive
from datasets.layouts.videos import skeletons_of
from datasets.numpy_files import texts_of

Poses = npt.NDArray[np.float32]  # [T, J, D]
Take = tuple[str, Poses]  # an action, and a clip of it


@dataclass(frozen=True)
class Recordings:
    """Make recordings."""

    source: Path = field(metadata=POSITIONAL)
    """jhmdb_skeletons.tar, or a folder of it."""
    folder: Path = field(metadata=POSITIONAL)
    choose: bool = False
    """Leave the test clips out, and hold out every fourth training clip."""
    train: int = 1600
    """Training recordings."""
    test: int = 200
    length: tuple[int, int] = (3, 8)
    """Actions of a recording, least and most."""
    transition: tuple[int, int] = (4, 12)
    """Frames between two actions, least and most."""
    seed: int = 0


def takes_of(data: bytes, where: str) -> list[Take]:
    """The clips of a file of skeletons."""
    arrays = skeletons_of(data, where, ("length", "label"))
    parts = np.split(arrays["pose"].astype(np.float32), np.cumsum(arrays["length"])[:-1])
    return list(zip(texts_of(arrays["label"]), parts, strict=True))


def joined(takes: list[Take], transition: tuple[int, int], rng: np.random.Generator) -> tuple[Poses, list[str]]:
    """Takes one after the other: the poses [T, J, D], and each frame's action, empty in a transition."""
    poses, actions = [takes[0][1]], [takes[0][0]] * len(takes[0][1])
    for (_, before), (action, after) in pairwise(takes):
        count = int(rng.integers(transition[0], transition[1] + 1))
        share = (np.arange(1, count + 1, dtype=np.float32) / (count + 1))[:, None, None]
        poses += [(1 - share) * before[-1] + share * after[0], after]
        actions += [""] * count + [action] * len(after)
    return np.concatenate(poses), actions


def main(options: Recordings) -> None:
    """Write the recordings as files for the layout skeletons_npz."""
    with open_archive(options.source) as source:
        files = {split: [name for name in source.sizes if name.endswith(f"_{split}.npz")] for split in ("train", "test")}
        if any(len(names) != 1 for names in files.values()):
            raise InputError("not one file *_train.npz and one *_test.npz", source.where, "give JHMDB's skeletons")
        takes = {split: takes_of(source.read(name), source.place(name)) for split, (name,) in files.items()}
    if options.choose:
        known = takes["train"]
        takes = {"train": [take for n, take in enumerate(known) if n % 4], "test": known[::4]}
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    for split, count in (("test", options.test), ("train", options.train)):
        for number in range(count):
            chosen = rng.choice(len(takes[split]), int(rng.integers(options.length[0], options.length[1] + 1)))
            used = [takes[split][take] for take in chosen]
            poses, actions = joined(used, options.transition, rng)
            label = np.array([";".join(action for action, _ in used)])
            file = options.folder / f"{number:05d}_{split}.npz"
            np.savez(file, pose=poses, length=np.array([len(poses)]), label=label, actions=np.array(actions))
    print(f"{options.train} training and {options.test} test recordings in {options.folder}")


if __name__ == "__main__":
    run_main(lambda: main(parse(Recordings, "python -m benchmarks.joined_clips")))
