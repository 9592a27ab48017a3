"""Images to tell something about: of files, of folders, of a camera or a video."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from datasets.camera import camera_frames
from datasets.decode import IMAGES, Image
from datasets.errors import InputError
from datasets.source import is_litter
from datasets.video import timed_frames
from datasets.video_layouts import VIDEOS
from trainers.engine.gallery import read_image


def frames_of_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Each image with its name; a folder stands for the images in it and below, by name. Raises InputError."""
    for path in _files(paths, IMAGES, "images"):
        yield str(path), read_image(path)


def video_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Each file; a folder stands for the videos and npz files in it and below, by name. Raises InputError."""
    return _files(paths, VIDEOS | {".npz"}, "videos")


def frames_of_stream(source: str, frames: int = 0) -> Iterator[tuple[str, Image]]:
    """The frames of a camera (by its number), a video file or an address, all of them, as they come; ``frames`` at most unless 0.

    Raises:
        InputError: it cannot be opened, is damaged, or gives no frame.
    """
    number, remedy = -1, "give a camera's number, a video file or its address"
    try:
        with closing(camera_frames(int(source)) if source.isdecimal() else timed_frames(source)) as timed:
            for number, (_, image) in enumerate(islice(timed, frames or None)):
                yield f"{source}#{number}", image
    except ValueError as error:
        raise InputError(str(error), source, remedy) from error
    if number < 0:
        raise InputError("no frame comes from the stream", source, remedy)


def _files(paths: Sequence[Path], suffixes: Collection[str], what: str) -> Iterator[Path]:
    """Each file, and those with these endings in each folder and below, but what desktops leave behind."""
    for path in paths:
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and _is_own(p, path)) if path.is_dir() else [path]
        )
        if not inside:
            raise InputError(f"no {what} in the folder", str(path), f"it takes {', '.join(sorted(suffixes))}")
        yield from inside


def _is_own(path: Path, folder: Path) -> bool:
    return path.is_file() and not is_litter(path.relative_to(folder).as_posix())
