"""What is told of a stream of frames: each at once, and nothing of it lost when the stream breaks off."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.decode import Image
from trainers.engine.face_report import tell_faces
from trainers.engine.run import Run
from trainers.models.attributes import Attributes, FaceModelConfig


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_what_was_told_is_kept(end: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_before: list[int] = []

    def frames() -> Iterator[tuple[str, Image]]:
        for number in range(3):
            told_before.append(capsys.readouterr().out.count("\n"))
            yield f"0#{number}", np.full((40, 30, 3), 80 * number, np.uint8)
        raise end

    model, run = Attributes(FaceModelConfig(), ("gender", "age"), single=False).eval(), Run(str(tmp_path), "run")
    with pytest.raises(end):
        tell_faces(run, model, frames(), (32, 32), torch.device("cpu"), ["age"], at_once=1)
    assert told_before == [0, 1, 1]  # each frame's line is out before the next frame is asked for
    lines = [json.loads(line) for line in (tmp_path / "run" / "prediction.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["0#0", "0#1", "0#2"]
    assert set(lines[0]) == {"image", "age"}
    assert (tmp_path / "run" / "prediction.png").read_bytes().startswith(b"\x89PNG")


def test_a_stream_that_gives_nothing_leaves_what_was_told_before(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "run")
    run.write_text("prediction.jsonl", "before\n")
    tell_faces(
        run, Attributes(FaceModelConfig(), ("age",), single=False).eval(), [], (32, 32), torch.device("cpu"), ["age"], at_once=1
    )
    assert (tmp_path / "run" / "prediction.jsonl").read_text() == "before\n"
