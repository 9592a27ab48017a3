"""Sequence models: causal ones in chunks, padding, and that each loss learns a sequence."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from trainers.tasks.video import encoders
from trainers.tasks.video.ctc_decoding import greedy
from trainers.tasks.video.motion import Motion
from trainers.tasks.video.sequence_model import START, SequenceModel, SequenceModelConfig, SequenceTask

ENCODERS: dict[str, dict[str, Any]] = {
    "gru": {"layers": 2}, "lstm": {"cell": "lstm"},
    "tcn": {"encoder": "tcn", "layers": 3}, "conformer": {"encoder": "conformer", "layers": 2},
}  # fmt: skip


@pytest.mark.parametrize("lookahead", [0, 5])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_causal_model_in_chunks_is_the_model_at_once(kind: str, lookahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "WINDOW", 8)  # shorter than the video
    torch.manual_seed(0)
    model = SequenceModel(SequenceModelConfig(hidden=16, lookahead=lookahead, **ENCODERS[kind]), 4, joints=(5, 2)).eval()
    frames = torch.randn(1, 33, 5, 2)
    whole = model(frames)[0].detach()

    @given(cuts=st.lists(st.integers(0, 33), max_size=10))
    @settings(max_examples=25)
    def chunks_of_any_length(cuts: list[int]) -> None:
        state, parts, given = START, [], 0
        with torch.no_grad():
            for a, b in itertools.pairwise(sorted({0, *cuts, 33})):
                part, state = model.step(frames[0, a:b], state)
                parts.append(part)
                given += len(part)
                assert given == max(b - lookahead, 0)
            parts.append(model.rest(state))
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)

    chunks_of_any_length()
    early, state = model.step(frames[0, :2], START)  # a video that is shorter than the look-ahead
    torch.testing.assert_close(torch.cat([early, model.rest(state)]), model(frames[:, :2])[0])


def test_motion_in_chunks_is_motion_at_once() -> None:
    frames = torch.randint(256, (2, 9, 4, 5, 3), dtype=torch.uint8)
    shown, _ = Motion()(frames, None)
    grey = frames.float().mean(dim=4)
    for t in range(9):
        expected = [
            grey[:, t],
            128 + 2 * (grey[:, t] - grey[:, max(t - 1, 0)]),
            128 + 2 * (grey[:, t] - grey[:, : t + 1].mean(dim=1)),
        ]
        torch.testing.assert_close(shown[:, t], torch.stack(expected, dim=3), rtol=1e-4, atol=1e-4)
    first, state = Motion()(frames[:, :4], None)
    torch.testing.assert_close(torch.cat([first, Motion()(frames[:, 4:], state)[0]], dim=1), shown, rtol=1e-4, atol=1e-4)


HOW: list[dict[str, Any]] = [
    {"causal": True}, {"causal": False}, {"encoder": "tcn", "lookahead": 2}, {"encoder": "tcn", "causal": False},
    {"encoder": "conformer", "lookahead": 2}, {"encoder": "conformer", "causal": False},
    {"motion": True, "lookahead": 1},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_padding_changes_nothing(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = SequenceModel(SequenceModelConfig(hidden=8, **how), 3).eval()
    frames = torch.randint(256, (2, 7, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        both = model(frames, torch.tensor([4, 7]))
        assert both.shape == (2, 7, 4)
        torch.testing.assert_close(both[0, :4], model(frames[:1, :4])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both[1], model(frames[1:])[0], rtol=1e-4, atol=1e-5)
        changed = frames.clone()
        changed[:, 4:] = 0
        known = max(4 - model.lookahead, 0) if model.causal else 0  # frames that do not depend on the changed ones
        same = torch.isclose(model(changed), model(frames), atol=1e-5).all(dim=2).all(dim=0)
        assert same[:known].all()
        assert not same[known:].any()


def test_weights_of_earlier_versions_are_loaded() -> None:
    model = SequenceModel(SequenceModelConfig(hidden=8), 3, joints=(3, 2))
    older = {name.replace("encoder.rnn.", "rnn."): tensor for name, tensor in model.state_dict().items()}
    assert "rnn.weight_ih_l0" in older
    model.load_state_dict(older)
    task = SequenceTask(model, "ctc")
    task.load_state_dict({f"model.{name}": tensor for name, tensor in older.items()})


@pytest.mark.parametrize("kind", ["ctc", "frames", "even"])
def test_a_model_learns_a_sequence(kind: str) -> None:
    torch.manual_seed(0)
    task = SequenceTask(SequenceModel(SequenceModelConfig(hidden=16, dropout=0.0), 3, joints=(3, 2)), kind)  # type: ignore[arg-type]
    clips = torch.randn(1, 3, 3, 2).repeat_interleave(4, dim=1)
    batch = {
        "clips": clips, "lengths": torch.tensor([12]), "targets": torch.tensor([[2, 0, 1]]),
        "frame_targets": torch.tensor([[2, 0, 1]]).repeat_interleave(4, dim=1),
    }  # fmt: skip
    optimiser = torch.optim.Adam(task.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        task(batch)["loss"].backward()
        optimiser.step()
    assert [event.action for event in greedy(task.model(clips)[0].detach().numpy())] == [2, 0, 1]


def test_wrong_settings_are_refused() -> None:
    for wrong in (
        {"hidden": 0},
        {"dropout": 1.0},
        {"backbone": "resnet19"},
        {"lookahead": -1},
        {"lookahead": 1, "causal": False},
        {"encoder": "conformer", "hidden": 12},
    ):
        with pytest.raises(InputError):
            SequenceModelConfig(**wrong)  # type: ignore[arg-type]
