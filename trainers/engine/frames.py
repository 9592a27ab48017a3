"""Images to tell something about: of files, of folders, of a camera or a video."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2

from datasets.decode import Image
from datasets.errors import InputError, printable
from datasets.video_layouts import VIDEOS
from trainers.engine.gallery import images_below, read_image


def frames_of_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Each image with its name; a folder stands for the images in it and below, by name. Raises InputError."""
    for path in paths:
        for each in images_below(path) if path.is_dir() else [path]:
            yield printable(str(each)), read_image(each)


def video_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Each file; a folder stands for the videos and npz files in it and below, by name. Raises InputError."""
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEOS | {".npz"}) if path.is_dir() else [path]
        if not inside:
            raise InputError(
                "no videos in the folder", str(path), f"it takes npz files of frames, and {', '.join(sorted(VIDEOS))}"
            )
        yield from inside


def frames_of_stream(source: str, frames: int = 0) -> Iterator[tuple[str, Image]]:
    """The frames of a camera (by its number), a video file or an address, as they come; ``frames`` at most unless 0.

    Raises:
        InputError: it cannot be opened, or gives no frame.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # whoever asked says what is wrong, on one line
    video = cv2.VideoCapture(int(source)) if source.isdecimal() else cv2.VideoCapture(source)
    try:
        number = 0
        while not frames or number < frames:
            there, frame = video.read()
            if not there:
                break
            yield f"{source}#{number}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
            number += 1
        if not number:
            raise InputError("no frame comes from the stream", source, "give a camera's number, a video file or its address")
    finally:
        video.release()
