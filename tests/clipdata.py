"""Small clips and videos: a bright square that moves one way, so that its action can be learned, and nobody is shown."""

import csv
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MOVES = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def moving(actions: Sequence[str], frames: int = 10, size: tuple[int, int] = (24, 32), seed: int = 0) -> np.ndarray:
    """A square that moves as each of the actions says, for ``frames`` frames each: uint8 [T, H, W]."""
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 30, (frames * len(actions), *size)).astype(np.uint8)
    at = np.array([size[0] // 2, size[1] // 2])
    for number, picture in enumerate(clip):
        at = (at + MOVES[actions[number // frames]]) % np.array(size)
        rows, columns = (at[0] + np.arange(6)) % size[0], (at[1] + np.arange(6)) % size[1]
        picture[np.ix_(rows, columns)] = 230
    return clip


def npz_folder(folder: Path, words: Sequence[Sequence[str]], frames: int = 10, *, told: bool = False) -> Path:
    """A folder for the layout frames_npz: a file for each sequence of actions; every third is for testing. ``told``: with the
    action of each frame."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["path", "labels", "round"])
        rows.writeheader()
        for number, word in enumerate(words):
            more = {"actions": np.repeat(np.array(word), frames)} if told else {}
            np.savez_compressed(folder / f"clip{number:03d}.npz", frames=moving(word, frames, seed=number), **more)
            rows.writerow({"path": f"clip{number:03d}.npz", "labels": ";".join(word), "round": number % 3})
    return folder


def video_bytes(
    frames: np.ndarray, rate: int = 25, times: Sequence[int] | None = None, codec: str = "mpeg4", kind: str = "mp4"
) -> bytes:
    """Frames uint8 [T, H, W, 3] as a video; ``times``: of each frame, in 1/1000 s, for a variable rate."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options={"qscale": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


def stairs(count: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Plain frames whose brightness tells their number: 10, 30, 50, ..., uint8 [T, H, W, 3]."""
    return np.stack([np.full((*size, 3), 10 + 20 * number, np.uint8) for number in range(count)])
