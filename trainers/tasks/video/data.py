"""Sets of clips: opened, checked, and which clips are used for training and evaluation."""

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np

from datasets.errors import InputError
from datasets.loading.clips import ClipSet, open_clips, whole_of
from datasets.loading.store import read_samples
from datasets.shards.frame_strips import STRIP, frames_of_strip
from datasets.shards.index import Int64s
from datasets.splits import evaluation_split
from trainers.tasks.video.ctc_loss import feasible


def open_action_set(url: str) -> ClipSet:
    """Open a set in which each clip has one action.

    Raises:
        InputError: it holds sequences, or clips of fewer than two classes.
    """
    clips = open_clips(url)
    several = [clip for clip, actions in enumerate(clips.actions) if len(actions) != 1]
    if several:
        what = f"{len(several)} clips have several actions"
        raise InputError(what, clips.name(several[0]), "train on sequences with trainers/sequences.py")
    if len(clips.class_names) < 2:
        raise InputError("fewer than two classes", clips.index.url, "check the labels: training needs at least two")
    clips.clips_of("train")
    return clips


def joints_of(clips: ClipSet) -> tuple[int, int] | None:
    """The joints J and coordinates D of a set of skeletons, None for other sets; raises InputError when it cannot be read."""
    if clips.stream != "skeletons":
        return None
    (data,) = read_samples(clips.index, clips.first[:1])
    try:
        if isinstance(data, ValueError):
            raise data
        frames = frames_of_strip(data, min(STRIP, int(clips.frames[0])))
    except ValueError as error:
        what = f"{clips.name(0)}: {error}"
        raise InputError("the first clip cannot be read", what, "check the set with `python -m datasets.inspect`") from error
    return int(frames.shape[1]), int(frames.shape[2])


def joints_of_state(state: Mapping[str, Any]) -> tuple[int, int] | None:
    """The joints and coordinates that a trained model's state has kept, None for a model of images."""
    kept = state.get("joints")  # runs of actions of earlier versions have none
    return (int(kept[0]), int(kept[1])) if kept else None


def checksum_of(clips: ClipSet) -> int:
    """crc32c of the set's contents, splits and actions; changes when the data changes."""
    actions = repr((clips.actions, clips.class_names)).encode()
    checksum: int = google_crc32c.extend(google_crc32c.extend(clips.index.checksum, actions), clips.frames.tobytes())
    return checksum


def feasible_clips(clips: ClipSet, chosen: Int64s, stride: float, *, skip: bool) -> Int64s:
    """The ``chosen`` clips that have enough frames for CTC to align their actions.

    Raises:
        InputError: a clip has too few frames and ``skip`` is off; or all clips have too few.
    """
    used = {clip: len(whole_of(int(clips.frames[clip]), stride)) for clip in chosen.tolist()}
    enough = np.array([feasible(count, clips.actions[clip]) for clip, count in used.items()], bool)
    short = [clips.name(clip) for clip in chosen[~enough].tolist()]
    if short and (not skip or not enough.any()):
        shown = ", ".join(short[:10]) + (f" (+{len(short) - 10} more)" if len(short) > 10 else "")
        remedy = "correct their labels, lower --clip.stride, or leave them out with --infeasible skip"
        raise InputError(f"{len(short)} clips have fewer frames than their actions need", shown, remedy)
    kept: Int64s = chosen[enough]
    return kept


def evaluation_clips(clips: ClipSet) -> Int64s:
    """The clips to evaluate on: the split test, else val.

    Raises:
        InputError: the set has neither.
    """
    return clips.clips_of(evaluation_split(clips.index.splits) or "test")
