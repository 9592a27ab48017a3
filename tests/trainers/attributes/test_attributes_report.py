"""Predictions of a stream of frames: each is printed at once, and none is lost when the stream breaks off."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.media.decode import Image
from datasets.object_storage import open_objects
from datasets.pack import pack
from trainers.engine.inputs import frames_of_stream, image_files, video_files
from trainers.engine.run import Run
from trainers.tasks.attributes.data import open_sets
from trainers.tasks.attributes.model import Attributes, FaceModelConfig
from trainers.tasks.attributes.report import HELD_OUT_SHOWN, held_out_faces, predict_faces, within


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_what_was_predicted_is_kept(end: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed_before: list[int] = []

    def frames() -> Iterator[tuple[str, Image]]:
        for number in range(3):
            printed_before.append(capsys.readouterr().out.count("\n"))
            yield f"0#{number}", np.full((40, 30, 3), 80 * number, np.uint8)
        raise end

    model, run = Attributes(FaceModelConfig(), ("gender", "age"), single=False).eval(), Run(str(tmp_path), "run")
    with pytest.raises(end):
        predict_faces(run, model, frames(), (32, 32), torch.device("cpu"), ["age"], at_once=1)
    assert printed_before == [0, 1, 1]  # each frame's line is out before the next frame is asked for
    lines = [json.loads(line) for line in (tmp_path / "run" / "prediction.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["0#0", "0#1", "0#2"]
    assert set(lines[0]) == {"image", "age"}
    assert (tmp_path / "run" / "prediction.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_faces_come_with_what_is_true(tmp_path: Path) -> None:
    for folder in ("with_mask", "without_mask"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(60):
            cv2.imwrite(str(tmp_path / "images" / folder / f"{number}.png"), np.full((16, 16, 3), number, np.uint8))
    pack("mask_folders", tmp_path / "images", str(tmp_path / "set"))
    model = Attributes(FaceModelConfig(), ("mask", "age"), single=False).eval()
    faces = held_out_faces(model, open_sets([str(tmp_path / "set")]), (32, 32), torch.device("cpu"), ["mask"])
    assert len(faces) == HELD_OUT_SHOWN
    assert all(set(predicted) == set(true) == {"mask"} for _, _, predicted, true in faces)
    assert {true["mask"] for *_, true in faces} == {0.0, 1.0}


def test_values_are_clipped_to_the_range_of_labels() -> None:
    assert [within("smile", value) for value in (-0.2, 0.12345, 1.04)] == [0, 0.1235, 1]
    assert (within("age", -3), within("roll", -8.3)) == (0, -8.3)


def test_an_address_that_nobody_serves_is_one_line_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"cannot be opened \(Connection refused\)"):
        list(frames_of_stream("http://127.0.0.1:1/x.mjpg"))
    assert capfd.readouterr() == ("", "")


def test_folders_without_what_desktops_leave(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/._x.mp4", "__MACOSX/x.mp4", ".cache/y.mp4", "b.NPZ", "c.mov/z.webm", "a/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with video_files([str(tmp_path), str(tmp_path / "a" / "._x.mp4")]) as files:
        found = [file.path.relative_to(tmp_path).as_posix() for file in files]
    assert found == ["a/x.mp4", "b.NPZ", "c.mov/z.webm", "a/._x.mp4"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "._0.png").write_bytes(b"")
    with pytest.raises(InputError, match="no images in the folder"), image_files([str(tmp_path / "only")]):
        pass


def test_files_in_s3_are_read_as_those_in_a_folder(s3_url: str, tmp_path: Path) -> None:
    objects = open_objects(s3_url)
    for name in ("a/x.png", "a/._x.png", "b.PNG", "texts/readme.txt", ".cache/y.png"):
        objects.put(name, name.encode())
    with image_files([s3_url, f"{s3_url}/a/x.png"]) as files:
        assert [file.name for file in files] == [f"{s3_url}/a/x.png", f"{s3_url}/b.PNG", f"{s3_url}/a/x.png"]
        assert [file.path.read_bytes() for file in files] == [b"a/x.png", b"b.PNG", b"a/x.png"]
    assert not any(file.path.exists() for file in files)
    with pytest.raises(InputError, match=rf"no such object: {s3_url}/none.png"), image_files([f"{s3_url}/none.png"]):
        pass
    with pytest.raises(InputError, match="no images in the folder"), image_files([f"{s3_url}/texts"]):
        pass


def test_a_stream_that_gives_nothing_leaves_what_was_printed_before(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "run")
    run.write_text("prediction.jsonl", "before\n")
    predict_faces(
        run, Attributes(FaceModelConfig(), ("age",), single=False).eval(), [], (32, 32), torch.device("cpu"), ["age"], at_once=1
    )
    assert (tmp_path / "run" / "prediction.jsonl").read_text() == "before\n"
