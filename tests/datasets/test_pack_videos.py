"""Layouts of videos, and packing them: which clips there are, what becomes of bad ones, and that frames come back."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clipdata import moving, npz_folder, stairs, video_bytes
from testdata import archive

from datasets.cache import CacheConfig
from datasets.clips import Reader, open_clips
from datasets.errors import InputError
from datasets.index import read_index
from datasets.inspect import faults
from datasets.pack_videos import VideoOptions, pack_videos
from datasets.source import Source
from datasets.splits import HeldOut
from datasets.video_layouts import VIDEO_LAYOUTS, Choice, Clip, Name

CHOICE = Choice(HeldOut(0.5))


def source(files: dict[str, bytes]) -> Source:
    return Source("here", {name: len(data) for name, data in files.items()}, files.__getitem__)


def listed(layout: Name, files: dict[str, bytes], choice: Choice = CHOICE) -> list[Clip]:
    return VIDEO_LAYOUTS[layout](source(files), choice).clips


UCF = {
    "UCF-101/Archery/v_Archery_g01_c01.avi": b"", "UCF-101/Archery/v_Archery_g08_c01.avi": b"",
    "UCF-101/Punch/v_Punch_g08_c01.avi": b"",
    "lists/trainlist01.txt": b"Archery/v_Archery_g08_c01.avi 1\nPunch/v_Punch_g08_c01.avi 2\n\n",
    "lists/testlist01.txt": b"Archery/v_Archery_g01_c01.avi\n",
}  # fmt: skip


def test_ucf101() -> None:
    assert [(c.split, c.file.split("/")[-1], c.actions) for c in listed("ucf101", UCF)] == [
        ("train", "v_Archery_g08_c01.avi", ("Archery",)), ("train", "v_Punch_g08_c01.avi", ("Punch",)),
        ("test", "v_Archery_g01_c01.avi", ("Archery",)),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"no trainlist02\.txt"):
        listed("ucf101", UCF, Choice(HeldOut(), fold=2))
    without = {name: data for name, data in UCF.items() if "Punch" not in name}
    with pytest.raises(InputError, match=r"not there: 'Punch/v_Punch_g08_c01\.avi': line 2 of lists/trainlist01\.txt"):
        listed("ucf101", without)


def test_hmdb51() -> None:
    files = {f"hmdb/wave/{name}.avi": b"" for name in ("a b", "c", "d")}
    files["splits/wave_test_split1.txt"] = b"a b.avi 1 \nc.avi 2 \nd.avi 0 \n"
    assert [(c.split, c.file, c.actions) for c in listed("hmdb51", files)] == [
        ("train", "hmdb/wave/a b.avi", ("wave",)), ("test", "hmdb/wave/c.avi", ("wave",)),
    ]  # fmt: skip
    with pytest.raises(InputError, match="cannot be read"):
        listed("hmdb51", files | {"splits/wave_test_split1.txt": b"a.avi\n"})
    with pytest.raises(InputError, match="no <class>_test_split3"):
        listed("hmdb51", files, Choice(HeldOut(), fold=3))


def csv_of(*lines: str) -> dict[str, bytes]:
    return {"l.csv": "\n".join(lines).encode(), "a/one.mp4": b"1", "b/two.mp4": b"2", "b/one.mp4": b"3"}


def test_video_csv() -> None:
    clips = listed("video_csv", csv_of("file,labels,start,end,split", "a/one.mp4,x;y,0.5,2,train", "two.mp4,y,,,test"))
    assert clips == [Clip("train", "a/one.mp4", ("x", "y"), 0.5, 2.0), Clip("test", "b/two.mp4", ("y",))]
    hashed = listed("video_csv", csv_of("file,label", *["a/one.mp4,x", "two.mp4,y"]))
    assert [clip.file for clip in hashed] == ["a/one.mp4", "b/two.mp4"]
    assert {clip.split for clip in hashed} <= {"train", "test"}
    chosen = listed(
        "video_csv", csv_of("file,label,who", "a/one.mp4,x,ann", "two.mp4,y,bob"), Choice(HeldOut(), test="who=bob,eve")
    )
    assert [clip.split for clip in chosen] == ["train", "test"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("file,label", "one.mp4,x"), "2 files are called 'one.mp4'"),
        (("file,label", "three.mp4,x"), "not there: 'three.mp4'"),
        (("file,label", "two.mp4,"), "an empty label"),
        (("file,labels", "two.mp4,x;;y"), "an empty label"),
        (("file,label,start,end", "two.mp4,x,3,2"), "begins at 3 s and ends at 2 s"),
        (("file,label,start", "two.mp4,x,soon"), "start is 'soon'"),
        (("file,label,split", "two.mp4,x,dev"), "split 'dev'"),
        (("name,label", "two.mp4,x"), "it has the columns label, name"),
    ],
)  # fmt: skip
def test_bad_lists_are_told_with_their_line(lines: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        listed("video_csv", csv_of(*lines))


def test_a_choice_by_a_column_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no column to choose test clips by: 'who=ann'"):
        listed("video_csv", csv_of("file,label", "two.mp4,x"), Choice(HeldOut(), test="who=ann"))


def npz(**arrays: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def test_skeletons() -> None:
    data = npz(pose=np.zeros((5, 15, 2), np.float32), length=np.array([2, 3]), label=np.array(["a", "b"]))
    assert listed("skeletons_npz", {"s_train.npz": data, "s_test.npz": data})[:2] == [
        Clip("train", "s_train.npz", ("a",), entry=0), Clip("train", "s_train.npz", ("b",), entry=1),
    ]  # fmt: skip
    wrong = npz(pose=np.zeros((5, 15, 2), np.float32), length=np.array([2, 2]), label=np.array(["a", "b"]))
    objects = npz(pose=np.array([{}], object), length=np.array([1]), label=np.array(["a"]))
    for bad, told in (
        (wrong, "do not add up"),
        (b"nothing", "not an npz"),
        (npz(pose=np.zeros(1)), "no array length"),
        (objects, "plain"),
    ):
        with pytest.raises(InputError, match=told):
            listed("skeletons_npz", {"s_train.npz": bad})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six videos: two good ones, one of a variable rate, one too short, one empty file, one cut off."""
    folder = tmp_path / "videos"
    folder.mkdir()
    good = video_bytes(stairs(11), kind="avi")
    files = {
        "a.avi": good, "b.avi": good, "c.mkv": video_bytes(stairs(9), times=[*range(0, 320, 40), 900], kind="matroska"),
        "d.avi": video_bytes(stairs(3), kind="avi"), "e.avi": b"", "f.avi": good[: len(good) // 2],
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows(
            [
                ("file", "label", "split"),
                *((name, "xy"[n % 2], "test" if name == "b.avi" else "train") for n, name in enumerate(files)),
            ]
        )
    return folder


def test_bad_videos_are_left_out_by_rule_and_counted(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a clip that cannot be read: e-000004 \(e.avi\).*--allow-unreadable"):
        pack_videos("video_csv", videos, str(tmp_path / "set"))
    assert not (tmp_path / "set" / "index.json").exists()
    index = pack_videos("video_csv", videos, str(tmp_path / "set"), allow_unreadable=2)
    assert [name[:1] for name in index.identities] == ["a", "b", "c"]
    about = index.about
    assert about["too_short"] == ["d-000003 (d.avi, 3 frames)"]
    assert [name[:1] for name in about["unreadable"]] == ["e", "f"]
    assert about["variable_rate"] == 1
    assert index.clips.column("frames").to_pylist() == [11, 11, 23]
    assert not list(faults(index, read=True))
    with pytest.raises(InputError, match="another shard set, or one with other options"):
        pack_videos("video_csv", videos, str(tmp_path / "set"), VideoOptions(rate=10), allow_unreadable=2)
    again = pack_videos("video_csv", videos, str(tmp_path / "set"), allow_unreadable=2)
    assert again.checksum == index.checksum
    shutil.rmtree(tmp_path / "set")
    assert pack_videos("video_csv", videos, str(tmp_path / "set"), allow_unreadable=2).checksum == index.checksum


def test_an_interrupted_pack_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = npz_folder(tmp_path / "npz", [("up",), ("down",), ("left",), ("right",)])
    options = VideoOptions(held_out=0, shard_size=4 << 10)
    whole = pack_videos("frames_npz", folder, str(tmp_path / "whole"), options)
    assert len(whole.shards) == 4
    with monkeypatch.context() as patch:
        patch.setattr("datasets.pack_videos.index_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack_videos("frames_npz", folder, str(tmp_path / "set"), options)
    (tmp_path / "set" / whole.shards[2].name).unlink()
    with pytest.raises(InputError, match="an interrupted pack"):
        pack_videos("frames_npz", folder, str(tmp_path / "set"), VideoOptions(held_out=0, rate=10))
    again = pack_videos("frames_npz", folder, str(tmp_path / "set"), options)
    assert again.checksum == whole.checksum
    assert not list(faults(again, read=True))


@pytest.mark.parametrize("damage", ["objects", "floats", "text", "actions"])
def test_bad_arrays_are_left_out(tmp_path: Path, damage: str) -> None:
    folder = npz_folder(tmp_path / "npz", [("up",)] * 4)
    arrays = {
        "objects": {"frames": np.array([None, 1], object)}, "floats": {"frames": np.zeros((9, 8, 8))},
        "actions": {"frames": moving(("up",)), "actions": np.array(["up"])}, "text": None,
    }[damage]  # fmt: skip
    (folder / "clip001.npz").write_bytes(b"text" if arrays is None else npz(**arrays))
    index = pack_videos("frames_npz", folder, str(tmp_path / "set"), allow_unreadable=1)
    assert [name.split(" ")[0] for name in index.about["unreadable"]] == ["clip001-000001"]


def test_frames_come_back_with_their_actions(tmp_path: Path) -> None:
    words = [("right", "up"), ("left",), ("up", "up", "down"), ("down",)]
    folder = npz_folder(tmp_path / "npz", words, told=True)
    for stream in ("rgb", "flow"):
        options = VideoOptions(stream=stream, test="round=2", shard_size=8 << 10)  # type: ignore[arg-type]
        pack_videos("frames_npz", folder, str(tmp_path / stream), options)
    clips, flow = open_clips(str(tmp_path / "rgb")), open_clips(str(tmp_path / "flow"))
    assert clips.class_names == ("down", "left", "right", "up")
    assert clips.actions == ((2, 3), (1,), (3, 3, 0), (0,))
    assert [clips.index.identities[i] for i in clips.clips_of("test")] == ["clip002-000002"]
    assert (clips.frames - flow.frames).tolist() == [1, 1, 1, 1]
    assert [len(row) for row in flow.frame_actions()] == flow.frames.tolist()
    assert clips.frame_actions()[0].tolist() == [2] * 10 + [3] * 10
    reader = Reader(clips, CacheConfig())
    for clip, word in enumerate(words):
        order = np.random.default_rng(clip).permutation(clips.frames[clip])
        got = reader.request(clip, order)()
        assert not isinstance(got, ValueError)
        true = moving(word, seed=clip)[order]
        assert np.abs(got[..., 0].astype(int) - true).mean() < 6
    reader.close()


def test_only_the_strips_that_are_needed_are_read(tmp_path: Path) -> None:
    pack_videos(
        "frames_npz", npz_folder(tmp_path / "npz", [("up",) * 8, ("down",) * 8]), str(tmp_path / "set"), VideoOptions(held_out=0)
    )
    clips = open_clips(str(tmp_path / "set"))
    reader = Reader(clips, CacheConfig())
    reader.request(1, np.arange(17, 23))()
    sample = int(clips.first[1]) + 2
    assert reader.store.counts["bytes"] == clips.index.samples["size"][sample]
    reader.close()


def test_what_is_no_set_of_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data"):
        open_clips("")
    pack_videos("frames_npz", npz_folder(tmp_path / "npz", [("up",), ("down",)]), str(tmp_path / "set"), VideoOptions(held_out=0))
    with pytest.raises(InputError, match="no split 'test'"):
        open_clips(str(tmp_path / "set")).clips_of("test")
    with pytest.raises(InputError, match="holds arrays, not skeletons"):
        pack_videos("frames_npz", tmp_path / "npz", str(tmp_path / "other"), VideoOptions(stream="skeletons"))
    with pytest.raises(InputError, match="lies inside the source"):
        pack_videos("frames_npz", tmp_path / "npz", str(tmp_path / "npz" / "set"))
    manifest = json.loads((tmp_path / "set" / "index.json").read_text())
    del manifest["tables"]["index/clips.parquet"]
    (tmp_path / "set" / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="holds no clips"):
        open_clips(str(tmp_path / "set"))
    assert not len(read_index(str(tmp_path / "set")).clips.columns)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"side": 8}, {"fold": 4}, {"min_frames": 0}])
def test_wrong_options(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        VideoOptions(**wrong)  # type: ignore[arg-type]


def test_jhmdb(tmp_path: Path) -> None:
    index = pack_videos("skeletons_npz", archive("jhmdb_skeletons.tar"), str(tmp_path / "set"), VideoOptions(stream="skeletons"))
    clips = open_clips(index.url)
    assert (len(clips.clips_of("train")), len(clips.clips_of("test")), len(clips.class_names)) == (433, 176, 14)
    reader = Reader(clips, CacheConfig())
    frames = reader.request(0, np.arange(clips.frames[0]))()
    assert not isinstance(frames, ValueError)
    assert frames.shape[1:] == (15, 2)
    reader.close()
