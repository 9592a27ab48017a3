"""Decodes videos to frames at a constant rate, with PyAV: the same pictures at the same times as a player.

T frames of H x W, RGB.
"""

import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from datasets.errors import InputError
from datasets.media.augment import resize
from datasets.media.camera import camera_frames, read_ahead
from datasets.media.decode import IMAGES, Image, decode, quiet_decoders
from datasets.numpy_files import MAX_BYTES
from datasets.skipped_files import is_litter

UNEVEN = 0.5  # of the median time between frames: where one differs by more, the video's rate is variable
LONGEST = 60.0  # seconds between two frames: more is taken for a damaged time, not for a still picture
WHOLE = 0.9  # fraction of the length in its header that a video must have; one with less is truncated
EARLY = 0.1  # of the time between two frames: a frame may be late by this, as some formats round times to 1/1000 s
MAX_PIXELS = 1 << 26  # of a frame: twice those of 8K
LIMITS = {"max_pixels": str(MAX_PIXELS)}
ANNOUNCING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # formats whose header says how long the video is

av.logging.set_level(av.logging.PANIC)  # the caller reports a bad video, on one line


class Video(NamedTuple):
    """``frames`` uint8 [T, H, W, 3]; ``variable``: whether the video's own frame rate varies."""

    frames: npt.NDArray[np.uint8]
    variable: bool


class Arrived(NamedTuple):
    """A frame of a live stream; ``came``: its time of arrival by `time.monotonic`."""

    came: float
    image: Image


def timed_frames(file: IO[bytes] | str, start: float = 0.0) -> Generator[tuple[float, Image]]:
    """Yield a video's frames with their times in seconds, ascending, beginning at the last key frame before ``start``.

    Frames are rotated and mirrored as the video track says, and times are counted as a player counts them.

    Raises:
        ValueError: not a video, damaged, truncated, or frames of more than `MAX_PIXELS`.
    """
    try:
        if start > 0:
            with closing(_frames(file, start)) as frames:
                first = _first(frames)
                if first is not None and first[0] <= start + 1e-6:
                    yield first
                    yield from frames
                    return
        yield from _frames(file, 0.0)  # also where the format cannot seek, or the seek went too far
    except (av.error.FFmpegError, EOFError) as error:
        raise ValueError(_reason(error)) from error


def at_rate(timed: Iterable[tuple[float, Image]], rate: float, start: float = 0.0, end: float = np.inf) -> Iterator[Image]:
    """Yield frames at a constant ``rate`` per second from ``start`` to before ``end``; for each time, the latest frame so far.

    Frames are yielded as early as possible, so this also works on a live stream.

    Raises:
        ValueError: there is no frame for `LONGEST` seconds.
    """
    number, held, latest = 0, None, start
    early = EARLY / rate
    for moment, image in timed:
        if held is not None and moment - latest > LONGEST:
            raise ValueError(f"no frame for {moment - latest:.0f} seconds after {latest:.2f} s")
        while held is not None and start + number / rate < min(moment - early, end - 1e-6):
            yield held
            number += 1
        if moment >= end:
            return
        held, latest = image, moment
        while start + number / rate <= min(moment + 1e-6, end - 1e-6):
            yield held
            number += 1
    if held is not None and start + number / rate < min(latest + early, end - 1e-6):
        yield held


def shrunk(image: Image, side: int) -> Image:
    """Shrink an image so that its shorter side is at most ``side``; keeps the aspect ratio."""
    ratio = side / min(image.shape[:2])
    return resize(image, (round(image.shape[0] * ratio), round(image.shape[1] * ratio))) if ratio < 1 else image


def read_video(file: IO[bytes], rate: float, side: int, start: float = 0.0, end: float = np.inf) -> Video:
    """Read a part of a video at a constant rate, shrunk so that the shorter side is at most ``side``.

    Raises:
        ValueError: it cannot be read, has no frame in that part, has frames of two sizes, or takes more than `MAX_BYTES`.
    """
    times: list[float] = []

    def seen() -> Iterator[tuple[float, Image]]:
        for moment, image in timed_frames(file, start):
            times.append(moment)
            yield moment, shrunk(image, side)

    frames: list[Image] = []
    for image in at_rate(seen(), rate, start, end):
        frames.append(image)
        if image.shape != frames[0].shape:
            raise ValueError(f"the size of the frames changes from {_size(frames[0])} to {_size(image)}")
        if len(frames) * image.nbytes > MAX_BYTES:
            what = f"more than {len(frames) - 1:,} frames of {_size(image)} in one clip take more than {MAX_BYTES:,} bytes"
            raise ValueError(f"{what}: cut it by start and end, or lower rate or side")
    if not frames:
        raise ValueError("no frame in it" if not times else "no frame in the part that is named")
    gaps = np.diff(times)
    usual = np.median(gaps) if len(gaps) else 0.0
    return Video(np.stack(frames), bool((np.abs(gaps - usual) > UNEVEN * usual).any()))


def frames_of_path(source: str, rate: float) -> Iterator[Arrived]:
    """Yield frames for online recognition: of a camera (by number) or a video (file or URL) at ``rate``, or a folder of images.

    Raises:
        InputError: there are no frames, or the video is broken.
    """
    remedy = "give a camera's number, a video file or its address, or a folder of frames"
    count = 0
    try:
        for frame in _arriving(source, rate):
            count += 1
            yield frame
    except ValueError as error:
        raise InputError(str(error), source, remedy) from error
    if not count:
        raise InputError("no frame comes from the stream", source, remedy)


def _arriving(source: str, rate: float) -> Iterator[Arrived]:
    if source.isdecimal():
        yield from _from_camera(int(source), rate)
    else:
        for image in _from_folder(Path(source)) if Path(source).is_dir() else at_rate(timed_frames(source), rate):
            yield Arrived(time.monotonic(), image)


def _from_camera(number: int, rate: float) -> Iterator[Arrived]:
    with closing(read_ahead(camera_frames(number))) as frames:
        first = next(frames, None)
        if first is None:
            return
        began = first[0]
        timed = ((came - began, image) for came, image in chain([first], frames))
        for place, image in enumerate(at_rate(timed, rate)):
            yield Arrived(min(began + place / rate, time.monotonic()), image)


def _from_folder(folder: Path) -> Iterator[Image]:
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not is_litter(path.name)):
        try:
            with quiet_decoders():
                image = decode(path.read_bytes())
        except (ValueError, OSError) as error:
            raise ValueError(f"{path.name}: {error}") from error
        yield image


def _size(image: Image) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _reason(error: Exception) -> str:
    log = str(getattr(error, "log", ""))
    if isinstance(error, av.error.ArgumentError) or "max pixel count" in log:
        size = re.search(r"Picture size (\d+x\d+)", log)
        return f"damaged, or with frames of more than {MAX_PIXELS:,} pixels" + (f" ({size[1]})" if size else "")
    what = "cannot be opened" if isinstance(error, OSError) else "not a whole video"
    return f"{what} ({getattr(error, 'strerror', None) or error})"


def _first(frames: Iterator[tuple[float, Image]]) -> tuple[float, Image] | None:
    try:
        return next(frames, None)
    except (av.error.FFmpegError, EOFError):
        return None


def _frames(file: IO[bytes] | str, start: float) -> Generator[tuple[float, Image]]:
    if not isinstance(file, str):
        file.seek(0)
    with av.open(file, "r", metadata_errors="ignore", options=LIMITS) as container:
        yield from _Reader(container).frames(start)


class _Reader:
    """Reads one video packet by packet, also the sound: its packets show where the file ends."""

    def __init__(self, container: Any) -> None:
        self.container, self.stream = container, container.streams.best("video")
        if self.stream is None or self.stream.codec_context is None:
            raise ValueError("no pictures in it that can be decoded")
        _check_size(self.stream.codec_context.height, self.stream.codec_context.width)
        self.stream.codec_context.options = LIMITS
        self.is_avi = container.format.name == "avi"
        self.step = 1 / float(self.stream.average_rate or 25)

    def frames(self, start: float) -> Iterator[tuple[float, Image]]:
        """Yield frames from the last key frame before ``start`` on; none where frames have no times to seek by."""
        decoded = self._decoded()
        frame = next(decoded, None)
        base = 0.0 if frame is None else self._base(frame)
        if frame is not None and start > 0:
            self.container.seek(int((start + base) / self.stream.time_base), stream=self.stream)
            decoded = self._decoded(searched=True)
            frame = next(decoded, None)
            if frame is None or self._moment(frame) is None:
                return
        latest = -self.step
        while frame is not None:
            moment = self._moment(frame)
            latest = latest + self.step if moment is None else max(latest, moment - base)
            yield latest, self._shown(frame)
            frame = next(decoded, None)

    def _decoded(self, *, searched: bool = False) -> Iterator[av.VideoFrame]:
        packets, end = 0, 0.0
        for packet in self.container.demux():
            stamp = packet.dts if packet.pts is None else packet.pts
            is_video = packet.stream is self.stream
            if stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base) + self.step * is_video)
                packets += is_video
            if is_video:
                yield from packet.decode()
        announced = (self.container.duration or 0) / av.time_base if self.container.format.name in ANNOUNCING else 0.0
        if end < WHOLE * announced:
            raise ValueError(f"cut off: {end:.2f} of {announced:.2f} seconds are there")
        if self.is_avi and not searched and packets < WHOLE * self.stream.frames:
            raise ValueError(f"cut off: {packets} of {self.stream.frames} frames are there")

    def _moment(self, frame: av.VideoFrame) -> float | None:
        """A frame's time. AVI stores none: those that FFmpeg derives are wrong where frames are stored in another order."""
        stamp = frame.dts if self.is_avi else frame.pts
        return None if stamp is None else float(stamp * self.stream.time_base)

    def _base(self, first: av.VideoFrame) -> float:
        """The time that a player counts from: the start of all streams, as the pictures may begin later than the sound."""
        began = self._moment(first) or 0.0
        origin = began if self.container.start_time is None else self.container.start_time / av.time_base
        return began if self.is_avi or began - origin < self.step else origin

    def _shown(self, frame: av.VideoFrame) -> Image:
        ratio = self.stream.sample_aspect_ratio or 1  # width to height of a shown pixel
        width, height = round(frame.width * max(ratio, 1)), round(frame.height / min(ratio, 1))
        _check_size(height, width)
        image: Image = frame.reformat(width, height, "rgb24").to_ndarray()  # type: ignore[assignment]
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else turned(image, np.frombuffer(bytes(matrix), np.int32)[:9].tolist())


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"with frames of more than {MAX_PIXELS:,} pixels ({width}x{height})")


def turned(image: Image, matrix: Sequence[int]) -> Image:
    """Rotate and mirror an image by its track's display matrix (a, b, u, c, d, v, x, y, w), to the nearest 90 degrees.

    The matrix moves a stored pixel (x, y) to (ax + cy, bx + dy).
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
