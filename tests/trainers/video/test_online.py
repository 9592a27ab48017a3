"""Online recognition: the same actions as for the whole video, and the delays."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from clipdata import MOVES, moving
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.loading.clips import ClipConfig, seen_picture
from datasets.media.video import Arrived
from trainers.tasks.video.ctc_decoding import greedy
from trainers.tasks.video.online import Recogniser, recognise
from trainers.tasks.video.sequence_model import SequenceModel, SequenceModelConfig

RATE = 25.0
ACTIONS = tuple(MOVES)


HOW: dict[str, dict[str, Any]] = {
    "rnn": {}, "rnn ahead": {"lookahead": 3}, "tcn ahead": {"encoder": "tcn", "layers": 2, "lookahead": 2, "motion": True},
    "conformer ahead": {"encoder": "conformer", "layers": 1, "lookahead": 40},
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_online_is_offline_however_the_video_is_cut(how: str) -> None:
    torch.manual_seed(0)
    model, clip = SequenceModel(SequenceModelConfig(hidden=16, **HOW[how]), 4), ClipConfig(stride=2, size=(16, 24))
    frames = list(np.repeat(moving(("up", "left", "down"), frames=30, seed=1)[..., None], 3, axis=3))
    shown = torch.from_numpy(np.stack([seen_picture(frame, clip) for frame in frames[::2]]))[None]
    with torch.no_grad():
        for _ in range(30):  # until batch norm has statistics: without them an untrained model predicts the same for every frame
            model(shown)
        model.eval().fc.weight *= 100
        whole = model(shown)[0].numpy()
    offline = [(ACTIONS[event.action], event.frame * 2) for event in greedy(whole)]
    assert len(offline) > 1

    @given(chunk=st.integers(1, 20))
    @settings(max_examples=20)
    def chunks_of_any_size(chunk: int) -> None:
        source = (Arrived(time.monotonic(), frame) for frame in frames)
        found = recognise(source, Recogniser(model, torch.device("cpu")), clip, RATE, chunk, ACTIONS)
        assert [(line["action"], line["frame"]) for part in found for line in part.lines] == offline

    chunks_of_any_size()
    late = [Arrived(time.monotonic() - 5, frame) for frame in frames]  # they waited for 5 seconds
    lines = [
        line for part in recognise(late, Recogniser(model, torch.device("cpu")), clip, RATE, 8, ACTIONS) for line in part.lines
    ]
    assert all(5 <= line["delay"] < 10 for line in lines)


def test_the_look_ahead_is_part_of_the_delay() -> None:
    """Frames come every 20 ms: an action is reported when its look-ahead of 5 more used ones is over, which takes 200 ms."""
    torch.manual_seed(0)
    model, clip = SequenceModel(SequenceModelConfig(hidden=16, lookahead=5), 4).eval(), ClipConfig(stride=2, size=(16, 24))
    model.fc.weight.data.zero_()
    model.fc.bias.data[2] = 9.0  # an action that begins with the first frame

    def camera() -> Iterator[Arrived]:
        for frame in np.repeat(moving(("up", "left"), frames=20)[..., None], 3, axis=3):
            time.sleep(0.02)
            yield Arrived(time.monotonic(), frame)

    parts = list(recognise(camera(), Recogniser(model, torch.device("cpu")), clip, RATE, 1, ACTIONS))
    assert sum(len(part.log_probs) for part in parts) == 20
    (line,) = [line for part in parts for line in part.lines]
    assert line["frame"] == 0
    assert 0.2 <= line["delay"] < 5
