"""Models of action sequences: features of each frame, an RNN over time, and the probability of each action in each frame.

B videos, T frames, F features, C classes; output 0 is the blank, "no action", output c + 1 is class c. A causal model can process
a video in chunks of any length, because it returns its state.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from datasets.errors import InputError
from trainers.tasks.backbones import Normalise, build_backbone, check_backbone
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.timm_models import Size
from trainers.tasks.video.ctc_loss import ctc, even_targets, frame_wise
from trainers.tasks.weights import resolved_weights

State = Tensor | tuple[Tensor, Tensor]
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
    cell: Literal["gru", "lstm"] = "gru"
    hidden: int = 128
    layers: int = 1
    causal: bool = True
    """Use an RNN that only looks back, which online recognition needs; else a bidirectional one."""
    dropout: float = 0.3
    """Dropout of the frames' features."""

    upgraded = staticmethod(with_full_name)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights."""
        object.__setattr__(self, "backbone", check_backbone(self.backbone, self.weights))
        object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        if min(self.hidden, self.layers) < 1 or not 0 <= self.dropout < 1:
            raise InputError("model.hidden and model.layers must be at least 1, model.dropout at least 0 and below 1", "model")


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


class SequenceModel(nn.Module):
    """Frames [B, T, ...] -> log-probabilities [B, T, C + 1].

    ``joints``: J, D of skeletons; None for images. ``size``: height and width of images, for backbones built for one size.
    """

    def __init__(
        self, config: SequenceModelConfig, classes: int, joints: tuple[int, int] | None = None, size: Size | None = None
    ) -> None:
        super().__init__()
        self.causal, self.classes = config.causal, classes
        self.frames = Skeletons(joints) if joints else Pictures(config, size)
        self.dropout = nn.Dropout(config.dropout)
        cell = nn.GRU if config.cell == "gru" else nn.LSTM
        both = not config.causal
        self.rnn = cell(self.frames.features, config.hidden, config.layers, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(config.hidden * (2 if both else 1), classes + 1)

    def forward(self, images: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-probabilities of whole videos; ``lengths`` [B]: their frames; outputs after a video's end are undefined."""
        batch, longest = images.shape[:2]
        if lengths is None:
            outputs, _ = self.rnn(self.dropout(self.frames(images.flatten(0, 1)).unflatten(0, (batch, longest))))
        else:
            real = torch.arange(longest, device=images.device) < lengths[:, None]
            computed = self.frames(images[real])  # without padding, which would change the backbone's batch statistics
            features = computed.new_zeros(batch, longest, computed.shape[1])
            features[real] = computed
            packed = pack_padded_sequence(self.dropout(features), lengths.cpu(), batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=longest)
        return F.log_softmax(self.fc(outputs).float(), dim=2)

    def step(self, images: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The next frames [t, ...] of one video, and the state after the frames before -> log-probabilities [t, C + 1], state."""
        outputs, state = self.rnn(self.dropout(self.frames(images))[None], state)
        return F.log_softmax(self.fc(outputs[0]).float(), dim=1), state


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
