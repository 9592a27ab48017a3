"""Backbones of timm, by the names ``timm/<its name>``. timm is imported only when such a name is used: that takes 4 s."""

import difflib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers.tasks.weights import is_file, load_weights

PREFIX = "timm/"
PRETRAINED = "timm"  # the name of timm's own weights
FINEST = 4  # reduction of a pyramid's largest map
LAST = 32  # reduction of the last feature map of timm's CNNs
Size = tuple[int, int]


def is_timm(name: str) -> bool:
    """Whether a backbone's name is one of timm's."""
    return name.startswith(PREFIX)


def timm() -> Any:
    """The package."""
    import timm

    return timm


def check_timm(name: str) -> None:
    """Raise InputError for a name that timm does not have, with similar ones, or for an unknown tag of pretrained weights."""
    bare, models = name.removeprefix(PREFIX), timm().list_models()
    if not timm().is_model(bare):
        close = difflib.get_close_matches(bare.lower(), models, n=3, cutoff=0.5)
        remedy = f"did you mean {', '.join(PREFIX + each for each in close)}?" if close else "timm.list_models() lists its names"
        raise InputError("timm has no such model", name, remedy)
    try:
        pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm().list_pretrained(f"{bare.partition('.')[0]}.*")
        remedy = f"it has {', '.join(PREFIX + each for each in tags[:5])}" if tags else "leave the tag out"
        raise InputError("timm has no weights of this tag", name, remedy) from error


def pretrained_cfg(name: str) -> Any:
    """timm's facts of a model: mean, std, fixed_input_size, ...; None if it was registered without."""
    from timm.models import get_pretrained_cfg

    bare = name.removeprefix(PREFIX)
    return get_pretrained_cfg(bare, allow_unregistered="." not in bare)


def timm_weights(name: str) -> list[str]:
    """``["timm"]`` if timm has pretrained weights for a model, else an empty list. The name may begin with "timm/"."""
    return [PRETRAINED] if timm().is_model_pretrained(name.removeprefix(PREFIX)) else []


def is_fixed(name: str) -> bool:
    """Whether a model takes images of one size alone, which is given when it is built: vision transformers, mostly."""
    found = pretrained_cfg(name)
    return found is not None and bool(found.fixed_input_size)


def input_size(name: str) -> Size:
    """Height and width of the images that timm builds a model for by default."""
    found = pretrained_cfg(name)
    return tuple(found.input_size[1:]) if found else (224, 224)


def build_timm(name: str, weights: str = "", size: Size | None = None, *, pool: str | None = None, last_stride: int = 2) -> Any:
    """A model of timm without its classifier.

    ``weights``: "timm" for its own. ``size``: height and width of the images; None: what timm takes by default. ``pool``: timm's
    name of a pooling, "" for none; None: the model's own. ``last_stride`` 1: a CNN's last feature map is twice as high and wide;
    timm dilates the convolutions that follow, so that they see as much of the image as before.

    Raises:
        InputError: the model cannot be built for such images or with such a stride, or its weights cannot be downloaded.
    """
    options: dict[str, Any] = {"img_size": size if is_fixed(name) else None, "global_pool": pool}  # None: not given
    options |= {"output_stride": LAST // 2} if last_stride == 1 else {}
    bare = name.removeprefix(PREFIX)
    try:
        return timm().create_model(bare, pretrained=weights == PRETRAINED, num_classes=0, **options)
    except OSError as error:
        remedy = "download them into HF_HOME on a machine with a network, or train without weights"
        raise InputError("the weights cannot be downloaded", f"{name} ({str(error).splitlines()[0][:100]})", remedy) from error
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        given = f" for images of {size[0]}x{size[1]}" if size else ""
        remedy = "choose another size or model"
        if last_stride == 1:
            given, remedy = (
                f"{given} with a last stride of 1",
                "leave the last stride at 2, or choose a CNN, such as timm/resnet50",
            )
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"timm cannot build the model{given} ({reason})", name, remedy) from error


def level_indices(model: Any) -> tuple[list[int], list[int]]:
    """The last of the model's feature maps of each size, the largest first, and their channels; none if it gives no maps."""
    if not hasattr(model, "forward_intermediates"):
        return [], []
    last = {int(each["reduction"]): (number, int(each["num_chs"])) for number, each in enumerate(model.feature_info)}
    found = [last[reduction] for reduction in sorted(last)]
    return [number for number, _ in found], [channels for _, channels in found]


class TimmLevels(nn.Module):
    """Images -> {"pooled": [B, F], "0": [B, C0, h, w], ...}: the pooled features of a model, and maps of it, by their indices."""

    def __init__(self, model: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.model, self.indices = model, list(indices)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features, maps = self.model.forward_intermediates(images, indices=self.indices, output_fmt="NCHW")
        return {"pooled": self.model.forward_head(features), **{str(level): each for level, each in enumerate(maps)}}


class TimmMap(nn.Module):
    """Images -> the last feature map [B, C, h, w] of a model that was built without pooling; of tokens those of patches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.last = model.feature_info[-1]["reduction"]

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model(images)
        if found.ndim == 4:
            return found.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else found
        patches = found[:, getattr(self.model, "num_prefix_tokens", 0) :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], images.shape[2] // self.last, images.shape[3] // self.last)


class TimmPyramid(nn.Module):
    """Images -> maps [B, C, h, w], the largest first: a feature pyramid on the maps of 1/4 of the image's size and smaller.

    C is ``channels`` (Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017).
    """

    def __init__(self, model: Any, channels: int) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork  # here, as in `backbones.torchvision_models`

        indices, counts = level_indices(model)
        fine = [level for level, index in enumerate(indices) if model.feature_info[index]["reduction"] >= FINEST]
        self.indices = [indices[level] for level in fine]
        model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)  # DDP cannot train what is not used
        self.body, self.fpn = model, FeaturePyramidNetwork([counts[level] for level in fine], channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(images, indices=self.indices, intermediates_only=True, output_fmt="NCHW")
        found: dict[str, Tensor] = self.fpn(OrderedDict((str(level), each) for level, each in enumerate(maps)))
        return found


def build_pyramid(name: str, channels: int, weights: str = "", *, frozen: bool = False) -> TimmPyramid:
    """A feature pyramid of so many channels on a model of timm. ``frozen``: its batch norms keep their statistics and weights.

    Raises:
        InputError: as `build_timm`, or the model gives no maps of images of any size.
    """
    if is_fixed(name):
        what = "the model takes images of one size, and the sets of a detection run have their own"
        raise InputError(what, name, "choose a CNN, such as timm/resnet50")
    model = build_timm(name, weights)
    if not level_indices(model)[0]:
        raise InputError("the model gives no feature maps", name, "choose another one, such as timm/resnet50")
    if is_file(weights):
        load_weights(model, weights)
    if frozen:
        from timm.layers import freeze_batch_norm_2d

        model = freeze_batch_norm_2d(model)
    return TimmPyramid(model, channels)


def class_token(model: Any, name: str) -> Any:
    """The model, set to return its class token; raises InputError if it has none."""
    if not isinstance(getattr(model, "cls_token", None), torch.nn.Parameter):
        raise InputError("the backbone has no class token", name, "choose a vision transformer of timm, or another pooling")
    model.reset_classifier(0, "token")
    return model
