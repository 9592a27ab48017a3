"""Images and videos to predict on: from files, folders, a camera or a stream."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from datasets.errors import InputError, printable
from datasets.layouts.videos import VIDEOS
from datasets.media.camera import camera_frames
from datasets.media.decode import IMAGES, MAX_BYTES, Image, decode, quiet_decoders
from datasets.media.video import timed_frames
from datasets.skipped_files import is_litter


def frames_of_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Each image with its name; a folder stands for the images in it and below, by name. Raises InputError."""
    for path in paths:
        for each in images_below(path) if path.is_dir() else [path]:
            yield printable(str(each)), read_image(each)


def video_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Each file; a folder stands for the videos and npz files in it and below, by name, without hidden files and desktop clutter.

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
    """Frames of a camera (by its number), a video file or an address, as they come; at most ``frames`` of them unless that is 0.

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


def read_image(path: Path) -> Image:
    """An image file as a viewer shows it, uint8 [H, W, 3]; raises InputError."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        with quiet_decoders():
            return decode(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read an image ({reason})", str(path), "give a JPEG, PNG, BMP or WebP file") from error


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and below, by name, without hidden files and desktop clutter. Raises InputError: there is none."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES]
    if not (images := sorted(path for path in paths if not is_litter(path.relative_to(folder).as_posix()))):
        raise InputError("no images in the folder", str(folder), f"it takes {', '.join(sorted(IMAGES))}")
    return images
