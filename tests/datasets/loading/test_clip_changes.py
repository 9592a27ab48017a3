"""Augmentation of clips: within its limits, equal for all frames of a clip, off by default, and off means untouched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipdata import npz_folder
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.clip_changes import ClipAugmentConfig, ClipChange, draw_clip_changes
from datasets.loading.clips import ClipConfig, ClipStream, cut_of, open_clips, whole_of
from datasets.pack_videos import VideoOptions, pack_videos

ALL = ClipAugmentConfig(speed=0.5, turn=10, zoom=0.2, jitter=0.3, erase=0.5, hide=0.4)
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3)).astype(np.uint8)


@given(seed=st.integers(0, 99), step=st.integers(0, 99))
def test_changes_are_within_their_limits(seed: int, step: int) -> None:
    changes = draw_clip_changes(ALL, 6, seed, step)
    assert changes == draw_clip_changes(ALL, 6, seed, step)
    for change in changes:
        assert 1 / 1.5 <= change.speed <= 1.5
        assert 1 / 1.2 <= change.zoom <= 1.2
        assert abs(change.turn) <= 10
        assert max(abs(change.brightness - 1), abs(change.contrast - 1)) <= 0.3
        assert change.box[0] + change.box[2] <= 1
        assert change.box[1] + change.box[3] <= 1
        assert 0 <= change.hidden[0] <= change.hidden[1] <= min(change.hidden[0] + 0.4, 1)
    assert draw_clip_changes(ClipAugmentConfig(), 6, seed, step) == [ClipChange()] * 6


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    still = np.repeat(FRAMES[:1], 5, axis=0)
    change = ClipChange(1.2, 9.0, 1.1, 0.8, 1.1, (0.1, 0.2, 0.3, 0.4))
    before = still.copy()
    out = change.apply(still, "rgb")
    assert (out == out[0]).all()
    np.testing.assert_array_equal(still, before)
    hidden = ClipChange(hidden=(0.4, 0.8)).apply(FRAMES, "rgb")
    np.testing.assert_array_equal(hidden[[0, 1, 4]], FRAMES[[0, 1, 4]])
    assert (hidden[2:4] == hidden[2, 0, 0]).all()


def test_each_change_by_itself() -> None:
    assert ClipChange(speed=1.3).apply(FRAMES, "rgb") is FRAMES
    np.testing.assert_array_equal(ClipChange(brightness=0.5).apply(FRAMES, "rgb"), np.rint(FRAMES * 0.5).astype(np.uint8))
    np.testing.assert_array_equal(ClipChange(brightness=0.5, contrast=0.5).apply(FRAMES, "flow"), FRAMES)
    mean = np.float64(344 / 3)
    np.testing.assert_array_equal(
        ClipChange(contrast=0.5).apply(FRAMES, "rgb"), np.rint((FRAMES - mean) * 0.5 + mean).astype(np.uint8)
    )
    np.testing.assert_array_equal(ClipChange(turn=180.0).apply(FRAMES, "rgb"), FRAMES[:, ::-1, ::-1])
    square = np.zeros((1, 21, 21, 3), np.uint8)
    square[:, 8:13, 8:13] = 255
    np.testing.assert_array_equal(ClipChange(zoom=2.0).apply(square, "rgb")[0, ::2, ::2], square[0, 5:16, 5:16])
    box = ClipChange(box=(0.5, 0.0, 0.5, 1.0)).apply(FRAMES, "flow")
    assert (box[:, 10:] == 128).all()
    np.testing.assert_array_equal(box[:, :10], FRAMES[:, :10])
    joints = np.zeros((5, 15, 2), np.float32)
    assert ClipChange(turn=3.0).apply(joints, "skeletons") is joints


@given(
    total=st.integers(1, 60), frames=st.integers(1, 20), stride=st.integers(1, 4), place=st.floats(0, 1), speed=st.floats(0.5, 2)
)
def test_faster_clips_stay_within_their_video(total: int, frames: int, stride: int, place: float, speed: float) -> None:
    cut = cut_of(total, ClipConfig(frames=frames, stride=stride), place, speed)
    assert len(cut) == frames
    assert 0 <= cut.min() <= cut.max() < total
    whole = whole_of(total, stride * speed)
    assert whole[0] == 0
    assert whole[-1] < total
    assert abs(len(whole) - total / (stride * speed)) <= 1
    np.testing.assert_array_equal(whole_of(total, stride), np.arange(total)[::stride])


def test_batches_of_changed_clips_belong_to_their_step(tmp_path: Path) -> None:
    words = [("right",), ("up", "down"), ("left",), ("down",), ("up",), ("left", "left", "up")]
    pack_videos(
        "frames_npz", npz_folder(tmp_path / "npz", words, frame_actions=True), str(tmp_path / "set"), VideoOptions(min_frames=1)
    )
    clips = open_clips(str(tmp_path / "set"))

    def batches(part: RankSlice, start: int, augment: ClipAugmentConfig) -> list[dict[str, np.ndarray]]:
        config, chosen, labels = ClipConfig(size=(16, 24)), clips.clips_of("train"), clips.frame_actions()
        how: dict[str, Any] = {"whole": True, "frame_targets": labels, "augment": augment}
        return list(ClipStream(clips, chosen, config, 4, LoaderConfig(workers=0), CacheConfig(), part, 7, start, 4, **how))

    whole = batches(RankSlice(0, 1), 0, ALL)
    for rank in range(2):
        for batch, expected in zip(batches(RankSlice(rank, 2), 2, ALL), whole[2:], strict=True):
            rows = slice(2 * rank, 2 * rank + 2)
            np.testing.assert_array_equal(batch["lengths"], expected["lengths"][rows])
            for row, length in enumerate(batch["lengths"]):
                for name in ("clips", "frame_targets"):
                    np.testing.assert_array_equal(batch[name][row, :length], expected[name][rows][row, :length])
    plain = batches(RankSlice(0, 1), 0, ClipAugmentConfig())
    assert not all(np.array_equal(a["lengths"], b["lengths"]) for a, b in zip(whole, plain, strict=True))
    for batch in whole:
        for row, length in enumerate(batch["lengths"]):
            targets = batch["targets"][row]
            labels = batch["frame_targets"][row, :length]
            assert labels[np.flatnonzero(np.diff(labels, prepend=-2))].tolist() == [
                action for number, action in enumerate(targets[targets >= 0]) if number == 0 or action != targets[number - 1]
            ]


@pytest.mark.parametrize("name", ["speed", "turn", "zoom", "jitter", "erase", "hide"])
def test_wrong_settings(name: str) -> None:
    for value in (-0.1, 181.0):
        with pytest.raises(InputError, match=f"augment.{name}"):
            replace(ClipAugmentConfig(), **{name: value})
