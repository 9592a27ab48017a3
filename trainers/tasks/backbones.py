"""Image backbones: torchvision's by their registry names, timm's, a small one of our own, and the user's own."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.small_net import OLD, SMALL, small_net
from trainers.tasks.timm_models import (
    Size,
    TimmLevels,
    TimmMap,
    build_timm,
    check_timm,
    input_size,
    is_timm,
    level_indices,
    pretrained_cfg,
    timm_weights,
)  # fmt: skip
from trainers.tasks.user_models import (
    DOCS,
    REFUSALS,
    SIDE,
    ask,
    build_users,
    check_users,
    features_of,
    first_line,
    is_users,
)  # fmt: skip
from trainers.tasks.weights import check_weights, is_file, load_weights, report_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
LEVELS = 3  # feature maps of a backbone that are returned: the deepest of each size
# Classifiers that take any image size and end in one flat vector before an `fc` or `classifier`.
_FAMILIES = ("resnet*", "resnext*", "wide_resnet*", "mobilenet*", "shufflenet*", "mnasnet*", "efficientnet*", "regnet*")


def torchvision_models() -> Any:
    """torchvision's registry, imported only when it is used: that takes 2 s of CPU."""
    from torchvision import models

    return models


def backbone_names() -> list[str]:
    """The names of `build_backbone`'s own, sorted; it also takes "small" for ours, timm's models and user models."""
    models = torchvision_models()
    return sorted([OLD, SMALL, *models.list_models(module=models, include=_FAMILIES)])


def check_backbone(name: str, weights: str = "", last_stride: int = 2) -> str:
    """Return the full name of the backbone that `build_backbone` would build, without building it.

    Raises:
        InputError: an unknown name (with similar ones), weights that it does not have, or a wrong stride.
    """
    if is_users(name):
        check_users(name)
    elif is_timm(name):
        check_timm(name)
        check_weights(weights, timm_weights(name), name)
    else:
        name = SMALL if name == "small" else name
        if name not in (OLD, SMALL) and name not in (names := backbone_names()):
            close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
            raise InputError("unknown backbone", name, f"did you mean {', '.join(close)}?" if close else f"try {SMALL}")
        known = [] if name in (OLD, SMALL) else list(torchvision_models().get_model_weights(name).__members__)
        check_weights(weights, known, name)
    if last_stride not in (1, 2):
        raise InputError("the last stride must be 1 or 2", str(last_stride))
    if last_stride == 1 and not (is_timm(name) or name.startswith("resnet")):
        raise InputError("a last stride of 1 is for resnets of torchvision and CNNs of timm", name, "leave it at 2")
    return name


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, as fractions of 255, that a backbone's images are normalised with.

    A model of timm has its own, whatever its weights are; all others have ImageNet's.
    """
    found = pretrained_cfg(name) if is_timm(name) else None
    return (tuple(found.mean), tuple(found.std)) if found else (MEAN, STD)


class Normalise(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> normalised by a backbone's mean and deviation (`statistics`)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = SMALL) -> None:
        super().__init__()
        mean, std = statistics(backbone)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def build_backbone(
    name: str, weights: str = "", last_stride: Literal[1, 2] = 2, size: Size | None = None
) -> tuple[nn.Module, int]:
    """Return a module that maps images [B, 3, H, W] (float, normalised) to pooled features [B, F], and F.

    ``weights``: torchvision's name for that model, such as "IMAGENET1K_V2" or "DEFAULT"; "timm" for a model of timm; a file
    (`trainers.tasks.weights`); empty: random ones. ``last_stride=1`` makes the last feature map of a resnet, or of a CNN of timm,
    twice as high and wide, which improves re-ID (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification", CVPRW 2019); the weights fit both. ``size``: height and width of the images, which vision transformers
    are built for.

    Raises:
        InputError: as `check_backbone`, `build_users`, `build_timm` and `load_weights`; or the weights cannot be downloaded.
    """
    name = check_backbone(name, weights, last_stride)
    if is_users(name):
        own = build_users(name, weights)
        return own, features_of(own, name)
    if is_timm(name):
        model = build_timm(name, weights, size, last_stride=last_stride)
        features = features_of(model, name, size or input_size(name))
    else:
        model, features = _build_torchvisions(name, weights, last_stride)
    if is_file(weights):
        load_weights(model, weights)
    return model, features


def _build_torchvisions(name: str, weights: str, last_stride: int) -> tuple[nn.Module, int]:
    """A model of torchvision, or our small one, without its classifier; and its features."""
    named = None if is_file(weights) else weights or None
    try:
        model: Any = small_net(name) if name in (OLD, SMALL) else torchvision_models().get_model(name, weights=named)
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


def build_level_backbone(name: str, weights: str = "", size: Size | None = None) -> tuple[nn.Module, int, list[int]]:
    """A backbone that also returns intermediate feature maps, the levels; raises as `build_backbone`.

    Returns a module, images -> {"pooled": [B, F], "0": [B, C0, h, w], "1": [B, C1, h, w], ...}, then F and [C0, C1, ...]. The
    levels are the deepest maps of the `LEVELS` smallest sizes above one pixel, the largest first. User backbones may have none.
    """
    backbone, features = build_backbone(name, weights, size=size)
    if is_timm(name):
        indices, counts = level_indices(backbone)
        return TimmLevels(backbone, indices[-LEVELS:]), features, counts[-LEVELS:]
    levels = _levels(backbone, name)
    channels = [count for _, count in levels]
    if is_users(name):
        return WithLevels(backbone, [module_name for module_name, _ in levels]), features, channels
    last = "fc" if hasattr(backbone, "fc") else "classifier"
    nodes = {**{module_name: str(level) for level, (module_name, _) in enumerate(levels)}, last: "pooled"}
    from torchvision.models.feature_extraction import create_feature_extractor  # here, as with `torchvision_models`

    extractor = create_feature_extractor(backbone.eval(), nodes)
    extractor.weights_report = report_of(backbone)  # of which it keeps the layers alone
    return extractor, features, channels


def build_map_backbone(
    name: str, weights: str = "", last_stride: Literal[1, 2] = 2, size: Size | None = None
) -> tuple[nn.Module, int]:
    """Return a module that maps images to the last feature map [B, C, h, w], not pooled, and C.

    Raises:
        InputError: as `build_backbone`, or the backbone's modules return no such map.
    """
    if is_timm(name):
        model = build_timm(name, weights, size, pool="", last_stride=last_stride)
        if is_file(weights):
            load_weights(model, weights)
        found = ask(unpooled := TimmMap(model), torch.zeros(1, 3, *(size or input_size(name))))
        if not isinstance(found, Tensor):
            raise InputError(f"the backbone gives no map to pool ({first_line(found)})", name, "leave --model.pooling out")
        return unpooled, found.shape[1]
    backbone, _ = build_backbone(name, weights, last_stride, size)
    levels = _levels(backbone, name)
    if not levels:
        raise InputError("the backbone's modules return no map to pool", name, "leave --model.pooling out")
    return LastMap(backbone, [levels[-1][0]]), levels[-1][1]


def _levels(backbone: nn.Module, name: str) -> list[tuple[str, int]]:
    """The modules that return the deepest maps of the `LEVELS` smallest sizes, the largest first, and their channels."""
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
    return [maps[height] for height in sorted(maps, reverse=True)[-LEVELS:]]


def try_model(name: str, weights: str, build: Callable[[], nn.Module], inputs: Tensor, *, always: bool = False) -> Any:
    """Build a job's model on the driver and return its output for inputs as in training; prints which weights were loaded.

    None, and nothing is built, if nothing can be wrong with it: a backbone of torchvision or ours, without a file of weights,
    unless ``always``.

    Raises:
        InputError: as `build_backbone`, or the model cannot take the inputs.
    """
    if not (always or is_users(name) or is_timm(name) or is_file(weights)):
        return None
    model = build()
    if report := report_of(model):
        print(report)
    try:
        with torch.no_grad():
            return model.train()(inputs)
    except REFUSALS as error:
        what = f"the model cannot be trained on inputs of {list(inputs.shape)} ({first_line(error)})"
        raise InputError(what, name, DOCS) from error


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


class LastMap(WithLevels):
    """Images -> the output of the one module that it is built for."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # one of the tensors that the other returns
        return super().forward(images)["0"]
