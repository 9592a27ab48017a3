"""Small artificial clips and videos: a bright square whose direction of motion is the action to learn."""

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


def npz_folder(folder: Path, words: Sequence[Sequence[str]], frames: int = 10, *, frame_actions: bool = False) -> Path:
    """A folder for the layout frames_npz: a file for each sequence of actions; every third is for testing.

    ``frame_actions``: with the action of each frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["path", "labels", "round"])
        rows.writeheader()
        for number, word in enumerate(words):
            more = {"actions": np.repeat(np.array(word), frames)} if frame_actions else {}
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
    """Plain frames whose brightness shows their number: 10, 30, 50, ..., uint8 [T, H, W, 3]."""
    return np.stack([np.full((*size, 3), 10 + 20 * number, np.uint8) for number in range(count)])


def film(
    frames: np.ndarray, kind: str = "mp4", codec: str = "libx264", options: dict[str, str] | None = None, *, begins: int = 0,
    sound: float = 0.0, turned: int = 0, pixel: Fraction | None = None,
) -> bytes:  # fmt: skip
    """Frames uint8 [T, H, W, 3] as a video of 25 a second. It begins ``begins`` frames after the start, with so many seconds of
    silent ``sound`` from the start on; its track is ``turned`` by degrees; ``pixel``: width to height of one."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 25)
        if turned:
            stream.set_display_rotation(turned)
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        silence = container.add_stream("aac" if kind == "mp4" else "libopus", rate=48000) if sound else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number + begins, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence is not None:
            for number in range(int(sound * 48000 / 960)):
                part = av.AudioFrame.from_ndarray(np.zeros((2, 960), np.float32), format="fltp", layout="stereo")
                part.sample_rate, part.pts, part.time_base = 48000, number * 960, Fraction(1, 48000)
                container.mux(silence.encode(part))
            container.mux(silence.encode(None))
    return sink.getvalue()


def trimmed(video: bytes, seconds: float, kind: str = "mp4") -> bytes:
    """A video from ``seconds`` on, as a stream copy: in an MP4 what is before stays in the file, hidden by an edit list."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(sink, "w", format=kind) as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None and packet.time_base is not None:
                shift = int(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = (packet.pts or 0) - shift, packet.dts - shift, copy
                container.mux(packet)
    return sink.getvalue()
