"""Models of single actions by name: this project's (`OURS`), torchvision's video models, and a user's own.

B clips of a batch, L frames, C classes.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from datasets.errors import InputError
from datasets.loading.clips import ClipConfig
from trainers.tasks.backbones import check_backbone, statistics, try_model
from trainers.tasks.small_net import SMALL, with_full_name
from trainers.tasks.user_models import DOCS, build_users, check_users, described, is_users
from trainers.tasks.video.c3d import WIDTH
from trainers.tasks.video.cnn2d import cnn2d  # noqa: F401 - registers it
from trainers.tasks.video.cnn_lstm import cnn_lstm  # noqa: F401 - registers it
from trainers.tasks.video.i3d import i3d  # noqa: F401 - registers it
from trainers.tasks.video.skeleton_cnn import skeleton_cnn  # noqa: F401 - registers it
from trainers.tasks.weights import resolved_weights

CONVOLUTIONAL = ("c3d", "c3d_lstm", "i3d")  # in space and time
ON_BACKBONES = ("cnn_lstm", "cnn2d")
OF_SKELETONS = ("skeleton_cnn", "cnn_lstm")
OURS = (*CONVOLUTIONAL, *ON_BACKBONES, "skeleton_cnn")
TWO_CHANNELS = ("c3d", "c3d_lstm", "i3d", "cnn2d")  # take flow as it is; others a third channel of zeros
MIN_JOINT_FRAMES = 8  # of skeleton_cnn, which halves time three times
Joints = tuple[int, int]
MIDDLE = ((0.5,) * 3, (0.5,) * 3)  # mean and deviation that map 0..1 to -1..1


def action_model_names() -> list[str]:
    """The names of the models in torchvision's registry that can be trained on actions, sorted."""
    return sorted([*OURS, *models.list_models(module=models.video)])


@dataclass(frozen=True)
class ActionModelConfig:
    """The model of single actions."""

    name: str = "i3d"
    """c3d, c3d_lstm (over parts of 16 frames), i3d, cnn_lstm, cnn2d (the nets of two-stream networks: on each frame of RGB, or
    on all frames of flow at once), a video model of torchvision (s3d, r3d_18, mvit_v2_s, ...), or your own:
    package.module:function. For skeletons: skeleton_cnn or cnn_lstm."""
    weights: str = ""
    """Pretrained weights by torchvision's name, such as DEFAULT: of GoogLeNet (i3d), the backbone (cnn_lstm, cnn2d) or the model.
    Of a backbone also "timm" for timm's own, or a file, s3://bucket/key or https://..."""
    width: int = WIDTH
    """c3d, c3d_lstm, i3d, skeleton_cnn: channels of the first convolution; all other layers scale with it. 64 in the papers."""
    batch_norm: bool = True
    """c3d and c3d_lstm: batch norm after each convolution; the paper has none."""
    backbone: str = SMALL
    """cnn_lstm and cnn2d: the backbone, by torchvision's name, timm's (timm/resnet18, ...), or your own:
    package.module:function."""
    hidden: int = 256
    """cnn_lstm and c3d_lstm: width of the LSTM."""
    dropout: float = 0.5

    @staticmethod
    def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of an earlier version: its C3D had no batch norm."""
        return {**({"batch_norm": False} if "width" in settings else {}), **with_full_name(settings)}

    def __post_init__(self) -> None:
        """Raises InputError for an unknown name, backbone or weights."""
        if is_users(self.name):
            check_users(self.name)
        elif self.name not in action_model_names():
            close = difflib.get_close_matches(self.name.lower(), action_model_names(), n=3, cutoff=0.4)
            raise InputError("unknown model", self.name, f"did you mean {', '.join(close or OURS)}?")
        if self.name in ON_BACKBONES:
            object.__setattr__(self, "backbone", check_backbone(self.backbone, self.weights))
            object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        elif not is_users(self.name):
            source = "googlenet" if self.name == "i3d" else self.name
            known = [] if self.name in ("c3d", "c3d_lstm", "skeleton_cnn") else list(models.get_model_weights(source).__members__)
            if self.weights and self.weights not in known:
                raise InputError(
                    f"{self.name} has no weights of this name", self.weights, f"it has: {', '.join(known) or 'none'}"
                )
        if self.width < 1 or self.hidden < 1 or not 0 <= self.dropout < 1:
            raise InputError("model.width and model.hidden must be at least 1, model.dropout at least 0 and below 1", "model")


class Actions(nn.Module):
    """Clips uint8 [B, 3, L, H, W], RGB or stored flow, or skeletons float [B, L, J, D] -> logits [B, C]; normalises its input.

    ``joints``: J, D of skeletons, None for other streams. ``fetch``: load the pretrained weights that the config names; False: a
    trained model will be loaded into the same layers.
    Raises InputError when C3D cannot take clips of that shape, or the weights cannot be fetched.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ActionModelConfig, classes: int, clip: ClipConfig, stream: str, joints: Joints | None = None, *,
        fetch: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.joints = joints
        self.channels = 2 if stream == "flow" and config.name in TWO_CHANNELS else 3
        mean, std = _statistics(config, stream)
        self.register_buffer("mean", torch.tensor(mean[: self.channels]).view(1, -1, 1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std[: self.channels]).view(1, -1, 1, 1, 1) * 255, persistent=False)
        self.net = _build(config, classes, clip, self.channels, joints, fetch)

    def forward(self, images: Tensor) -> Tensor:
        if self.joints is None:
            images = (images[:, : self.channels] - self.mean) / self.std
        logits: Tensor = self.net(images)
        return logits


def check_clips(config: ActionModelConfig, classes: int, clip: ClipConfig, stream: str) -> None:
    """Raise InputError when the model cannot take clips of that shape or stream; without computing, except for a user's own
    model."""
    if (stream == "skeletons" and config.name not in OF_SKELETONS) or (stream != "skeletons" and config.name == "skeleton_cnn"):
        remedy = f"for skeletons set --model.name to {' or '.join(OF_SKELETONS)}, for images to another model"
        raise InputError(f"{config.name} cannot take {stream}", "--model.name", remedy)
    if stream == "skeletons":
        if clip.frames < MIN_JOINT_FRAMES:
            raise InputError(f"clips of {clip.frames} frames are too short", "clip", f"use {MIN_JOINT_FRAMES} frames or more")
        return
    inputs = torch.zeros(2, 3, clip.frames, *clip.size)
    name, weights = (config.backbone, config.weights) if config.name in ON_BACKBONES else (config.name, "")
    output = try_model(name, weights, lambda: Actions(config, classes, clip, stream), inputs)
    if output is not None:
        if not isinstance(output, Tensor) or output.shape != (2, classes):
            raise InputError(f"of 2 clips it gives {described(output)}, not logits [2, {classes}]", config.name, DOCS)
        return
    try:
        with torch.device("meta"), torch.no_grad():
            model = Actions(config, classes, clip, stream, fetch=False).eval()
            model(torch.zeros(1, 3, clip.frames, *clip.size))
    except (RuntimeError, ValueError, IndexError) as error:
        what = f"{config.name} cannot take clips of {clip.frames} frames of {clip.size[0]}x{clip.size[1]}"
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"{what} ({reason})", "clip", "use more frames, or the size that the model is made for") from error


class ActionsTask(nn.Module):
    """What a run trains, on batches of "clips" uint8 [B, L, H, W, 3] (skeletons: float [B, L, J, D]) and "labels" [B]; returns
    the "loss", cross-entropy, and the "accuracy" of the batch.

    ``smoothing``: share of the label that all classes get. ``mixup``: the parameter of the beta distribution that shares of mixed
    clips are drawn from (Zhang et al., "mixup", ICLR 2018); 0: clips are not mixed.
    """

    def __init__(self, model: Actions, smoothing: float = 0.0, mixup: float = 0.0) -> None:
        super().__init__()
        self.model, self.smoothing, self.mixup = model, smoothing, mixup

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        clips, labels = channels_second(batch["clips"]), batch["labels"]
        if self.mixup:
            loss, logits = self._mixed(clips, labels)
        else:
            logits = self.model(clips).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def _mixed(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits of each clip mixed with the one at the other end of the batch."""
        share = torch.distributions.Beta(self.mixup, self.mixup).sample((len(labels),)).to(clips.device)
        wide = share.view(-1, *[1] * (clips.ndim - 1))
        logits = self.model(clips * wide + clips.flip(0) * (1 - wide)).float()
        each = [F.cross_entropy(logits, to, label_smoothing=self.smoothing, reduction="none") for to in (labels, labels.flip(0))]
        return (share * each[0] + (1 - share) * each[1]).mean(), logits


def channels_second(clips: Tensor) -> Tensor:
    """Clips [B, L, H, W, 3] as models take them, [B, 3, L, H, W]; skeletons [B, L, J, D] stay as they are."""
    return clips if clips.ndim == 4 else clips.permute(0, 4, 1, 2, 3)


def _build(
    config: ActionModelConfig, classes: int, clip: ClipConfig, channels: int, joints: Joints | None, fetch: bool
) -> nn.Module:
    options: dict[str, Any] = {"dropout": config.dropout}
    weights = config.weights if fetch and config.weights else None
    if config.name in CONVOLUTIONAL:
        options |= {"width": config.width, "channels": channels}
    if config.name in ("c3d", "c3d_lstm"):
        options |= {"size": clip.size, "batch_norm": config.batch_norm}
    if config.name in ("c3d", "cnn2d"):
        options |= {"frames": clip.frames}
    if config.name in ("c3d_lstm", "cnn_lstm"):
        options |= {"hidden": config.hidden}
    if config.name == "i3d":
        options |= {"flat": bool(config.weights)}
    if config.name in ON_BACKBONES:
        options |= {"backbone": config.backbone, "size": clip.size}
    if config.name == "cnn2d":
        options |= {"channels": channels}
    if joints:
        options |= {"joints": joints}
    if config.name == "skeleton_cnn":
        options |= {"width": config.width}
    try:
        if is_users(config.name):
            return build_users(config.name, config.weights, num_classes=classes)
        if config.name not in OURS:
            return _of_torchvision(config.name, weights, classes)
        model: nn.Module = models.get_model(config.name, weights=weights, num_classes=classes, **options)
    except OSError as error:
        remedy = "fetch them where there is a network, into TORCH_HOME, or train without weights"
        raise InputError(f"the weights of {config.name} can't be fetched", f"{config.weights} ({error})", remedy) from error
    return model


def _of_torchvision(name: str, weights: str | None, classes: int) -> nn.Module:
    """A video model of torchvision with a new last layer for these classes."""
    model: nn.Module = models.get_model(name, weights=weights)
    path, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv3d)][-1]
    parent, _, attribute = path.rpartition(".")
    new = nn.Linear(last.in_features, classes) if isinstance(last, nn.Linear) else nn.Conv3d(last.in_channels, classes, 1)
    setattr(model.get_submodule(parent), attribute, new)
    return model


def _statistics(config: ActionModelConfig, stream: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, as fractions of 255, to normalise a model's input with; not of skeletons."""
    if stream == "flow":
        return (128 / 255,) * 3, (127 / 255,) * 3
    name = config.name
    if name in ON_BACKBONES:
        return statistics(config.backbone)
    if name in OURS or is_users(name):
        return MIDDLE
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)
