"""Models of action sequences: features of each frame, an encoder over time, and the probability of each action in each frame.

B videos, T frames, F features, C classes; output 0 is the blank, "no action", output c + 1 is class c. A causal model can process
a video in chunks of any length, because it returns its state. With a look-ahead of N frames, the output of a frame is computed
when N more frames have come; after the last frame of a video the features of N more are zero.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.backbones import Normalise, build_backbone, check_backbone
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.timm_models import Size
from trainers.tasks.video.ctc_loss import ctc, even_targets, frame_wise
from trainers.tasks.video.encoders import HEADS, Conformer, Convolutions, Encoder, EncoderKind, Recurrent
from trainers.tasks.video.motion import Motion
from trainers.tasks.weights import resolved_weights

LAYERS: dict[EncoderKind, int] = {"rnn": 1, "tcn": 5, "conformer": 3}
LossKind = Literal["ctc", "frames", "even"]


@dataclass(frozen=True)
class SequenceModelConfig:
    """The model of action sequences."""

    backbone: str = SMALL
    """Backbone by torchvision's name, timm's (timm/resnet18, ...), or your own: package.module:function; not used for
    skeletons."""
    weights: str = ""
    """Pretrained weights of the backbone: torchvision's name; "timm" for timm's own; a file, s3://bucket/key or https://...;
    empty: random weights."""
    motion: bool = False
    """Give the backbone, instead of red, green and blue: the brightness, its change since the frame before, and its difference
    from the mean of the video so far; only for RGB."""
    encoder: EncoderKind = "rnn"
    """What runs over the frames' features: an RNN; a TCN, dilated convolutions; a conformer, attention and convolutions."""
    cell: Literal["gru", "lstm"] = "gru"
    """Cell of the RNN."""
    hidden: int = 128
    layers: int = 0
    """Layers of the encoder; 0: 1 of an rnn, 5 of a tcn, 3 of a conformer."""
    causal: bool = True
    """Look only back and --model.lookahead frames ahead, which online recognition needs; else at the whole video."""
    lookahead: int = 0
    """Frames that are waited for before a frame's output is computed."""
    dropout: float = 0.3
    """Dropout of the frames' features, and within a tcn or conformer."""

    upgraded = staticmethod(with_full_name)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights."""
        object.__setattr__(self, "backbone", check_backbone(self.backbone, self.weights))
        object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        if self.hidden < 1 or min(self.layers, self.lookahead) < 0 or not 0 <= self.dropout < 1:
            remedy = "give at least 1 for hidden, 0 for layers and lookahead, and a dropout from 0 to below 1"
            raise InputError("settings of the model are out of range", "model", remedy)
        if self.lookahead and not self.causal:
            raise InputError("a model of the whole video needs no look-ahead", "model", "leave --model.lookahead out")
        if self.encoder == "conformer" and self.hidden % (2 * HEADS):
            raise InputError(f"model.hidden is {self.hidden}", "model", f"give a conformer a multiple of {2 * HEADS}")


class Pictures(nn.Module):
    """Frames uint8 [M, H, W, 3] -> features [M, F]."""

    def __init__(self, config: SequenceModelConfig, size: Size | None = None) -> None:
        super().__init__()
        self.normalise = Normalise(config.backbone)
        self.backbone, self.features = build_backbone(config.backbone, config.weights, size=size)

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalise(frames.permute(0, 3, 1, 2)))
        return features


class Skeletons(nn.Module):
    """Joints float [M, J, D] -> features [M, F]; each frame's joints are centred and scaled by their spread."""

    def __init__(self, joints: tuple[int, int], width: int = 128) -> None:
        super().__init__()
        self.features = width
        self.layers = nn.Sequential(nn.Linear(joints[0] * joints[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, frames: Tensor) -> Tensor:
        centred = frames - frames.mean(dim=1, keepdim=True)
        spread = centred.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)
        features: Tensor = self.layers((centred / spread).flatten(1))
        return features


class State(NamedTuple):
    """What a causal model keeps of a video's frames so far."""

    motion: Any
    encoder: Any
    frames: int
    """Their number."""


START = State(None, None, 0)


class SequenceModel(nn.Module):
    """Frames [B, T, ...] -> log-probabilities [B, T, C + 1].

    ``joints``: J, D of skeletons; None for images. ``size``: height and width of images, for backbones built for one size.
    """

    def __init__(
        self, config: SequenceModelConfig, classes: int, joints: tuple[int, int] | None = None, size: Size | None = None
    ) -> None:
        super().__init__()
        self.causal, self.lookahead, self.classes = config.causal, config.lookahead, classes
        self.motion = Motion() if config.motion else None
        self.frames = Skeletons(joints) if joints else Pictures(config, size)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = _encoder(config, self.frames.features)
        self.fc = nn.Linear(self.encoder.outputs, classes + 1)
        self.register_load_state_dict_pre_hook(_with_encoder)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-probabilities of whole videos; ``lengths`` [B]: their frames; outputs after a video's end are undefined."""
        real = None if lengths is None else _before(lengths, images.shape[1])
        features, _ = self._features(images, START, real)
        outputs, _ = self.encoder(
            F.pad(features, (0, 0, 0, self.lookahead)),
            None if lengths is None else _before(lengths + self.lookahead, images.shape[1] + self.lookahead),
            None,
        )
        return self._log_probs(outputs[:, self.lookahead :])

    def step(self, images: Tensor, state: State) -> tuple[Tensor, State]:
        """The next frames [t, ...] of one video, and the state after the frames before, `START` at first -> log-probabilities
        [n, C + 1] of the next frames whose look-ahead is over, and the state."""
        features, state = self._features(images[None], state)
        return self._next(features, state)

    def rest(self, state: State) -> Tensor:
        """Log-probabilities [n, C + 1] of the frames whose look-ahead was not over, at a video's end; ``state``: the last."""
        if not self.lookahead or state.frames == 0:
            return self.fc.weight.new_empty(0, self.classes + 1)
        return self._next(self.fc.weight.new_zeros(1, self.lookahead, self.frames.features), state)[0]

    def _next(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, encoder = self.encoder(features, None, state.encoder)
        log_probs = self._log_probs(outputs[0, max(self.lookahead - state.frames, 0) :])
        return log_probs, state._replace(encoder=encoder, frames=state.frames + features.shape[1])

    def _features(self, images: Tensor, state: State, real: Tensor | None = None) -> tuple[Tensor, State]:
        """Features [B, T, F] of frames [B, T, ...] after those of ``state``; zeros where a frame is not ``real`` [B, T]."""
        motion = state.motion
        if self.motion:
            images, motion = self.motion(images, motion)
        if real is None:
            features = self.frames(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        else:
            computed = self.frames(images[real])  # without padding, which would change the backbone's batch statistics
            features = computed.new_zeros(*images.shape[:2], computed.shape[1])
            features[real] = computed
        return self.dropout(features), state._replace(motion=motion)

    def _log_probs(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(self.fc(outputs).float(), dim=-1)


def _encoder(config: SequenceModelConfig, features: int) -> Encoder:
    layers = config.layers or LAYERS[config.encoder]
    if config.encoder == "rnn":
        return Recurrent(features, config.hidden, layers, config.cell, causal=config.causal)
    kind = Convolutions if config.encoder == "tcn" else Conformer
    return kind(features, config.hidden, layers, config.dropout, causal=config.causal)


def _before(lengths: Tensor, longest: int) -> Tensor:
    """Which of ``longest`` frames are before each video's end, [B, longest]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def _with_encoder(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Load weights that were stored when an RNN was the only encoder."""
    for name in [name for name in state if name.startswith(f"{prefix}rnn.")]:
        state[f"{prefix}encoder.{name.removeprefix(prefix)}"] = state.pop(name)


class SequenceTask(nn.Module):
    """What a run trains, with one of three losses: "ctc", or as baselines "frames" (frame labels) and "even" (equal parts).

    A batch holds "clips" [B, T, ...], "lengths" [B], "targets" [B, U] padded with -1, and for "frames" also
    "frame_targets" [B, T]. ``group``: the ranks over whose frames a mean is taken. The gradient of R ranks equals that of one
    rank with all videos, except for batch norm (`trainers.engine.distributed`) and dropout.
    """

    def __init__(self, model: SequenceModel, kind: LossKind, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self.kind, self.group = model, kind, group

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        lengths, targets = batch["lengths"], batch["targets"]
        log_probs = self.model(batch["clips"], lengths)
        if self.kind == "ctc":
            return {"loss": ctc(log_probs, lengths, targets)}
        frame_targets = batch["frame_targets"] if self.kind == "frames" else even_targets(lengths, targets)
        return {"loss": frame_wise(log_probs, lengths, frame_targets, self.group)}


class FromClips(nn.Module):
    """A sequence model for export: uint8 videos [B, 3, T, H, W] -> log-probabilities [B, T, C + 1]."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        log_probs: Tensor = self.model(images.permute(0, 2, 3, 4, 1))
        return log_probs
