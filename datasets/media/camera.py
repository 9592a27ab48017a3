"""A camera's frames, each with the time at which it came."""

from collections.abc import Generator
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic as clock

import cv2

from datasets.media.decode import Image

WAITING = 64  # frames that may wait for whoever uses them

Timed = tuple[float, Image]


def camera_frames(number: int) -> Generator[Timed]:
    """The frames of a camera as they come, RGB, each with `time.monotonic` at that moment."""
    camera = cv2.VideoCapture(number)
    try:
        while (read := camera.read())[0]:
            yield clock(), cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)  # type: ignore[misc]
    finally:
        camera.release()


def read_ahead(frames: Generator[Timed]) -> Generator[Timed]:
    """The same frames, read by a thread: so they come at their true times while a model computes. Where `WAITING` frames wait, a
    new one is dropped; what fails in the thread is raised here."""
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

    Thread(target=read, name="camera", daemon=True).start()  # a daemon, for a camera that gives no frame any more blocks it
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
