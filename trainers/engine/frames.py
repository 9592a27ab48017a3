"""Images to tell something about: of files, of folders, of a camera or a video."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from datasets.camera import camera_frames
from datasets.decode import Image
from datasets.errors import InputError, printable
from datasets.source import is_litter
from datasets.video import timed_frames
from datasets.video_layouts import VIDEOS
from trainers.engine.gallery import images_below, read_image


def frames_of_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Each image with its name; a folder stands for the images in it and below, by name. Raises InputError."""
    for path in paths:
        for each in images_below(path) if path.is_dir() else [path]:
            yield printable(str(each)), read_image(each)


def video_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Each file; a folder stands for the videos and npz files in it and below, by name, but for what desktops leave behind.

    Raises:
        InputError: there is none in a folder.
    """
    for path in paths:
        inside = sorted(each for each in path.rglob("*") if _is_video(each, path)) if path.is_dir() else [path]
        if not inside:
            raise InputError(
                "no videos in the folder", str(path), f"it takes npz files of frames, and {', '.join(sorted(VIDEOS))}"
            )
        yield from inside


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


def _is_video(path: Path, folder: Path) -> bool:
    own = path.suffix.lower() in VIDEOS | {".npz"} and not is_litter(path.relative_to(folder).as_posix())
    return own and path.is_file()
