"""Videos are read as a player shows them: rotated, trimmed, timed, in any container; truncated ones are refused."""

import io
import itertools
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clipdata import film, stairs, trimmed, video_bytes

from datasets.errors import InputError
from datasets.media.video import read_video, timed_frames
from datasets.object_storage import open_objects
from datasets.pack_videos import VideoOptions, frames_of_file, pack_videos
from trainers.engine.inputs import frames_of_stream

QUARTERS = np.array([[40, 100], [160, 220]])  # brightness of a picture's quarters
CONTAINERS = [
    ("mp4", "libx264", {"g": "8", "bf": "2"}), ("matroska", "libx264", {"g": "8", "bf": "2"}), ("webm", "libvpx", {"g": "8"}),
    ("avi", "mpeg4", {"g": "8", "b": "5M"}), ("avi", "libx264", {"g": "8", "bf": "2"}),
    ("avi", "mpeg4", {"g": "8", "bf": "2", "b": "5M"}),
]  # fmt: skip


def numbers(frames: np.ndarray, step: float = 20) -> list[int]:
    return [round((float(frame.mean()) - 10) / step) for frame in frames]


def ramp(count: int) -> np.ndarray:
    """Plain frames with brightness 10, 16, 22, ..."""
    return np.stack([np.full((32, 48, 3), 10 + 6 * number, np.uint8) for number in range(count)])


def quartered(count: int = 9) -> np.ndarray:
    picture = np.kron(QUARTERS, np.ones((16, 24))).astype(np.uint8)
    return np.repeat(np.repeat(picture[None, ..., None], 3, axis=3), count, axis=0)


def quarters(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return image.reshape(2, height, 2, width, 3).mean(axis=(1, 3, 4))


def with_matrix(video: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """An MP4 whose track has this matrix."""
    out = bytearray(video)
    at = out.find(b"tkhd") + 44
    struct.pack_into(">9i", out, at, *(round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    return bytes(out)


MATRICES = [m for s, t in itertools.product((1, -1), repeat=2) for m in ((s, 0, 0, t), (0, s, t, 0))]


@pytest.mark.parametrize("matrix", [*MATRICES, (0.97, 0.26, -0.26, 0.97)])
def test_a_frame_is_turned_as_the_track_says(matrix: tuple[float, float, float, float]) -> None:
    a, b, c, d = matrix
    shown = read_video(io.BytesIO(with_matrix(film(quartered()), *matrix)), 25, 128).frames[-1]
    assert shown.shape == ((32, 48, 3) if abs(a) > abs(b) else (48, 32, 3))
    for row, column in itertools.product((0, 1), repeat=2):  # a quarter's middle, moved by the matrix about the picture's
        x, y = 2 * column - 1, 2 * row - 1
        place = (int(b * x + d * y > 0), int(a * x + c * y > 0))
        assert quarters(shown)[place] == pytest.approx(QUARTERS[row, column], abs=4)


@pytest.mark.parametrize(("kind", "codec"), [("mov", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx")])
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_other_containers_turn_too(kind: str, codec: str, degrees: int) -> None:
    shown = read_video(io.BytesIO(film(quartered(), kind, codec, turned=degrees)), 25, 128).frames[-1]
    np.testing.assert_allclose(quarters(shown), np.rot90(QUARTERS, degrees // 90), atol=4)


def test_pixels_that_are_not_square_are_stretched() -> None:
    assert read_video(io.BytesIO(film(quartered(), pixel=Fraction(4, 3))), 25, 128).frames.shape[1:3] == (32, 64)
    assert read_video(io.BytesIO(film(quartered(), pixel=Fraction(1, 2))), 25, 128).frames.shape[1:3] == (64, 48)


def test_one_reader_serves_packing_and_predicting(tmp_path: Path) -> None:
    video = with_matrix(trimmed(film(ramp(30), options={"g": "40"}), 0.4), 0, 1, -1, 0)
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(video)
    (folder / "w.mov").write_bytes(video)
    (folder / "list.csv").write_text("file,label,split\nv.mp4,a,train\nw.mov,b,test\n")
    for stream, count in (("rgb", 20), ("flow", 19)):
        index = pack_videos("video_csv", folder, str(tmp_path / stream), VideoOptions(stream=stream))  # type: ignore[arg-type]
        assert index.clips.column("frames").to_pylist() == [count, count]
        predicted = frames_of_file(folder / "v.mp4", "v.mp4", 25, 128, stream)  # type: ignore[arg-type]
        assert predicted.shape == (count, 48, 32, 3)
    streamed = np.stack([image for _, image in frames_of_stream(str(folder / "v.mp4"))])
    np.testing.assert_array_equal(streamed, frames_of_file(folder / "v.mp4", "v.mp4", 25, 128, "rgb"))
    assert len(list(frames_of_stream(str(folder / "v.mp4"), 3))) == 3


def test_a_video_in_s3_is_streamed(s3_url: str) -> None:
    open_objects(s3_url).put("v.mp4", film(ramp(6)))
    assert [name for name, _ in frames_of_stream(f"{s3_url}/v.mp4", 3)] == [f"{s3_url}/v.mp4#{number}" for number in range(3)]
    with pytest.raises(InputError, match=rf"no such object: {s3_url}/none.mp4"):
        list(frames_of_stream(f"{s3_url}/none.mp4"))


@pytest.mark.parametrize("interval", ["4", "40"])
def test_what_an_edit_list_hides_is_not_there(interval: str) -> None:
    video = trimmed(film(ramp(30), options={"g": interval, "bf": "0"}), 0.4)
    assert numbers(read_video(io.BytesIO(video), 25, 128).frames, 6) == list(range(10, 30))
    assert numbers(read_video(io.BytesIO(video), 25, 128, 0.2, 0.4).frames, 6) == list(range(15, 20))


@pytest.mark.parametrize(("kind", "codec", "options"), CONTAINERS)
def test_every_container_gives_all_frames_and_the_same_parts(kind: str, codec: str, options: dict[str, str]) -> None:
    video = film(ramp(40), kind, codec, options)
    whole = read_video(io.BytesIO(video), 25, 128)
    assert numbers(whole.frames, 6) == list(range(40))
    assert not whole.variable
    for first, last in ((9, 20), (16, 40), (33, 36)):
        part = read_video(io.BytesIO(video), 25, 128, first / 25, last / 25)
        np.testing.assert_array_equal(part.frames, whole.frames[first:last])


@pytest.mark.parametrize(("kind", "codec"), [("h264", "libx264"), ("mpegts", "libx264"), ("mpeg", "mpeg2video")])
def test_parts_of_what_cannot_be_searched(kind: str, codec: str) -> None:
    video = film(ramp(40), kind, codec, {"g": "8", "bf": "0"})
    whole = read_video(io.BytesIO(video), 25, 128).frames
    assert len(whole) == 40
    np.testing.assert_array_equal(read_video(io.BytesIO(video), 25, 128, 0.6, 1.0).frames, whole[15:25])


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx")])
def test_pictures_that_begin_after_the_sound(kind: str, codec: str) -> None:
    times = [moment for moment, _ in timed_frames(io.BytesIO(film(stairs(5), kind, codec, begins=10, sound=1)))]
    assert times == pytest.approx(0.4 + np.arange(5) / 25, abs=0.021)  # sound begins up to a packet before 0
    alone = [moment for moment, _ in timed_frames(io.BytesIO(film(stairs(5), kind, codec, begins=10)))]
    assert alone == pytest.approx(np.arange(5) / 25, abs=1e-3)


def test_sound_that_goes_on_is_no_cut() -> None:
    assert len(read_video(io.BytesIO(film(stairs(5), sound=2)), 25, 128).frames) == 5


@pytest.mark.parametrize(("kind", "codec", "options"), CONTAINERS)
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.85])
def test_a_video_that_is_cut_off_is_refused(kind: str, codec: str, options: dict[str, str], fraction: float) -> None:
    video = film(np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3)).astype(np.uint8), kind, codec, options)
    with pytest.raises(ValueError, match=r"cut off|not a whole video|no pictures|no frame"):
        read_video(io.BytesIO(video[: int(len(video) * fraction)]), 25, 128)


def test_variable_rates_keep_their_times() -> None:
    for kind in ("mp4", "matroska"):
        video = video_bytes(stairs(5), 25, times=[0, 40, 80, 200, 240], kind=kind)
        assert [moment for moment, _ in timed_frames(io.BytesIO(video))] == pytest.approx([0, 0.04, 0.08, 0.2, 0.24], abs=1e-3)


def test_large_frames_are_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.media.video.MAX_PIXELS", 1000)
    monkeypatch.setattr("datasets.media.video.LIMITS", {"max_pixels": "1000"})
    for kind, codec in (("mp4", "libx264"), ("avi", "mpeg4"), ("matroska", "ffv1")):
        with pytest.raises(ValueError, match=r"more than 1,000 pixels \(48x32\)"):
            read_video(io.BytesIO(film(stairs(3), kind, codec)), 25, 128)


def test_a_clip_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.media.video.MAX_BYTES", 5 * 32 * 48 * 3)
    assert len(read_video(io.BytesIO(film(stairs(9))), 25, 128, end=0.2).frames) == 5
    with pytest.raises(ValueError, match="more than 5 frames of 32x48 in one clip"):
        read_video(io.BytesIO(film(stairs(9))), 25, 128)
