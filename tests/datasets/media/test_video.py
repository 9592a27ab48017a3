"""Videos, flow, strips: what is stored can be read again, and broken files are reported."""

import io

import cv2
import numpy as np
import pytest
from clipdata import stairs, video_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.media.flow import LIMIT, STEP, flow_of, from_bytes, mirrored, to_bytes
from datasets.media.video import at_rate, frames_of_path, read_video, shrunk
from datasets.shards.frame_strips import STRIP, frames_of_strip, strips_of


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `stairs` these are."""
    return [round((float(frame.mean()) - 10) / 20) for frame in frames]


def test_a_video_at_its_own_rate_and_at_others() -> None:
    data = video_bytes(stairs(11))
    video = read_video(io.BytesIO(data), 25, 128)
    assert video.frames.shape == (11, 32, 48, 3)
    assert numbers(video.frames) == list(range(11))
    assert not video.variable
    assert numbers(read_video(io.BytesIO(data), 12.5, 128).frames) == [0, 2, 4, 6, 8, 10]
    assert numbers(read_video(io.BytesIO(data), 50, 128).frames) == [n // 2 for n in range(21)]


def test_a_part_of_a_video() -> None:
    part = read_video(io.BytesIO(video_bytes(stairs(11))), 25, 128, start=0.16, end=0.32)
    assert numbers(part.frames) == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="no frame in"):
        read_video(io.BytesIO(video_bytes(stairs(5))), 25, 128, start=7.0, end=8.0)


def test_a_variable_rate_is_reported_and_resampled() -> None:
    data = video_bytes(stairs(5), 25, times=[0, 40, 80, 200, 240], kind="matroska")
    video = read_video(io.BytesIO(data), 25, 128)
    assert video.variable
    assert numbers(video.frames) == [0, 1, 2, 2, 2, 3, 4]


def test_a_time_out_of_all_reason_is_a_fault() -> None:
    data = video_bytes(stairs(4), times=[0, 40, 80, 7_200_000], kind="matroska")
    with pytest.raises(ValueError, match="no frame for 7200 seconds"):
        read_video(io.BytesIO(data), 25, 128)


@given(gaps=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=30), rate=st.floats(1, 60))
def test_each_frame_is_the_last_that_had_come(gaps: list[float], rate: float) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    got = [int(image[0, 0, 0]) for image in at_rate(((t, np.full((1, 1, 3), n, np.uint8)) for n, t in enumerate(times)), rate)]
    for number, frame in enumerate(got):
        due = number / rate
        following = int(np.searchsorted(times, due - 1e-6))  # the first that is not before it
        late = times[following] - due if following < len(times) else np.inf
        if abs(late - 0.1 / rate) > 1e-5:
            assert frame == (following if late < 0.1 / rate else following - 1)
    assert times[-1] - 1e-5 < len(got) / rate < times[-1] + 1.1 / rate + 1e-5


def test_times_rounded_to_milliseconds_lose_no_frame() -> None:
    data = video_bytes(stairs(11), 30, times=[round(1000 * n / 30) for n in range(11)], kind="matroska")
    assert numbers(read_video(io.BytesIO(data), 30, 128).frames) == list(range(11))


@pytest.mark.parametrize("codec", ["mpeg4", "ffv1"])
def test_broken_videos(codec: str) -> None:
    data = video_bytes(stairs(11), codec=codec, kind="avi")
    for broken in (b"", b"no video at all", data[: len(data) // 3]):
        with pytest.raises(ValueError, match=r"not a whole video|cut off|no frame|no pictures"):
            read_video(io.BytesIO(broken), 25, 128)


def images(source: str) -> np.ndarray:
    return np.stack([frame.image for frame in frames_of_path(source, 25)])


def test_streams(tmp_path: object) -> None:
    folder = tmp_path
    for number, frame in enumerate(stairs(3)):
        cv2.imwrite(f"{folder}/{number}.png", frame)
    assert numbers(images(str(folder))) == [0, 1, 2]
    with open(f"{folder}/v.mp4", "wb") as file:
        file.write(video_bytes(stairs(5)))
    assert numbers(images(f"{folder}/v.mp4")) == [0, 1, 2, 3, 4]
    with open(f"{folder}/1.png", "wb") as file:
        file.write(b"no image")
    for source in (str(folder), f"{folder}/none.mp4", f"{folder}/1.png"):
        with pytest.raises(InputError):
            list(frames_of_path(source, 25))


def test_the_shorter_side_shrinks_and_never_grows() -> None:
    assert shrunk(np.zeros((60, 80, 3), np.uint8), 30).shape == (30, 40, 3)
    assert shrunk(np.zeros((60, 80, 3), np.uint8), 128).shape == (60, 80, 3)


@given(value=st.floats(-40, 40, width=32))
def test_stored_flow_is_within_half_a_step(value: float) -> None:
    back = float(from_bytes(to_bytes(np.array([value], np.float32)))[0])
    assert abs(back - np.clip(value, -LIMIT, LIMIT)) <= STEP / 2 + 1e-5


def test_no_motion_is_stored_exactly() -> None:
    assert from_bytes(to_bytes(np.zeros(3, np.float32))).tolist() == [0, 0, 0]


def texture(shift: int) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 96)).astype(np.uint8), (0, 0), 2)
    grey = np.roll(cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX), shift, axis=1)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def test_flow_finds_a_shift_and_survives_storage() -> None:
    frames = np.stack([texture(0), texture(3), texture(6)])
    stored = flow_of(frames)
    assert stored.shape == (2, 64, 96, 3)
    inside = stored[:, 16:-16, 24:-24]
    assert np.median(from_bytes(inside[..., 0])) == pytest.approx(3, abs=STEP)
    assert np.median(from_bytes(inside[..., 1])) == pytest.approx(0, abs=STEP)
    back = np.concatenate([frames_of_strip(data, 2) for data in strips_of(stored, "flow")])
    np.testing.assert_array_equal(back, stored)


def test_mirrored_flow_is_that_of_mirrored_frames() -> None:
    frames = np.stack([texture(0), texture(3)])
    ours, theirs = mirrored(flow_of(frames)), flow_of(frames[:, :, ::-1])
    assert np.median(from_bytes(ours[:, 16:-16, 24:-24, 0])) == pytest.approx(-3, abs=STEP)
    difference = from_bytes(ours) - from_bytes(theirs)
    assert np.median(np.abs(difference[:, 16:-16, 24:-24])) <= STEP
    np.testing.assert_array_equal(mirrored(mirrored(ours)), ours)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (3, 8, 32, 3)])
def test_flow_of_too_little_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="flow needs two"):
        flow_of(np.zeros(shape, np.uint8))


@given(count=st.integers(1, 3 * STRIP), height=st.integers(12, 40))
@settings(max_examples=20)
def test_strips_come_apart_as_they_were(count: int, height: int) -> None:
    rng = np.random.default_rng(count)
    flow = rng.integers(0, 256, (count, height, 16, 3)).astype(np.uint8)
    poses = rng.normal(size=(count, 15, 2)).astype(np.float32)
    for frames, stream in ((flow, "flow"), (poses, "skeletons")):
        strips = strips_of(frames, stream)  # type: ignore[arg-type]
        assert len(strips) == -(-count // STRIP)
        counts = [min(STRIP, count - start) for start in range(0, count, STRIP)]
        back = np.concatenate([frames_of_strip(data, n) for data, n in zip(strips, counts, strict=True)])
        np.testing.assert_array_equal(back, frames)


def test_a_jpeg_strip_is_near() -> None:
    frames = np.stack([texture(n) for n in range(3)])
    (strip,) = strips_of(frames, "rgb")
    assert np.abs(frames_of_strip(strip, 3).astype(int) - frames).mean() < 3


def test_a_strip_of_another_length_is_refused() -> None:
    (strip,) = strips_of(np.zeros((3, 16, 16, 3), np.uint8), "flow")
    (poses,) = strips_of(np.zeros((3, 15, 2), np.float32), "skeletons")
    for data, count in ((strip, 5), (poses, 5), (strip[:40], 3), (poses[:40], 3), (poses[:-9], 3)):
        with pytest.raises(ValueError):
            frames_of_strip(data, count)
