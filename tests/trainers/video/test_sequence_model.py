"""Sequence models: causal ones in chunks, padding, and that each loss learns a sequence."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from trainers.tasks.video.ctc_decoding import greedy
from trainers.tasks.video.sequence_model import SequenceModel, SequenceModelConfig, SequenceTask


@pytest.fixture(params=["gru", "lstm"])
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(SequenceModelConfig(cell=request.param, hidden=16, layers=2), 4, joints=(5, 2)).eval()


def test_a_causal_model_in_chunks_is_the_model_at_once(model: SequenceModel) -> None:
    frames = torch.randn(1, 33, 5, 2)
    whole = model(frames)[0].detach()

    @given(cuts=st.lists(st.integers(0, 33), max_size=10))
    @settings(max_examples=25)
    def chunks_of_any_length(cuts: list[int]) -> None:
        state, parts = None, []
        with torch.no_grad():
            for a, b in itertools.pairwise(sorted({0, *cuts, 33})):
                part, state = model.step(frames[0, a:b], state)
                parts.append(part)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)

    chunks_of_any_length()


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    torch.manual_seed(0)
    model = SequenceModel(SequenceModelConfig(hidden=8, causal=causal), 3).eval()
    frames = torch.randint(256, (2, 7, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        both = model(frames, torch.tensor([4, 7]))
        assert both.shape == (2, 7, 4)
        torch.testing.assert_close(both[0, :4], model(frames[:1, :4])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both[1], model(frames[1:])[0], rtol=1e-4, atol=1e-5)
        changed = frames.clone()
        changed[:, 4:] = 0
        assert torch.allclose(model(changed)[:, :4], model(frames)[:, :4], atol=1e-5) == causal  # it only looks back


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
    for wrong in ({"hidden": 0}, {"dropout": 1.0}, {"backbone": "resnet19"}):
        with pytest.raises(InputError):
            SequenceModelConfig(**wrong)  # type: ignore[arg-type]
