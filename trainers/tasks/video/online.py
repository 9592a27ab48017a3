"""Online recognition: actions are reported while the video comes in; the model's state is kept from chunk to chunk."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.errors import InputError
from datasets.loading.clips import ClipConfig, seen_picture
from datasets.media.decode import Image
from datasets.media.video import Arrived
from trainers.tasks.video.ctc_decoding import Event, Floats, Greedy
from trainers.tasks.video.sequence_model import START, SequenceModel, State


class Recogniser:
    """Runs a causal model on a video chunk by chunk; the actions do not depend on the size of the chunks.

    Raises InputError for a model that is not causal.
    """

    def __init__(self, model: SequenceModel, device: torch.device, threshold: float = 0.0) -> None:
        if not model.causal:
            remedy = "train one with --model.causal, or predict whole videos with --videos"
            raise InputError("a bidirectional model cannot recognise online", "", remedy)
        self.model, self.device = model.eval(), device
        self._decoder = Greedy(threshold)
        self._state: State = START

    @property
    def frame(self) -> int:
        """Number of frames so far whose look-ahead is over."""
        return self._decoder.frame

    @torch.no_grad()
    def feed(self, frames: torch.Tensor) -> tuple[list[Event], Floats]:
        """Process the next frames [t, ...]; returns new actions, with frames counted from the start, and the log-probabilities
        of the frames whose look-ahead is over."""
        log_probs, self._state = self.model.step(frames.to(self.device), self._state)
        return self._decoded(log_probs)

    @torch.no_grad()
    def finish(self) -> tuple[list[Event], Floats]:
        """As `feed`, for the last frames, whose look-ahead goes beyond the end of the video."""
        log_probs, self._state = self.model.rest(self._state), START
        return self._decoded(log_probs)

    def _decoded(self, log_probs: torch.Tensor) -> tuple[list[Event], Floats]:
        table = log_probs.cpu().numpy()
        return self._decoder.feed(table), table


class RecognisedChunk(NamedTuple):
    """A processed chunk of a stream."""

    images: list[Image]  # as they came
    lines: list[dict[str, Any]]  # the actions, for JSON
    log_probs: Floats  # [t, C + 1]


def recognise(
    source: Iterable[Arrived], recogniser: Recogniser, clip: ClipConfig, rate: float, chunk: int, classes: tuple[str, ...]
) -> Iterator[RecognisedChunk]:
    """Recognise actions in a stream, ``chunk`` frames at a time.

    In a line "time" is the action's time in the video, in seconds. "delay" is the time in seconds from the arrival of its frame,
    including waiting and the look-ahead, to the report.
    """
    frames = islice(source, 0, None, clip.stride)
    came = deque[float]()  # of the frames whose outputs are not there yet
    while True:
        images = list[Image]()
        for frame in islice(frames, chunk):
            images.append(frame.image)
            came.append(frame.came)
        first = recogniser.frame
        shown = [seen_picture(image, clip) for image in images]
        events, log_probs = recogniser.feed(torch.from_numpy(np.stack(shown))) if images else recogniser.finish()
        reported = time.monotonic()
        arrived = [came.popleft() for _ in log_probs]
        lines = [
            {
                "action": classes[event.action], "time": round(event.frame * clip.stride / rate, 3),
                "frame": event.frame * clip.stride, "probability": round(event.probability, 4),
                "delay": round(reported - arrived[event.frame - first], 4),
            }
            for event in events
        ]  # fmt: skip
        yield RecognisedChunk(images, lines, log_probs)
        if not images:
            return
