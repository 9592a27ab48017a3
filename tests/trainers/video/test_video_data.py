"""Which clips of a set are trained and evaluated on."""

from pathlib import Path

import pytest
from clipdata import npz_folder

from datasets.errors import InputError
from datasets.loading.clips import open_clips
from datasets.pack_videos import VideoOptions, pack_videos
from trainers.tasks.video.data import evaluation_clips, feasible_clips


def test_clips_for_validation_are_evaluated_where_none_are_for_testing(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", [("up",), ("down",), ("left",)])
    rows = (folder / "manifest.csv").read_text().replace("round", "split").replace(",0\n", ",train\n").replace(",1\n", ",valid\n")
    for split, chosen in (("testing", [1]), ("dev", [1, 2])):
        (folder / "manifest.csv").write_text(rows.replace(",2\n", f",{split}\n"))
        clips = open_clips(pack_videos("frames_npz", folder, str(tmp_path / split)).url)
        evaluated = evaluation_clips(clips)
        assert len(evaluated) == len(chosen)
        assert clips.clips_of("test" if split == "testing" else "val").tolist() == evaluated.tolist()
    alone = pack_videos("frames_npz", folder, str(tmp_path / "alone"), VideoOptions(test="path=none"))
    with pytest.raises(InputError, match="no split 'test'"):
        evaluation_clips(open_clips(alone.url))


def test_clips_too_short_for_their_actions_are_refused_by_name(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", [("up", "down"), ("up", "up"), ("left",)], frames=4)
    clips = open_clips(pack_videos("frames_npz", folder, str(tmp_path / "set"), VideoOptions(held_out=0, min_frames=1)).url)
    chosen = clips.clips_of("train")
    assert len(feasible_clips(clips, chosen, 2, skip=False)) == 3
    with pytest.raises(InputError, match=r"1 clips have fewer frames than their actions need: clip001-000001"):
        feasible_clips(clips, chosen, 4, skip=False)
    assert feasible_clips(clips, chosen, 4, skip=True).tolist() == [0, 2]
    with pytest.raises(InputError, match="2 clips"):
        feasible_clips(clips, chosen[:2], 8, skip=True)
