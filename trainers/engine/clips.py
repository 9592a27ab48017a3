"""Sets of clips as the jobs use them: checked, and evaluated over all ranks. N clips, V views, T frames, C classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from datasets.cache import CacheConfig
from datasets.clips import ClipConfig, ClipSet, ClipViews
from datasets.errors import InputError
from datasets.index import Int64s
from datasets.loader import Share, behind_workers
from datasets.splits import evaluation_split
from trainers.losses.sequences import feasible
from trainers.metrics.ctc_decoding import greedy, prefix_beam
from trainers.metrics.sequences import frame_counts, frame_f1, sequence_figures
from trainers.models.sequence import SequenceModel

VIEWS = 16  # views told at once
Floats = npt.NDArray[np.float32]


def checksum_of(clips: ClipSet) -> int:
    """crc32c of what the set holds, which clips are in which split, and all actions: other data has another."""
    told = repr((clips.actions, clips.class_names)).encode()
    checksum: int = google_crc32c.extend(google_crc32c.extend(clips.index.checksum, told), clips.frames.tobytes())
    return checksum


def frames_seen(clips: ClipSet, clip: int, stride: int) -> int:
    """Frames of a clip of which every ``stride``-th is taken."""
    return -(-int(clips.frames[clip]) // stride)


def feasible_clips(clips: ClipSet, chosen: Int64s, stride: int, *, skip: bool) -> Int64s:
    """Those of the clips that have frames enough to tell their actions by CTC.

    Raises:
        InputError: one has not, and is not to be skipped; or none has.
    """
    enough = np.array([feasible(frames_seen(clips, clip, stride), clips.actions[clip]) for clip in chosen.tolist()], bool)
    short = [clips.name(clip) for clip in chosen[~enough].tolist()]
    if short and (not skip or not enough.any()):
        shown = ", ".join(short[:10]) + (f" (+{len(short) - 10} more)" if len(short) > 10 else "")
        remedy = "correct their labels, lower --clip.stride, or leave them out by --infeasible skip"
        raise InputError(f"{len(short)} clips have fewer frames than their actions need", shown, remedy)
    kept: Int64s = chosen[enough]
    return kept


def evaluation_clips(clips: ClipSet) -> Int64s:
    """The clips to evaluate on: those for testing, else those for validation.

    Raises:
        InputError: the set has neither.
    """
    return clips.clips_of(evaluation_split(clips.index.splits) or "test")


@torch.no_grad()
def evaluate_actions(
    model: nn.Module, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device,
    share: Share = Share(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> tuple[Floats, list[str]]:  # fmt: skip
    """Logits [N, C] of the chosen clips, the mean over each one's views; every rank tells its share, and all get all of them.

    A clip that cannot be read has logits of NaN; what this rank could not read is told.
    """
    training = model.training
    model.eval()
    found: dict[int, Floats] = {}
    bad: list[str] = []
    for item in behind_workers(ClipViews(clips, chosen, config, cache, share), workers):
        bad += item["bad"]
        if not item["bad"]:
            views = item["clips"].permute(0, 4, 1, 2, 3)  # [V, 3, L, H, W]
            logits = torch.cat([model(part.to(device)).float().cpu() for part in views.split(VIEWS)])
            found[item["position"]] = logits.mean(dim=0).numpy()
    model.train(training)
    table = np.full((len(chosen), len(clips.class_names)), np.nan, np.float32)
    for position, mean in gathered(list(found.items()), group):
        table[position] = mean
    return table, bad


@dataclass(frozen=True)
class Told:
    """What is told of a clip: greedily and, when wanted, by beam search; and of its frames [3, C], as of `frame_counts`."""

    position: int
    greedy: tuple[int, ...]
    beam: tuple[int, ...] | None
    counts: Int64s | None


@torch.no_grad()
def evaluate_sequences(
    model: SequenceModel, clips: ClipSet, chosen: Int64s, config: ClipConfig, cache: CacheConfig, device: torch.device, beam: int,
    share: Share = Share(0, 1), group: dist.ProcessGroup | None = None, workers: int = 0,  # noqa: B008 - a constant
) -> tuple[list[Told], list[str]]:  # fmt: skip
    """What is told of each of the chosen clips; every rank tells its share, and all get all of it, in order.

    ``beam``: the width of the beam search, 0 for none.
    """
    training = model.training
    model.eval()
    found: list[Told] = []
    bad: list[str] = []
    frame_actions = clips.frame_actions()
    for item in behind_workers(ClipViews(clips, chosen, config, cache, share, whole=True), workers):
        bad += item["bad"]
        if not item["bad"]:
            log_probs = model(item["clips"].to(device))[0].cpu().numpy()
            true = frame_actions[chosen[item["position"]]][:: config.stride]
            counts = frame_counts(log_probs.argmax(axis=1) - 1, true, len(clips.class_names)) if len(true) else None
            actions = tuple(event.action for event in greedy(log_probs))
            found.append(Told(item["position"], actions, prefix_beam(log_probs, beam)[0][0] if beam else None, counts))
    model.train(training)
    return sorted(gathered(found, group), key=lambda told: told.position), bad


def figures_of_sequences(told: Sequence[Told], clips: ClipSet, chosen: Int64s) -> dict[str, float]:
    """ "edit" and "exact" of greedy decoding, "n"; "beam_edit", "beam_exact" and "frame_f1" where these are told."""
    true = [clips.actions[chosen[one.position]] for one in told]
    figures = sequence_figures([one.greedy for one in told], true)
    beams = [one.beam for one in told if one.beam is not None]
    if beams:
        figures |= {f"beam_{name}": value for name, value in sequence_figures(beams, true).items()}
    counts = [one.counts for one in told if one.counts is not None]
    if counts:
        figures["frame_f1"] = frame_f1(np.sum(counts, axis=0))
    return figures | {"n": len(told)}


def gathered(own: list[Any], group: dist.ProcessGroup | None) -> Iterator[Any]:
    """The items of all ranks, on each."""
    parts: list[list[Any]] = [own]
    if group is not None:
        parts = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(parts, own, group=group)
    for part in parts:
        yield from part
