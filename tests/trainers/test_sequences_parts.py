"""The parts of sequence recognition: losses, decoding against a sum over all alignments, metrics, and causal models in chunks."""

import itertools
import math
from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, top_k_accuracy_score

from datasets.errors import InputError
from trainers.tasks.video.ctc_decoding import Event, Greedy, greedy, prefix_beam
from trainers.tasks.video.ctc_loss import ctc, even_targets, feasible, frame_wise
from trainers.tasks.video.metrics import (
    classification_figures,
    confusion,
    edit_distance,
    frame_counts,
    frame_f1,
    sequence_figures,
)
from trainers.tasks.video.sequence_model import SequenceModel, SequenceModelConfig, SequenceTask


def log_probs(frames: int, classes: int, seed: int, sharp: float = 1.0) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(frames, classes + 1)) * sharp
    return raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(output - 1 for output, _ in itertools.groupby(path) if output)


def by_brute_force(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every sequence: the sum over all alignments."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        p = math.exp(sum(table[t, output] for t, output in enumerate(path)))
        sums[collapsed(path)] = sums.get(collapsed(path), 0.0) + p
    return sums


@given(frames=st.integers(1, 5), classes=st.integers(1, 3), seed=st.integers(0, 99), sharp=st.floats(0.1, 4))
@settings(max_examples=30)
def test_prefix_beam_sums_over_alignments(frames: int, classes: int, seed: int, sharp: float) -> None:
    table = log_probs(frames, classes, seed, sharp)
    true = by_brute_force(table)
    found = prefix_beam(table, width=len(true) + 1)
    assert dict(found) == pytest.approx({sequence: math.log(p) for sequence, p in true.items()}, abs=1e-4)
    assert found[0][1] == pytest.approx(math.log(max(true.values())), abs=1e-6)


def test_a_narrow_beam_beats_greedy_where_alignments_add_up() -> None:
    table = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blank-blank 0.36; the action 0.64 in three alignments
    assert greedy(table) == []
    assert prefix_beam(table, width=2)[0] == ((0,), pytest.approx(math.log(0.64)))


@given(frames=st.integers(0, 30), seed=st.integers(0, 99))
def test_greedy_collapses_the_best_path(frames: int, seed: int) -> None:
    table = log_probs(frames, 3, seed)
    events = greedy(table)
    assert tuple(event.action for event in events) == collapsed(tuple(table.argmax(axis=1).tolist()))
    assert all(table[event.frame].argmax() == event.action + 1 for event in events)


@given(seed=st.integers(0, 99), threshold=st.floats(0, 0.9), cuts=st.lists(st.integers(0, 40), max_size=8))
def test_greedy_in_pieces_is_greedy_at_once(seed: int, threshold: float, cuts: list[int]) -> None:
    table, piecewise = log_probs(40, 4, seed, 2.0), Greedy(threshold)
    bounds = [0, *sorted(cuts), 40]
    pieces = [event for a, b in itertools.pairwise(bounds) for event in piecewise.feed(table[a:b])]
    assert pieces == greedy(table, threshold)
    assert all(event.probability > threshold for event in pieces)


def test_an_action_is_told_where_it_becomes_sure() -> None:
    p = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    assert greedy(np.log(p), 0.75) == [Event(0, 1, pytest.approx(0.9))]
    assert [event.frame for event in greedy(np.log(p))] == [0, 4]


@given(frames=st.integers(1, 5), actions=st.lists(st.integers(0, 2), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_ctc_is_the_sum_over_alignments_and_feasible_says_when_there_are_any(frames: int, actions: list[int], seed: int) -> None:
    table = log_probs(frames, 3, seed)
    p = by_brute_force(table).get(tuple(actions), 0.0)
    assert feasible(frames, actions) == (p > 0)
    padded = torch.full((1, 6), -1)
    padded[0, : len(actions)] = torch.tensor(actions)
    tail = torch.zeros(1, 3, 4)  # frames after the video's end
    loss = ctc(torch.cat([torch.from_numpy(table)[None].float(), tail], dim=1), torch.tensor([frames]), padded)
    assert float(loss) == pytest.approx(-math.log(p) / len(actions) if p else 0.0, abs=1e-4)


def test_frame_wise_losses() -> None:
    table = torch.from_numpy(log_probs(4, 2, 0))[None]
    targets = torch.tensor([[0, -1, 1, 1]])
    expected = -(table[0, 0, 1] + table[0, 1, 0] + table[0, 2, 2]) / 3
    assert float(frame_wise(table, torch.tensor([3]), targets)) == pytest.approx(float(expected))
    even = even_targets(torch.tensor([5, 3]), torch.tensor([[2, 0, -1], [1, 1, 0]]))
    assert even.tolist() == [[2, 2, 2, 0, 0], [1, 1, 0, -1, -1]]


@given(
    a=st.lists(st.integers(0, 3), max_size=8),
    b=st.lists(st.integers(0, 3), max_size=8),
    c=st.lists(st.integers(0, 3), max_size=8),
)
def test_edit_distance_is_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    distance = edit_distance(a, b)
    assert distance == edit_distance(b, a)
    assert (distance == 0) == (a == b)
    assert distance <= edit_distance(a, c) + edit_distance(c, b)
    matched = sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b), len(a) + len(b) - 2 * matched)


def test_edit_distance_by_example() -> None:
    assert edit_distance("kitten", "sitting") == 3  # type: ignore[arg-type]
    assert sequence_figures([[1, 2], [], [3, 3]], [[1, 2], [1, 2], [3]]) == {"edit": 3 / 5, "exact": 1 / 3}


def test_frame_f1_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    told, true = rng.integers(-1, 4, 200), rng.integers(-1, 3, 200)
    counts = sum(frame_counts(told[part], true[part], 5) for part in (slice(90), slice(90, None)))
    there = [0, 1, 2]
    assert frame_f1(counts) == pytest.approx(f1_score(true, told, labels=there, average="macro"))  # type: ignore[arg-type]
    assert math.isnan(frame_f1(frame_counts(told, np.full(200, -1), 5)))


def test_clip_figures_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 9)).astype(np.float32), rng.integers(0, 9, 300)
    figures = classification_figures(logits, labels)
    assert figures["top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1))
    assert figures["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert confusion(logits, labels).sum() == 300
    assert figures["mean_class"] == pytest.approx(np.mean([(logits.argmax(1) == c)[labels == c].mean() for c in range(9)]))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_equal_logits_count_as_not_found(seed: int, classes: int) -> None:
    """Against scikit-learn on logits among which many are equal, the true one's being lowered by next to nothing."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 4, (40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    lowered = logits.copy()
    lowered[np.arange(40), labels] -= 0.5
    figures, every = classification_figures(logits, labels), list(range(classes))
    for name, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, lowered, k=k, labels=every) if k < classes else 1
        assert figures[name] == pytest.approx(expected)
    right = (lowered.argmax(1) == labels) & (np.sort(lowered)[:, -1] > np.sort(lowered)[:, -2])
    assert figures["mean_class"] == pytest.approx(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def test_a_model_that_tells_nothing_apart_has_found_nothing() -> None:
    labels = np.arange(12) % 6
    for logits in (np.zeros((12, 6), np.float32), np.full((12, 6), np.nan, np.float32)):
        figures = classification_figures(logits, labels)
        assert [figures[name] for name in ("top1", "top5", "mean_class")] == [0, 0, 0]
    assert (
        classification_figures(np.zeros((4, 5), np.float32), labels[:4])["top5"] == 1
    )  # of five classes all are among the first five


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


def test_wrong_models() -> None:
    for wrong in ({"hidden": 0}, {"dropout": 1.0}, {"backbone": "resnet19"}):
        with pytest.raises(InputError):
            SequenceModelConfig(**wrong)  # type: ignore[arg-type]
