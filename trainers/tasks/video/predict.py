"""Predictions on video files, npz files of frames and streams: lines of JSON and a picture."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from datasets.errors import InputError, printable
from datasets.loading.clips import ClipSet, Reader, View, cuts_of_views, seen
from datasets.media.decode import Image
from datasets.media.video import frames_of_path, shrunk
from datasets.pack_videos import frames_of_file
from datasets.shards.frame_strips import Frames
from trainers.engine.inputs import InputFile
from trainers.engine.verbs import Opened
from trainers.tasks.video.ctc_decoding import Floats, greedy, prefix_beam
from trainers.tasks.video.data import evaluation_clips
from trainers.tasks.video.metrics import TOP
from trainers.tasks.video.online import Recogniser, recognise
from trainers.tasks.video.pictures import Film, film_of, films_picture, timeline
from trainers.tasks.video.report import Picture
from trainers.tasks.video.sequence_model import SequenceModel

SHOWN = 12  # videos in the picture of predicted actions
TEST_CLIPS = 4  # test clips whose timelines are in the report
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainedOnClips(Generic[M]):
    """The trained model of a run on clips, and what the run saved about its training set."""

    opened: Opened
    model: M

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.opened.state["classes"])

    @property
    def stream(self) -> str:
        """The model's input: rgb, flow or skeletons."""
        return str(self.opened.state["stream"])

    def fits(self, clips: ClipSet) -> bool:
        """Whether a set has the classes and the stream (rgb, flow or skeletons) that the model was trained on."""
        return clips.class_names == self.classes and clips.stream == self.stream

    def refuse_skeletons(self, remedy: str) -> None:
        """Raise InputError for a model of skeletons, where images are needed."""
        if self.stream == "skeletons":
            raise InputError("the model's input is skeletons", self.opened.run.url, remedy)

    def frames_of(self, file: InputFile) -> Frames:
        """A file's frames, at the rate and size of the packed training videos; raises InputError if it cannot be read."""
        state = self.opened.state
        return frames_of_file(file.path, file.name, state["rate"], state["side"], state["stream"])


def predict_actions(trained: TrainedOnClips[Any], files: Sequence[InputFile]) -> None:
    """Print the most probable actions of each video; write the lines and a picture of the first videos into the run's folder."""
    run, clip = trained.opened.run, trained.opened.config.clip
    lines, films = [], list[tuple[list[Image], str]]()
    for file in files:
        frames = trained.frames_of(file)
        views = torch.from_numpy(cuts_of_views(frames, clip, trained.stream)).permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            p = trained.model(views.to(trained.opened.device)).float().mean(dim=0).softmax(dim=0).cpu()
        best = p.topk(min(TOP, len(p)))
        probabilities = {trained.classes[c]: round(float(v), 4) for v, c in zip(best.values, best.indices.tolist(), strict=True)}
        lines.append(json.dumps({"video": file.name, "action": next(iter(probabilities)), "probabilities": probabilities}))
        print(lines[-1])
        if len(films) < SHOWN:
            title = ", ".join(f"{action} {probability:.0%}" for action, probability in probabilities.items())
            films.append((film_of(list(frames)), f"{printable(file.path.name)}: {title}"))
    run.objects.put("prediction.png", films_picture(films))
    run.write_text("prediction.jsonl", "".join(f"{line}\n" for line in lines))


Sequences = TrainedOnClips[SequenceModel]


def save_predictions(trained: Sequences, lines: Iterator[str]) -> None:
    """Write the lines of `predict_files` or `predict_stream` into the run's folder when the last has come."""
    run = trained.opened.run
    run.write_text("prediction.jsonl", "".join(f"{line}\n" for line in lines))
    print(f"lines and picture: {run.url}/prediction.jsonl, prediction.png", file=sys.stderr)


def log_probs_of(trained: Sequences, frames: Frames) -> Floats:
    """The model's log-probabilities [T / stride, C + 1] of a whole video's frames [T, ...], as stored in a set."""
    clip = trained.opened.config.clip
    shown = seen(frames[:: clip.stride], clip, View(), trained.stream)
    with torch.no_grad():
        table: Floats = trained.model(torch.from_numpy(shown.copy())[None].to(trained.opened.device))[0].cpu().numpy()
    return table


def times_of(trained: Sequences, count: int) -> npt.NDArray[np.float64]:
    """The times in the video, in seconds, of the first ``count`` frames that the model gets."""
    times: npt.NDArray[np.float64] = np.arange(count) * trained.opened.config.clip.stride / trained.opened.state["rate"]
    return times


def predict_files(trained: Sequences, files: Sequence[InputFile]) -> Iterator[str]:
    """For each video, print a line of JSON with its actions and their times in seconds, and yield the same line.

    A picture of the timeline is stored as prediction.png in the run's folder; that of the last video stays.
    """
    classes, beam_width = trained.classes, trained.opened.config.beam_width
    for file in files:
        frames = trained.frames_of(file)
        log_probs = log_probs_of(trained, frames)
        times = times_of(trained, len(log_probs))
        found = [(classes[event.action], round(float(times[event.frame]), 3)) for event in greedy(log_probs)]
        line = {"video": file.name, "actions": [a for a, _ in found], "times": [t for _, t in found]}
        if beam_width:
            best, _ = prefix_beam(log_probs, beam_width)[0]
            line["beam"] = [classes[action] for action in best]
        print(json.dumps(line))
        film = film_of(list(frames)) if trained.stream == "rgb" else []
        trained.opened.run.objects.put("prediction.png", timeline(log_probs, times, found, classes, film))
        yield json.dumps(line)


def predict_stream(trained: Sequences, source: str, chunk: int, threshold: float) -> Iterator[str]:
    """Print and yield a line of JSON for each action of a stream when it is recognised; draw a timeline at the end.

    ``chunk``: frames that are processed at once; ``threshold``: probability above which an action is reported.

    Raises:
        InputError: the model is not causal, or the stream cannot be read.
    """
    state, clip, classes = trained.opened.state, trained.opened.config.clip, trained.classes
    recogniser = Recogniser(trained.model, trained.opened.device, threshold)
    frames = frames_of_path(source, state["rate"])
    began, tables, lines, film = time.perf_counter(), list[Floats](), list[dict[str, Any]](), Film()
    for part in recognise(frames, recogniser, clip, state["rate"], chunk, classes):
        tables.append(part.log_probs)
        for image in part.images:
            film.add(image)
        for line in part.lines:
            lines.append(line)
            print(json.dumps(line), flush=True)
            yield json.dumps(line)
    took = time.perf_counter() - began
    log_probs: Floats = np.concatenate(tables)
    delays = sorted(line["delay"] for line in lines)
    median = f"{delays[len(delays) // 2] * 1000:.1f} ms" if delays else "–"
    speed = f"{len(log_probs):,} frames, {len(log_probs) / took:,.0f} frames/s"
    print(f"{speed}, {len(lines)} actions, median delay {median}", file=sys.stderr)
    found = [(line["action"], line["time"]) for line in lines]
    shown = film_of([shrunk(image, state["side"]) for image in film.images])
    picture = timeline(log_probs, times_of(trained, len(log_probs)), found, classes, shown)
    trained.opened.run.objects.put("prediction.png", picture)


def timelines(trained: Sequences, clips: ClipSet) -> Iterator[Picture]:
    """Timelines of the first test clips that can be read, for a report."""
    reader = Reader(clips, trained.opened.config.cache)
    for clip in evaluation_clips(clips)[:TEST_CLIPS].tolist():
        frames = reader.request(clip, np.arange(clips.frames[clip]))()
        if not isinstance(frames, ValueError):
            log_probs = log_probs_of(trained, frames)
            times = times_of(trained, len(log_probs))
            found = [(trained.classes[event.action], float(times[event.frame])) for event in greedy(log_probs)]
            true = [clips.class_names[action] for action in clips.actions[clip]]
            film = film_of(list(frames)) if trained.stream == "rgb" else []
            draw = partial(timeline, log_probs, times, found, trained.classes, film, true)
            yield f"Test clip {clips.index.identities[clip]}", "Decoded greedily.", draw
    reader.close()
