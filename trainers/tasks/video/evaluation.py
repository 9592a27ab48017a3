"""Evaluates models of actions and sequences on test clips, over all ranks. N clips, V views of a clip, T frames, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.clips import ClipConfig, ClipSet, ClipViews
from datasets.loading.workers import load_in_workers
from datasets.shards.index import Int64s
from trainers.engine.distributed import gather_items
from trainers.tasks.video.action_model import channels_second
from trainers.tasks.video.ctc_decoding import greedy, prefix_beam
from trainers.tasks.video.metrics import (
    classification_figures,
    confusion,
    frame_counts,
    frame_f1,
    report_delays,
    sequence_figures,
)
from trainers.tasks.video.sequence_model import SequenceModel
from trainers.tasks.video.smoothing import Smoothing, actions_of, best_smoothing, errors_of, viterbi

VIEWS = 16  # views in one forward pass
SMOOTHED = 50  # training clips by which the smoothing of a frame-wise model is chosen
Floats = npt.NDArray[np.float32]


@torch.no_grad()
def evaluate_actions(
    model: nn.Module, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> tuple[Floats, list[str]]:  # fmt: skip
    """Logits [N, C] of the chosen clips, means over their views, and the unreadable clips of this rank, which have logits NaN.

    Every rank evaluates its slice, and all ranks get all logits.
    """
    training = model.training
    model.eval()
    found: dict[int, Floats] = {}
    bad: list[str] = []
    for item in load_in_workers(ClipViews(clips, chosen, config, cache, part), workers):
        bad += item["bad"]
        if not item["bad"]:
            views = channels_second(item["clips"])  # [V, 3, L, H, W], or of skeletons [V, L, J, D]
            logits = torch.cat([model(several.to(device)).float().cpu() for several in torch.split(views, VIEWS)])
            found[item["position"]] = logits.mean(dim=0).numpy()
    model.train(training)
    table = np.full((len(chosen), len(clips.class_names)), np.nan, np.float32)
    for position, mean in gather_items(list(found.items()), group):
        table[position] = mean
    return table, bad


@dataclass(frozen=True)
class Prediction:
    """The predicted actions of one clip."""

    position: int
    """Position of the clip among the evaluated ones."""
    greedy: tuple[int, ...]
    beam: tuple[int, ...] | None
    """By beam search; None: none was made."""
    smoothed: tuple[int, ...] | None
    """With smoothing; None: none was asked for."""
    delays: tuple[float, ...]
    """Seconds from the end of each action that was recognised correctly to its report, by greedy decoding; none: the clip has no
    frame labels, or the model is not causal."""
    counts: Int64s | None
    """`frame_counts` [3, C]; None: the clip has no frame labels."""


@torch.no_grad()
def evaluate_sequences(
    model: SequenceModel, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device, beam: int,
    smoothing: Smoothing | None = None, part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None,  # noqa: B008
    workers: int = 0,
) -> tuple[list[Prediction], list[str]]:  # fmt: skip
    """The predicted actions of the chosen clips, in order, and the clips that this rank could not read.

    Every rank decodes its slice, and all ranks get all predictions. ``beam``: width of the beam search, 0 for none.
    """
    training = model.training
    model.eval()
    found: list[Prediction] = []
    bad: list[str] = []
    frame_actions = clips.frame_actions()
    for item in load_in_workers(ClipViews(clips, chosen, config, cache, part, whole=True), workers):
        bad += item["bad"]
        if not item["bad"]:
            log_probs, clip = model(item["clips"].to(device))[0].cpu().numpy(), chosen[item["position"]]
            labels, events = frame_actions[clip], greedy(log_probs)
            true = labels[:: config.stride]
            reports = [(event.action, (event.frame + model.lookahead) * config.stride) for event in events]
            delays = report_delays(reports, clips.actions[clip], labels) if len(labels) and model.causal else []
            found.append(Prediction(
                item["position"], tuple(event.action for event in events),
                prefix_beam(log_probs, beam)[0][0] if beam else None,
                actions_of(viterbi(log_probs, smoothing)) if smoothing else None,
                tuple(frames / clips.index.about["rate"] for frames in delays),
                frame_counts(log_probs.argmax(axis=1) - 1, true, len(clips.class_names)) if len(true) else None,
            ))  # fmt: skip
    model.train(training)
    return sorted(gather_items(found, group), key=lambda one: one.position), bad


@torch.no_grad()
def choose_smoothing(
    model: SequenceModel, clips: ClipSet, training: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> Smoothing:  # fmt: skip
    """The smoothing with the fewest errors on the first of the ``training`` clips, `SMOOTHED` of them."""
    was, chosen = model.training, training[:SMOOTHED]
    model.eval()
    items = load_in_workers(ClipViews(clips, chosen, config, cache, part, whole=True), workers)
    read = (item for item in items if not item["bad"])
    errors = errors_of(
        (model(item["clips"].to(device))[0].cpu().numpy(), clips.actions[chosen[item["position"]]]) for item in read
    )
    model.train(was)
    return best_smoothing(np.sum(list(gather_items([errors], group)), axis=0))


def figures_of_sequences(found: Sequence[Prediction], clips: ClipSet, chosen: Int64s) -> dict[str, float]:
    """ "edit" and "exact" of greedy decoding, "n"; with beam search "beam_edit" and "beam_exact", with smoothing "viterbi_edit"
    and "viterbi_exact", with frame labels "frame_f1" and "delay", the median of the delays.

    Raises:
        InputError: no video could be read.
    """
    if not found:
        raise InputError("no test video can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    true = [clips.actions[chosen[one.position]] for one in found]
    figures = sequence_figures([one.greedy for one in found], true)
    for kind, each in (("beam", [one.beam for one in found]), ("viterbi", [one.smoothed for one in found])):
        decoded = [actions for actions in each if actions is not None]
        if decoded:
            figures |= {f"{kind}_{name}": value for name, value in sequence_figures(decoded, true).items()}
    counts = [one.counts for one in found if one.counts is not None]
    if counts:
        figures["frame_f1"] = frame_f1(np.sum(counts, axis=0))
    if delays := [delay for one in found for delay in one.delays]:
        figures["delay"] = float(np.median(delays))
    return figures | {"n": len(found)}


def figures_of_actions(logits: Floats, clips: ClipSet, chosen: np.ndarray) -> tuple[dict[str, float], list[list[int]]]:
    """Metrics and confusion matrix of the clips that could be read; ``logits`` [N, C] of the ``chosen`` clips.

    Raises:
        InputError: no clip could be read.
    """
    read = ~np.isnan(logits[:, 0])
    if not read.any():
        raise InputError("no test clip can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    labels = np.array([clips.actions[clip][0] for clip in chosen[read]], np.int64)
    return classification_figures(logits[read], labels), confusion(logits[read], labels).tolist()


def align_logits(other: Floats, others: ClipSet, theirs: np.ndarray, clips: ClipSet, chosen: np.ndarray) -> Floats:
    """The other stream's logits in the order of the ``chosen`` clips; zeros for a clip that is too short for flow.

    ``other``: the logits of the clips ``theirs`` of the set ``others``.

    Raises:
        InputError: the sets do not have the same clips or classes.
    """
    rows = {others.index.identities[clip]: row for row, clip in enumerate(theirs.tolist())}
    names = [clips.index.identities[clip] for clip in chosen.tolist()]
    if clips.class_names != others.class_names or not set(rows) <= set(names):
        what = "the two runs were trained on sets of different clips or classes"
        raise InputError(what, f"{clips.index.url} and {others.index.url}", "pack both from one source with the same options")
    return np.stack([other[rows[name]] if name in rows else np.zeros_like(other[0]) for name in names])
