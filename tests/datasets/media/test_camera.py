"""A camera gives the same frames at the same times as a video file of its pictures."""

import time

import cv2
import numpy as np
import pytest

from datasets.errors import InputError
from datasets.media.video import at_rate, frames_of_path
from trainers.engine.inputs import frames_of_stream

RATE = 25.0


class FakeCamera:
    """Gives numbered frames at these times: on a clock of its own, which moves as it is read, or on the real one."""

    def __init__(self, times: list[float], *, real: bool = False) -> None:
        self.times, self.real, self.next, self.released = times, real, 0, False
        self.began = time.monotonic() if real else 1000.0
        self.now = self.began

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.next == len(self.times):
            return False, None
        self.now = self.began + self.times[self.next]
        if self.real:
            time.sleep(max(0.0, self.now - time.monotonic()))
        self.next += 1
        return True, picture(self.next - 1)

    def release(self) -> None:
        self.released = True


def picture(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number, np.uint8)


def filmed(monkeypatch: pytest.MonkeyPatch, times: list[float], *, real: bool = False) -> FakeCamera:
    camera = FakeCamera(times, real=real)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: camera)
    if not real:
        monkeypatch.setattr("datasets.media.camera.clock", lambda: camera.now)
    return camera


IRREGULAR = np.cumsum(np.random.default_rng(0).uniform(0.002, 0.09, 50)).tolist()
STALLED = [*np.arange(10) / 30, *(2 + np.arange(10) / 30)]


@pytest.mark.parametrize("times", [*((np.arange(count) / count).tolist() for count in (60, 30, 25, 15)), IRREGULAR, STALLED])
def test_a_camera_is_brought_to_the_rate_as_a_file_is(times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    camera = filmed(monkeypatch, times)
    got = [int(frame.image[0, 0, 0]) for frame in frames_of_path("0", RATE)]
    timed = ((moment - times[0], picture(number)) for number, moment in enumerate(times))
    assert got == [int(image[0, 0, 0]) for image in at_rate(timed, RATE)]
    assert len(got) == pytest.approx((times[-1] - times[0]) * RATE + 1, abs=1)  # the last is due when the last came
    assert camera.released


def test_a_frame_has_come_when_it_was_due_however_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = filmed(monkeypatch, (np.arange(10) / 25).tolist(), real=True)
    delays = []
    for number, frame in enumerate(frames_of_path("0", RATE)):
        if number == 0:
            time.sleep(0.5)  # a model that is slow at first: what was filmed meanwhile waits
            began = frame.came
        delays.append(time.monotonic() - frame.came)
        assert frame.came == pytest.approx(began + number / RATE, abs=0.03)
    assert len(delays) == pytest.approx(10, abs=1)
    assert delays[0] >= 0.5
    assert delays[5] >= 0.5 - 5 / 25 - 0.03
    assert camera.released


def test_a_camera_that_gives_nothing_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    filmed(monkeypatch, [])
    for frames in (frames_of_path("0", RATE), frames_of_stream("0")):
        with pytest.raises(InputError, match="no frame comes from the stream: 0"):
            list(frames)
    filmed(monkeypatch, [0.0, 0.04, 75.0])
    with pytest.raises(InputError, match=r"no frame for 75 seconds after 0\.04 s: 0"):
        list(frames_of_path("0", RATE))
    camera = filmed(monkeypatch, [0.0, 0.04])
    monkeypatch.setattr(camera, "read", lambda: (_ for _ in ()).throw(OSError("unplugged")))
    with pytest.raises(OSError, match="unplugged"):
        list(frames_of_path("0", RATE))


def test_a_reader_that_stops_lets_the_camera_go(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = filmed(monkeypatch, (np.arange(2000) / 200).tolist(), real=True)
    frames = frames_of_path("0", RATE)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if camera.released:
            break
        time.sleep(0.02)
    assert camera.released
    assert camera.next < 400


def test_single_images_of_a_camera_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = filmed(monkeypatch, (np.arange(60) / 60).tolist())
    assert [name for name, _ in frames_of_stream("0")] == [f"0#{number}" for number in range(60)]
    camera.next = 0
    assert len(list(frames_of_stream("0", 7))) == 7
