"""Sequences made for benchmarks: training and test share no recording, and the labels of frames are those of the sequence."""

import io
import tarfile
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from benchmarks.joined_clips import Recordings, joined
from benchmarks.joined_clips import main as make_recordings
from benchmarks.spelled_words import Words, voices_of
from benchmarks.spelled_words import main as make_words
from datasets.loading.clips import open_clips
from datasets.pack_videos import VideoOptions, pack_videos

VOICES = [(speaker, rep) for speaker in "abcdef" for rep in "123"]


@pytest.mark.parametrize("choose", [False, True])
def test_words_for_choosing_settings_leave_the_tests_recordings_out(choose: bool) -> None:
    reps = voices_of(VOICES, "rep", choose)
    assert {rep for _, rep in reps["test"]} == {"2" if choose else "3"}
    assert {rep for _, rep in reps["train"]} == ({"1"} if choose else {"1", "2"})
    speakers = voices_of(VOICES, "speaker", choose)
    assert {speaker for speaker, _ in speakers["test"]} == (set("cd") if choose else set("ef"))
    assert {speaker for speaker, _ in speakers["train"]} == (set("ab") if choose else set("abcd"))


def test_more_words_change_no_others(tmp_path: Path) -> None:
    recordings = tmp_path / "avletters"
    recordings.mkdir()
    rows = ["path,label,speaker,rep"]
    for letter in "AB":
        for rep in "123":
            frames = np.random.default_rng(ord(letter) + int(rep)).integers(0, 256, (9, 6, 8)).astype(np.uint8)
            np.savez(recordings / f"{letter}{rep}.npz", frames=frames)
            rows.append(f"{letter}{rep}.npz,{letter},ann,{rep}")
    (recordings / "manifest.csv").write_text("\n".join(rows))
    for name, more in (("plain", 0), ("more", 3)):
        make_words(Words(recordings, tmp_path / name, train=4, test=2, more=more))
    plain, more = (sorted(path.name for path in (tmp_path / name).glob("*.npz")) for name in ("plain", "more"))
    assert sorted(set(more) - set(plain)) == [f"train{number:05d}.npz" for number in (4, 5, 6)]
    for name in plain:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()


def skeletons(clips: list[tuple[str, np.ndarray]]) -> bytes:
    sink = io.BytesIO()
    pose, label = np.concatenate([poses for _, poses in clips]), np.array([action for action, _ in clips])
    np.savez(sink, pose=pose, length=np.array([len(poses) for _, poses in clips]), label=label)
    return sink.getvalue()


def test_transitions_go_straight_from_pose_to_pose() -> None:
    first, second = np.zeros((3, 2, 2), np.float32), np.full((4, 2, 2), 6, np.float32)
    poses, actions = joined([("a", first), ("b", second)], (5, 5), np.random.default_rng(0))
    assert poses[:, 1, 0].tolist() == pytest.approx([0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6])
    assert actions == ["a"] * 3 + [""] * 5 + ["b"] * 4


@pytest.mark.parametrize("choose", [False, True])
def test_recordings_are_packed_with_their_actions(choose: bool, tmp_path: Path) -> None:
    """Each clip's poses are its number everywhere, so that a recording shows of which clips it was made."""
    clips = [("jump" if number % 2 else "sit", np.full((9, 3, 2), number, np.float32)) for number in range(12)]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, part in (("s/one_train.npz", clips[:8]), ("s/one_test.npz", clips[8:])):
            data = skeletons(part)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    make_recordings(Recordings(tmp_path / "s.tar", tmp_path / "made", choose, train=5, test=3))
    pack_videos("skeletons_npz", tmp_path / "made", str(tmp_path / "set"), VideoOptions(stream="skeletons"))
    packed = open_clips(str(tmp_path / "set"))
    assert (len(packed.clips_of("train")), len(packed.clips_of("test"))) == (5, 3)
    for labels, actions in zip(packed.frame_actions(), packed.actions, strict=True):
        assert 3 <= len(actions) <= 8
        assert [label for label, _ in groupby(labels.tolist()) if label >= 0] == list(actions)
    used = {split: set[float]() for split in ("train", "test")}
    for split, numbers in used.items():
        for path in (tmp_path / "made").glob(f"*_{split}.npz"):
            arrays = np.load(path)
            numbers |= set(arrays["pose"][arrays["actions"] != "", 0, 0].tolist())
    held_out = {0, 4} if choose else {8, 9, 10, 11}
    assert used["test"] <= held_out
    assert used["train"] <= (set(range(8)) - held_out)
