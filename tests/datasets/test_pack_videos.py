"""Layouts of videos, and packing them: which clips are found, how bad ones are reported, and that frames can be read again."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from clipdata import film, moving, npz_folder, stairs, video_bytes
from testdata import archive

from datasets.errors import InputError
from datasets.inspect import faults
from datasets.layouts.archive import Archive
from datasets.layouts.videos import VIDEO_LAYOUTS, Choice, Clip, Name
from datasets.loading.cache import CacheConfig
from datasets.loading.clips import Reader, open_clips
from datasets.object_storage import open_objects
from datasets.pack_videos import VideoOptions, frames_of_file, pack_videos
from datasets.shards.index import read_index, write_index
from datasets.splits import HeldOut

CHOICE = Choice(HeldOut(0.5))


def source(files: dict[str, bytes]) -> Archive:
    return Archive("here", {name: len(data) for name, data in files.items()}, files.__getitem__)


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
    with pytest.raises(InputError, match=r"'Punch/v_Punch_g08_c01\.avi' is not there: line 2 of lists/trainlist01\.txt"):
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


def test_lists_with_spaces_back_slashes_and_equal_names() -> None:
    """A name may hold spaces, and stand in two classes."""
    ucf = {f"UCF/{name}/v x.avi": b"" for name in ("Apply Eye Makeup", "Archery")}
    ucf["l/trainlist01.txt"] = b"\xef\xbb\xbfApply Eye Makeup/v x.avi 1\r\n"
    ucf["l/testlist01.txt"] = b".\\Archery\\v x.avi\n"
    assert [(c.split, c.file, c.actions) for c in listed("ucf101", ucf)] == [
        ("train", "UCF/Apply Eye Makeup/v x.avi", ("Apply Eye Makeup",)), ("test", "UCF/Archery/v x.avi", ("Archery",)),
    ]  # fmt: skip
    hmdb = {"h/wave/a 1.avi": b"", "h/sit/a 1.avi": b"", "s/wave_test_split1.txt": b"a 1.avi 1\n"}
    hmdb["s/sit_test_split1.txt"] = b"a 1.avi 2"
    assert [(c.split, c.file) for c in listed("hmdb51", hmdb)] == [("test", "h/sit/a 1.avi"), ("train", "h/wave/a 1.avi")]
    assert len(listed("hmdb51", hmdb | {"copy/sit_test_split1.txt": b"a 1.avi 2"})) == 2  # the same list twice counts once
    with pytest.raises(InputError, match=r"two lists sit_test_split1\.txt that differ"):
        listed("hmdb51", hmdb | {"copy/sit_test_split1.txt": b"a 1.avi 1"})
    both = hmdb | {"s/sit_test_split1.txt": b"a 1.avi 2\na 1.avi 1"}
    with pytest.raises(InputError, match=r"h/sit/a 1\.avi is named as train sit, and before as test sit: line 2 of s/sit"):
        listed("hmdb51", both)
    with pytest.raises(InputError, match=r"not a text in UTF-8 \(byte 1\): s/sit_test_split1.txt in here"):
        listed("hmdb51", hmdb | {"s/sit_test_split1.txt": b"a\xe9 1"})


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


def test_splits_of_a_csv_are_the_words_of_the_field() -> None:
    words = {"Train": "train", "valid": "val", "dev": "val", "VALIDATION": "val", " test ": "test", "testing": "test"}
    files = {"l.csv": "\n".join(["file,label,split", *(f"{n}.mp4,x,{word}" for n, word in enumerate(words))]).encode()}
    assert [c.split for c in listed("video_csv", files | {f"{n}.mp4": b"" for n in range(6)})] == list(words.values())


def test_splits_of_several_csv_files_and_of_folders_add_up() -> None:
    videos = {f"{folder}/x.mp4": b"" for folder in ("train", "val", "testing")}
    said = {"train": "train", "valid": "val", "test": "testing"}  # lists, and the folders of what they name
    lists = {f"{word}.csv": f"file,label\n{folder}/x.mp4,a".encode() for word, folder in said.items()}
    for files in (
        videos | lists, videos | {"labels.csv": b"file,label\n" + b"\n".join(f"{name},a".encode() for name in videos)},
        {f"training_set/{name}": data for name, data in (videos | lists).items()},
        videos | {f"{name.split('/')[0]}/labels.csv": b"file,label\nx.mp4,a" for name in videos},
    ):  # fmt: skip
        found = {c.file.split("/")[-2]: c.split for c in listed("video_csv", files)}
        assert found == {"train": "train", "val": "val", "testing": "test"}
    with pytest.raises(InputError, match=r"2 csv files, and this one says no split: more\.csv"):
        listed("video_csv", videos | {"train.csv": lists["train.csv"], "more.csv": lists["train.csv"]})
    latest = {"latest.csv": b"file,label\nx.mp4,a", "x.mp4": b""}
    assert [c.split for c in listed("video_csv", latest, Choice(HeldOut(0)))] == ["train"]


def test_a_row_twice_counts_once_and_two_that_differ_are_refused() -> None:
    assert len(listed("video_csv", csv_of("file,label,split", "two.mp4,x,train", "b/two.mp4,x,train"))) == 1
    with pytest.raises(InputError, match=r"b/two\.mp4 is named as test x, and before as train x: line 3 of l\.csv"):
        listed("video_csv", csv_of("file,label,split", "two.mp4,x,train", "two.mp4,x,test"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("file,label", "one.mp4,x"), "2 files are called 'one.mp4'"),
        (("file,label", "three.mp4,x"), "'three.mp4' is not there"),
        (("file,label", "two.mp4,"), "an empty label"),
        (("file,labels", "two.mp4,x;;y"), "an empty label"),
        (("file,label,start,end", "two.mp4,x,3,2"), "begins at 3 s and ends at 2 s"),
        (("file,label,start", "two.mp4,x,soon"), "start is 'soon'"),
        (("file,label,split", "two.mp4,x,tset"), "split 'tset'"),
        (("file,label,split", "two.mp4,x,"), "split ''"),
        (("file,label,split", "two.mp4,x"), r"more or fewer cells than columns: line 2 of l\.csv"),
        (("file,label", "two.mp4,x,y"), "more or fewer cells"),
        (("file,name", "two.mp4,x"), "no column label or labels"),
        (("file,label",), "a csv without rows"),
        (("name,label", "two.mp4,x"), "no column file.*it has: name, label"),
    ],
)  # fmt: skip
def test_bad_lists_are_reported_with_their_line(lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
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
    several = npz(pose=np.zeros((5, 15, 2), np.float32), length=np.array([5]), label=np.array(["a; b"]))
    assert listed("skeletons_npz", {"s_train.npz": several})[0].actions == ("a", "b")
    folders = listed("skeletons_npz", {"dev/s.npz": data, "Test/s.npz": data})
    assert [clip.split for clip in folders] == ["val", "val", "test", "test"]
    assert {clip.split for clip in listed("skeletons_npz", {"latest.npz": data}, Choice(HeldOut(0)))} == {"train"}
    pose = np.zeros((5, 15, 2), np.float32)
    wrong = npz(pose=pose, length=np.array([2, 2]), label=np.array(["a", "b"]))
    objects = npz(pose=np.array([{}], object), length=np.array([1]), label=np.array(["a"]))
    for bad, message in (
        (wrong, "do not add up"),
        (b"nothing", "not an npz"),
        (npz(pose=np.zeros(1)), "no array length"),
        (objects, "plain"),
        (npz(pose=pose, length=np.array([6, -1]), label=np.array(["a", "b"])), "the least is -1"),
        (npz(pose=pose, length=np.array([2.0, 3.0]), label=np.array(["a", "b"])), "length float64"),
        (npz(pose=pose.astype(str), length=np.array([2, 3]), label=np.array(["a", "b"])), "pose <U"),
        (npz(pose=pose, length=np.array([2, 3]), label=np.array(["a"])), "1 labels to 2 lengths"),
        (npz(pose=pose, length=np.array([2, 3]), label=np.zeros((2, 2))), "label is an array"),
        (npz(pose=pose, length=np.array([2, 3]), label=np.array(["a", "b;;c"])), "an empty label: entry 1 of "),
        (npz(pose=pose, length=np.array([2, 3]), label=np.array(["a", "b"]), actions=np.array(["a"])), "the actions of"),
    ):
        with pytest.raises(InputError, match=message):
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


def test_the_summary_counts_every_file(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("extra.mp4", "._a.avi", "readme.txt"):
        (videos / name).write_bytes(b"no video")
    (videos / "list.csv").write_text("file,label,split\na.avi,x,train\nb.avi,y,dev\nd.avi,x,train\ne.avi,x,test\n")
    index = pack_videos("video_csv", videos, str(tmp_path / "set"), allow_unreadable=1, quiet=False)
    message = capsys.readouterr().err
    assert index.splits == ("train", "val")
    assert "left out 3, named by no list: c.mkv, extra.mp4, f.avi" in message
    assert "left out 1, neither clips nor lists: readme.txt" in message
    assert re.search(r"left out 1, hidden files.*: \._a\.avi", message)
    assert (
        "packed 2 clips of 2 of 10 files (1 train, 1 val, by the column split; 0 of a variable rate, 1 broken, 1 too short)"
        in message
    )
    assert index.about["left_out"]["named by no list"] == {"files": 3, "first": ["c.mkv", "extra.mp4", "f.avi"]}


NOISY = """
import sys
from datasets.errors import InputError, run_main
from datasets.media.video import frames_of_path

def main():
    for source in sys.argv[2:]:
        try:
            list(frames_of_path(source, 25))
        except InputError as error:
            print(error)
    raise InputError("end")

run_main(main)
"""


def test_decoders_write_nothing_of_their_own(tmp_path: Path) -> None:
    """FFmpeg, OpenCV and libpng have lines of their own for what is damaged; a command's error is one line."""
    folder = tmp_path / "videos"
    (folder / "frames").mkdir(parents=True)
    damaged = bytearray(film(np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3)).astype(np.uint8), "matroska"))
    damaged[3000:5000] = bytes(2000)
    (folder / "v.mkv").write_bytes(damaged)
    (folder / "list.csv").write_text("file,label\nv.mkv,x\n")
    png = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (folder / "frames" / "0.png").write_bytes(png[:-40] + bytes(40))
    packing = [sys.executable, "-m", "datasets.pack_videos", "video_csv", str(folder), str(tmp_path / "set")]
    streams = [sys.executable, "-c", NOISY, "-", "99", str(folder / "v.mkv"), str(folder / "frames")]
    for command in (packing, streams):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*\n", done.stderr)
    assert len(done.stdout.splitlines()) == 3
    assert "no frame comes from the stream: 99" in done.stdout
    assert "0.png: " in done.stdout


def test_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "poses"
    folder.mkdir()
    data = npz(pose=np.zeros((40, 15, 2), np.float32), length=np.full(4, 10), label=np.array(list("abab")))
    (folder / os.fsdecode(b"caf\xe9_train.npz")).write_bytes(data)
    (folder / os.fsdecode(b"caf\xe9.bin")).write_bytes(b"")
    bad = npz(pose=np.full((9, 15, 2), np.nan), length=np.array([9]), label=np.array(["a"]))
    (folder / os.fsdecode(b"caf\xe8_train.npz")).write_bytes(bad)
    options = VideoOptions(stream="skeletons")
    with pytest.raises(InputError, match=r"poses that are no finite numbers"):
        pack_videos("skeletons_npz", folder, str(tmp_path / "set"), options)
    index = pack_videos("skeletons_npz", folder, str(tmp_path / "set"), options, allow_unreadable=1, quiet=False)
    assert set(index.clips.column("file").to_pylist()) == {"caf\\xe9_train.npz"}
    assert "caf\\xe9.bin" in capsys.readouterr().err
    assert json.dumps(read_index(index.url).about).isascii()
    clips = open_clips(index.url)
    assert clips.name(0).encode()


def test_too_little_memory_is_a_fault_of_the_clip(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("datasets.pack_videos.read_video", full)
    with pytest.raises(InputError, match=r"a clip that cannot be read: a-000000 \(a\.avi\) \(not enough memory for its frames"):
        pack_videos("video_csv", videos, str(tmp_path / "set"))
    with pytest.raises(InputError, match="not enough memory"):
        frames_of_file(videos / "a.avi", "a.avi", 25, 128, "rgb")


def test_frames_too_large_for_a_strip_are_a_fault_of_the_clip(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", [("up",)] * 3)
    (folder / "clip001.npz").write_bytes(npz(frames=np.zeros((9, 9000, 16), np.uint8)))
    with pytest.raises(InputError, match="frames of 9000x16 are too large for strips of 8: lower --side"):
        pack_videos("frames_npz", folder, str(tmp_path / "set"))


@pytest.mark.parametrize("column", ["frames", "actions", "frame_actions"])
def test_a_damaged_table_of_clips_is_refused(column: str, tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", [("up",), ("down",)])
    index = pack_videos("frames_npz", folder, str(tmp_path / "set"), VideoOptions(held_out=0))
    wrong = {"frames": [0, 10], "actions": [[0], [2]], "frame_actions": [None, []]}
    table = index.clips.set_column(index.clips.column_names.index(column), column, pa.array(wrong[column]))
    write_index(open_objects(index.url), index, index.keys, clips=table)
    with pytest.raises(InputError, match="the index is damaged"):
        open_clips(index.url)


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
    folder = npz_folder(tmp_path / "npz", words, frame_actions=True)
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
