"""Evaluates models of actions and of sequences on a set's test clips, over all ranks. N clips, V views, T frames, C classes."""

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
from trainers.tasks.video.ctc_decoding import greedy, prefix_beam
from trainers.tasks.video.metrics import classification_figures, confusion, frame_counts, frame_f1, sequence_figures
from trainers.tasks.video.sequence_model import SequenceModel

VIEWS = 16  # views that go through the model at once
Floats = npt.NDArray[np.float32]


@torch.no_grad()
def evaluate_actions(
    model: nn.Module, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> tuple[Floats, list[str]]:  # fmt: skip
    """Logits [N, C] of the chosen clips, the mean over each one's views; every rank computes its slice, and all get all of them.

    A clip that cannot be read has logits of NaN; the names of those that this rank could not read are returned.
    """
    training = model.training
    model.eval()
    found: dict[int, Floats] = {}
    bad: list[str] = []
    for item in load_in_workers(ClipViews(clips, chosen, config, cache, part), workers):
        bad += item["bad"]
        if not item["bad"]:
            views = item["clips"].permute(0, 4, 1, 2, 3)  # [V, 3, L, H, W]
            logits = torch.cat([model(several.to(device)).float().cpu() for several in views.split(VIEWS)])
            found[item["position"]] = logits.mean(dim=0).numpy()
    model.train(training)
    table = np.full((len(chosen), len(clips.class_names)), np.nan, np.float32)
    for position, mean in gather_items(list(found.items()), group):
        table[position] = mean
    return table, bad


@dataclass(frozen=True)
class Prediction:
    """The actions of one clip, decoded greedily and, when wanted, by beam search; and `frame_counts` of its frames, [3, C]."""

    position: int
    greedy: tuple[int, ...]
    beam: tuple[int, ...] | None
    counts: Int64s | None


@torch.no_grad()
def evaluate_sequences(
    model: SequenceModel, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device, beam: int,
    part: RankSlice = RankSlice(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> tuple[list[Prediction], list[str]]:  # fmt: skip
    """The predicted actions of each of the chosen clips, in order; every rank decodes its slice, and all get all of them.

    ``beam``: the width of the beam search, 0 for none.
    """
    training = model.training
    model.eval()
    found: list[Prediction] = []
    bad: list[str] = []
    frame_actions = clips.frame_actions()
    for item in load_in_workers(ClipViews(clips, chosen, config, cache, part, whole=True), workers):
        bad += item["bad"]
        if not item["bad"]:
            log_probs = model(item["clips"].to(device))[0].cpu().numpy()
            true = frame_actions[chosen[item["position"]]][:: config.stride]
            counts = frame_counts(log_probs.argmax(axis=1) - 1, true, len(clips.class_names)) if len(true) else None
            actions = tuple(event.action for event in greedy(log_probs))
            found.append(Prediction(item["position"], actions, prefix_beam(log_probs, beam)[0][0] if beam else None, counts))
    model.train(training)
    return sorted(gather_items(found, group), key=lambda one: one.position), bad


def figures_of_sequences(found: Sequence[Prediction], clips: ClipSet, chosen: Int64s) -> dict[str, float]:
    """ "edit" and "exact" of greedy decoding, "n"; "beam_edit", "beam_exact" and "frame_f1" where there are such.

    Raises:
        InputError: no video could be read.
    """
    if not found:
        raise InputError("no test video can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    true = [clips.actions[chosen[one.position]] for one in found]
    figures = sequence_figures([one.greedy for one in found], true)
    beams = [one.beam for one in found if one.beam is not None]
    if beams:
        figures |= {f"beam_{name}": value for name, value in sequence_figures(beams, true).items()}
    counts = [one.counts for one in found if one.counts is not None]
    if counts:
        figures["frame_f1"] = frame_f1(np.sum(counts, axis=0))
    return figures | {"n": len(found)}


def figures_of_actions(logits: Floats, clips: ClipSet, chosen: np.ndarray) -> tuple[dict[str, float], list[list[int]]]:
    """The figures and the confusion matrix of those clips that could be read.

    Raises:
        InputError: none could.
    """
    read = ~np.isnan(logits[:, 0])
    if not read.any():
        raise InputError("no test clip can be read", clips.index.url, "check the set with `python -m datasets.inspect`")
    labels = np.array([clips.actions[clip][0] for clip in chosen[read]], np.int64)
    return classification_figures(logits[read], labels), confusion(logits[read], labels).tolist()


def align_logits(other: Floats, others: ClipSet, theirs: np.ndarray, clips: ClipSet, chosen: np.ndarray) -> Floats:
    """The other stream's logits in the order of these clips; one that is too short for flow has zeros there.

    Raises:
        InputError: the sets are not of the same clips.
    """
    place = {others.index.identities[clip]: row for row, clip in enumerate(theirs.tolist())}
    names = [clips.index.identities[clip] for clip in chosen.tolist()]
    if clips.class_names != others.class_names or not set(place) <= set(names):
        what = "the two runs were trained on sets of other clips or classes"
        raise InputError(what, f"{clips.index.url} and {others.index.url}", "pack both from one source with the same options")
    return np.stack([other[place[name]] if name in place else np.zeros_like(other[0]) for name in names])
