"""Image backbones: torchvision's by their registry names, a small one of our own, and the user's own."""

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.user_models import SIDE, ask, build_users, check_users, features_of, is_users

SMALL = "hardshard_small"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
LEVELS = 3  # feature maps of a backbone that are returned: the deepest of each size
# Classifiers that take any image size and end in one flat vector before an `fc` or `classifier`.
_FAMILIES = ("resnet*", "resnext*", "wide_resnet*", "mobilenet*", "shufflenet*", "mnasnet*", "efficientnet*", "regnet*")


def torchvision_models() -> Any:
    """torchvision's registry, imported only when it is used: that takes 2 s of CPU."""
    from torchvision import models

    return models


def backbone_names() -> list[str]:
    """The names that `build_backbone` takes, sorted; it also takes "small" for ours, and user models."""
    models = torchvision_models()
    return sorted([SMALL, *models.list_models(module=models, include=_FAMILIES)])


def check_backbone(name: str, weights: str = "", last_stride: int = 2) -> str:
    """Return the full name of the backbone that `build_backbone` would build, without building it.

    Raises:
        InputError: an unknown name (with similar ones), weights that it does not have, or a wrong stride.
    """
    if is_users(name):
        check_users(name)
    name = SMALL if name == "small" else name
    if name != SMALL and not is_users(name) and name not in (names := backbone_names()):
        close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        raise InputError("unknown backbone", name, f"did you mean {', '.join(close)}?" if close else f"try {SMALL}")
    known = [] if name == SMALL or is_users(name) else list(torchvision_models().get_model_weights(name).__members__)
    if weights and weights not in known and not is_users(name):
        remedy = f"use one of {', '.join(known)}" if known else "leave the weights out: it has none"
        raise InputError(f"backbone {name} has no weights of this name", weights, remedy)
    if last_stride not in (1, 2):
        raise InputError("the last stride must be 1 or 2", str(last_stride))
    if last_stride == 1 and not name.startswith("resnet"):
        raise InputError("a last stride of 1 is for resnets", name, "leave it at 2")
    return name


class Normalise(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> normalised by ImageNet's mean and deviation, for the backbones."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def build_backbone(name: str, weights: str = "", last_stride: Literal[1, 2] = 2) -> tuple[nn.Module, int]:
    """Return a module that maps images [B, 3, H, W] (float, normalised) to pooled features [B, F], and F.

    ``weights``: torchvision's name for that model, such as "IMAGENET1K_V2" or "DEFAULT"; empty: random ones. ``last_stride=1``
    makes a resnet's last feature map twice as high and wide, which improves re-ID (Luo et al., "Bag of Tricks and a Strong
    Baseline for Deep Person Re-identification", CVPRW 2019); the weights fit both.

    Raises:
        InputError: as `check_backbone` and `build_users`; or the weights cannot be downloaded.
    """
    name = check_backbone(name, weights, last_stride)
    try:
        if is_users(name):
            own = build_users(name, weights)
            return own, features_of(own, name)
        model: Any = SmallNet() if name == SMALL else torchvision_models().get_model(name, weights=weights or None)
    except OSError as error:
        remedy = "download them into TORCH_HOME on a machine with a network, or train without weights"
        raise InputError(f"the weights of {name} cannot be downloaded", f"{weights} ({error})", remedy) from error
    if last_stride == 1:
        for module in model.layer4.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    classifier = "fc" if hasattr(model, "fc") else "classifier"
    first = next(module for module in getattr(model, classifier).modules() if isinstance(module, nn.Linear))
    setattr(model, classifier, nn.Identity())
    return model, first.in_features


def build_level_backbone(name: str, weights: str = "") -> tuple[nn.Module, int, list[int]]:
    """A backbone that also returns intermediate feature maps, the levels; raises as `build_backbone`.

    Returns a module, images -> {"pooled": [B, F], "0": [B, C0, h, w], "1": [B, C1, h, w], ...}, then F and [C0, C1, ...]. The
    levels are the deepest maps of the `LEVELS` smallest sizes above one pixel, the largest first. User backbones may have none.
    """
    backbone, features = build_backbone(name, weights)
    maps: dict[int, tuple[str, int]] = {}  # by height: the last module that returns such a map, and its channels

    def note(module_name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
            maps[output.shape[2]] = (module_name, output.shape[1])

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=module_name: note(name, output))
        for module_name, module in backbone.named_modules()
        if (module_name.count(".") < 2 or is_users(name)) and not isinstance(module, nn.AdaptiveAvgPool2d)
    ]
    if isinstance(ask(backbone, torch.zeros(1, 3, SIDE, SIDE)), Exception):  # it takes only images of another size
        maps.clear()
    for hook in hooks:
        hook.remove()
    levels = [maps[height] for height in sorted(maps, reverse=True)[-LEVELS:]]
    channels = [count for _, count in levels]
    if is_users(name):
        return WithLevels(backbone, [module_name for module_name, _ in levels]), features, channels
    last = "fc" if hasattr(backbone, "fc") else "classifier"
    nodes = {**{module_name: str(level) for level, (module_name, _) in enumerate(levels)}, last: "pooled"}
    from torchvision.models.feature_extraction import create_feature_extractor  # here, as with `torchvision_models`

    return create_feature_extractor(backbone.eval(), nodes), features, channels


class WithLevels(nn.Module):
    """A backbone that also returns the outputs of some of its modules, by hooks: torch.fx may fail to trace a user's code."""

    def __init__(self, backbone: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, tuple(names)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def note(level: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[str(level)] = output

        modules = [self.backbone.get_submodule(name) for name in self.names]
        hooks = [module.register_forward_hook(partial(note, level)) for level, module in enumerate(modules)]
        try:
            found["pooled"] = self.backbone(images)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class _Stage(nn.Module):
    """A convolution of stride 2, then residual ones: [B, inputs, H, W] -> [B, outputs, H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int, residuals: int) -> None:
        super().__init__()
        self.halve = _conv(inputs, outputs, stride=2)
        self.residuals = nn.ModuleList(_conv(outputs, outputs, stride=1) for _ in range(residuals))

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x).relu_()
        for residual in self.residuals:
            x = (residual(x) + x).relu_()
        return x


class SmallNet(nn.Module):
    """A four-stage residual network of about 0.4M parameters, for glyphs and small person crops on a CPU.

    Images [B, 3, H, W], H and W at least 16 -> scores [B, classes]. The last map is 1/16 of the image's height and width, with
    128 channels. The early stages have one convolution each, as their maps are large; most parameters are in the last stage.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stages = nn.Sequential(_Stage(3, 16, 0), _Stage(16, 32, 0), _Stage(32, 64, 0), _Stage(64, 128, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.stages(x)).flatten(1)
        scores: Tensor = self.fc(pooled)
        return scores
