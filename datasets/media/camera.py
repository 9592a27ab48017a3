"""Frames of a camera, each with its time of arrival."""

from collections.abc import Generator
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic as clock

import cv2

from datasets.media.decode import Image

WAITING = 64  # frames that may wait in the queue

Timed = tuple[float, Image]


def camera_frames(number: int) -> Generator[Timed]:
    """Yield the frames of a camera, RGB, each with the `time.monotonic` of its arrival."""
    camera = cv2.VideoCapture(number)
    try:
        while (read := camera.read())[0]:
            yield clock(), cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)  # type: ignore[misc]
    finally:
        camera.release()


def read_ahead(frames: Generator[Timed]) -> Generator[Timed]:
    """Yield the same frames, read by a thread, so that their times are right while a model computes.

    New frames are dropped while `WAITING` frames wait. An error in the thread is raised here.
    """
    waiting: SimpleQueue[Timed | Exception | None] = SimpleQueue()
    closed = Event()

    def read() -> None:
        try:
            for frame in frames:
                if closed.is_set():
                    break
                if waiting.qsize() < WAITING:
                    waiting.put(frame)
        except Exception as error:
            waiting.put(error)
        finally:
            frames.close()
            waiting.put(None)

    Thread(target=read, name="camera", daemon=True).start()  # a daemon, as a camera that stops sending frames blocks it
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
