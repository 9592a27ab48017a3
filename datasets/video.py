"""Videos to frames at a constant rate, by PyAV. T frames of H x W, RGB."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import av
import cv2
import numpy as np
import numpy.typing as npt

from datasets.augment import resize
from datasets.decode import IMAGES, Image, decode
from datasets.errors import InputError

UNEVEN = 0.5  # of the usual time between two frames: where one is off by more, the video's rate is variable
LONGEST = 60.0  # seconds between two frames: more is taken for a damaged time, not for a still picture
WHOLE = 0.9  # share of the frames announced that a video must have, not to count as cut off

av.logging.set_level(av.logging.PANIC)  # a bad video is named by whoever asked for it, on one line


class Video(NamedTuple):
    """``frames`` uint8 [T, H, W, 3]; ``variable``: they did not come at a constant rate."""

    frames: npt.NDArray[np.uint8]
    variable: bool


def timed_frames(file: IO[bytes] | str, start: float = 0.0) -> Iterator[tuple[float, Image]]:
    """A video's frames with their times in seconds from its beginning, from the key frame before ``start`` on.

    Raises:
        ValueError: it is no video, is damaged, or ends before the frames that it announces.
    """
    try:
        with av.open(file, "r", metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError("no pictures in it")
            stream = container.streams.video[0]
            base = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
            if start > 0 and stream.time_base:
                container.seek(int((start + base) / stream.time_base), stream=stream)
            count = 0
            for frame in container.decode(stream):
                time = frame.time - base if frame.time is not None else count / float(stream.average_rate or 25)
                image: Image = frame.to_ndarray(format="rgb24")  # type: ignore[assignment]
                yield time, image
                count += 1
            if start <= 0 and count < WHOLE * stream.frames:
                raise ValueError(f"cut off: {count} of {stream.frames} frames are there")
    except (av.error.FFmpegError, EOFError) as error:
        raise ValueError(f"not a whole video ({getattr(error, 'strerror', None) or error})") from error


def at_rate(timed: Iterable[tuple[float, Image]], rate: float, start: float = 0.0, end: float = np.inf) -> Iterator[Image]:
    """Frames ``rate`` times a second from ``start`` to before ``end``: each is the last one that had come by then."""
    number, held, latest = 0, None, start
    for time, image in timed:
        while held is not None and start + number / rate < min(time - 1e-6, end):
            yield held
            number += 1
        if time >= end:
            return
        held, latest = image, time
    while held is not None and start + number / rate <= latest + 1e-6:
        yield held
        number += 1


def shrunk(image: Image, side: int) -> Image:
    """An image whose shorter side is ``side`` at most; its aspect ratio is kept."""
    ratio = side / min(image.shape[:2])
    return resize(image, (round(image.shape[0] * ratio), round(image.shape[1] * ratio))) if ratio < 1 else image


def read_video(file: IO[bytes], rate: float, side: int, start: float = 0.0, end: float = np.inf) -> Video:
    """A part of a video at a constant rate, its shorter side ``side`` at most.

    Raises:
        ValueError: it cannot be read, or has no frame there.
    """
    times: list[float] = []

    def seen() -> Iterator[tuple[float, Image]]:
        for time, image in timed_frames(file, start):
            if times and time - times[-1] > LONGEST:
                raise ValueError(f"no frame for {time - times[-1]:.0f} seconds after {times[-1]:.2f} s")
            times.append(time)
            yield time, shrunk(image, side)

    frames = list(at_rate(seen(), rate, start, end))
    if not frames:
        raise ValueError("no frame in it" if not times else "no frame in the part that is named")
    gaps = np.diff(times)
    usual = np.median(gaps) if len(gaps) else 0.0
    return Video(np.stack(frames), bool((np.abs(gaps - usual) > UNEVEN * usual).any()))


def frames_of_path(source: str, rate: float) -> Iterator[Image]:
    """Frames to recognise as they come: a camera by its number, a video file or its address at ``rate``, or a folder of frames.

    Raises:
        InputError: nothing comes, or the video is broken.
    """
    remedy = "give a camera's number, a video file or its address, or a folder of frames"
    count = 0
    try:
        for image in _from_folder(Path(source)) if Path(source).is_dir() else _from_video(source, rate):
            count += 1
            yield image
    except ValueError as error:
        raise InputError(str(error), source, remedy) from error
    if not count:
        raise InputError("no frame comes from the stream", source, remedy)


def _from_folder(folder: Path) -> Iterator[Image]:
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES):
        try:
            yield decode(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error


def _from_video(source: str, rate: float) -> Iterator[Image]:
    if not source.isdecimal():
        yield from at_rate(timed_frames(source), rate)
        return
    camera = cv2.VideoCapture(int(source))
    try:
        while (read := camera.read())[0]:
            yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)  # type: ignore[misc]
    finally:
        camera.release()
