"""Images and videos to predict on: from files and folders, local or in S3, a camera or a stream."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.errors import InputError, printable
from datasets.layouts.videos import VIDEOS
from datasets.media.camera import camera_frames
from datasets.media.decode import IMAGES, MAX_BYTES, Image, decode, quiet_decoders
from datasets.media.video import timed_frames
from datasets.object_storage import open_objects, read_file
from datasets.skipped_files import is_litter


class InputFile(NamedTuple):
    """A file to predict on: its name in messages and results, and where it lies on this machine."""

    name: str
    path: Path


@contextmanager
def image_files(addresses: Sequence[str]) -> Iterator[list[InputFile]]:
    """Each image; a folder, or prefix in S3, stands for the images in it and below, by name. What comes from S3 is copied to a
    temporary folder, which lasts as long as the context.

    Raises:
        InputError: a folder has no image, or S3 refuses access.
    """
    with _input_files(addresses, IMAGES, "images", ", ".join(sorted(IMAGES))) as files:
        yield files


@contextmanager
def video_files(addresses: Sequence[str]) -> Iterator[list[InputFile]]:
    """As `image_files`, of videos and npz files of frames."""
    with _input_files(addresses, {*VIDEOS, ".npz"}, "videos", f"npz files of frames, and {', '.join(sorted(VIDEOS))}") as files:
        yield files


@contextmanager
def _input_files(addresses: Sequence[str], endings: Collection[str], what: str, takes: str) -> Iterator[list[InputFile]]:
    files: list[InputFile] = []
    with tempfile.TemporaryDirectory(prefix="hardshard-inputs-") as folder:
        for number, address in enumerate(addresses):
            if "://" in address:
                found = _fetched(address, Path(folder) / str(number), endings)
            elif Path(address).is_dir():
                inside = {path.relative_to(address).as_posix(): path for path in Path(address).rglob("*")}
                found = [_local(inside[name]) for name in _wanted(inside, endings) if inside[name].is_file()]
            else:
                found = [_local(Path(address))]
            if not found:
                raise InputError(f"no {what} in the folder", address, f"it takes {takes}")
            files += found
        yield files


def _local(path: Path) -> InputFile:
    return InputFile(printable(str(path)), path)


def _wanted(names: Iterable[str], endings: Collection[str]) -> list[str]:
    """The names with these endings, in order, without hidden files and desktop clutter."""
    parts = sorted(PurePosixPath(name) for name in names)
    return [str(name) for name in parts if name.suffix.lower() in endings and not is_litter(str(name))]


def _fetched(address: str, folder: Path, endings: Collection[str]) -> list[InputFile]:
    """Copy an object, or the wanted ones under a prefix, into a folder."""
    objects, found = open_objects(address), list[InputFile]()
    inside = objects.sizes()
    for name in _wanted(inside, endings):
        found.append(InputFile(printable(f"{objects.url}/{name}"), folder / name))
        found[-1].path.parent.mkdir(parents=True, exist_ok=True)
        found[-1].path.write_bytes(objects.get(name))
    if not inside:
        folder.mkdir()
        found = [InputFile(printable(objects.url), folder / PurePosixPath(objects.url).name)]
        found[0].path.write_bytes(read_file(address))
    return found


def frames_of_files(files: Iterable[InputFile]) -> Iterator[tuple[str, Image]]:
    """Each image with its name; raises InputError."""
    for file in files:
        yield file.name, read_image(file)


@contextmanager
def local_stream(source: str) -> Iterator[str]:
    """A stream's source as it can be opened here: a video in S3 is copied to a temporary folder, anything else is as it is."""
    if not source.startswith("s3://"):
        yield source
        return
    with video_files([source]) as files:
        yield str(files[0].path)


def frames_of_stream(source: str, frames: int = 0) -> Iterator[tuple[str, Image]]:
    """Frames of a camera (by its number), a video file or an address, as they come; at most ``frames`` of them unless that is 0.
    They are named after ``source``.

    Raises:
        InputError: it cannot be opened, is damaged, or gives no frame.
    """
    number, remedy = -1, "give a camera's number, a video file or its address"
    try:
        with (
            local_stream(source) as here,
            closing(camera_frames(int(here)) if here.isdecimal() else timed_frames(here)) as timed,
        ):
            for number, (_, image) in enumerate(islice(timed, frames or None)):
                yield f"{source}#{number}", image
    except ValueError as error:
        raise InputError(str(error), source, remedy) from error
    if number < 0:
        raise InputError("no frame comes from the stream", source, remedy)


def read_image(file: InputFile) -> Image:
    """An image file as a viewer shows it, uint8 [H, W, 3]; raises InputError."""
    try:
        if (size := file.path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        with quiet_decoders():
            return decode(file.path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read an image ({reason})", file.name, "give a JPEG, PNG, BMP or WebP file") from error
