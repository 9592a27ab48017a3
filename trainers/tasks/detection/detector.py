"""Faster R-CNN (Ren et al., NeurIPS 2015) on several backbones, built from torchvision's parts.

torchvision's own model resizes and pads images; here all images of a batch have one size. The parts are called one by one,
because region alignment needs the regions and their features.

B images [B, 3, H, W]; C classes, numbered from 1 as torchvision does (0 is the background); R regions of an image; F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d, MultiScaleRoIAlign

from datasets.errors import InputError
from trainers.tasks.backbones import Normalise, check_backbone
from trainers.tasks.timm_models import build_pyramid, is_timm
from trainers.tasks.user_models import DOCS, SIDE, ask, build_users, described, first_line, is_users
from trainers.tasks.weights import check_weights, is_file, load_weights, resolved_weights

SMALL, VGG16 = "small", "vgg16"
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
POOLED = 7  # side of a region's pooled feature map
MIN_SIDE = 16  # pixels; the feature map of a smaller image is too small


@dataclass(frozen=True)
class DetectorConfig:
    """The detector."""

    backbone: str = SMALL
    """small (about 1.1M parameters, for a CPU), vgg16 (one scale, as in the paper), resnet18 to resnet152 (feature pyramid), a
    CNN of timm such as timm/convnext_atto (feature pyramid), or your own: package.module:function."""
    weights: str = ""
    """Pretrained weights of the backbone: torchvision's name, such as DEFAULT; "timm" for timm's own; a file, s3://bucket/key or
    https://...; empty: random weights."""
    anchors: tuple[int, ...] = ()
    """Sides of the anchors in pixels, with a feature pyramid one for each of its 5 levels; empty: the backbone's defaults."""
    pyramid: int = 256
    """Channels of each map of the feature pyramid on a CNN of timm; 64 take a quarter of the time on a CPU."""
    hidden: int = 1024
    """Width of the head that classifies regions, of a backbone of timm or your own."""
    regions: int = 128
    """Regions of an image to train on and to align; 512 in the papers."""

    def __post_init__(self) -> None:
        """Raises InputError for an unknown backbone or weights."""
        if is_users(self.backbone) or is_timm(self.backbone):
            check_backbone(self.backbone, self.weights)
        elif self.backbone not in (known := (SMALL, VGG16, *RESNETS)):
            raise InputError(f"unknown backbone '{self.backbone}'", "model", f"use one of {', '.join(known)}")
        else:
            offered = [] if self.backbone == SMALL else list(models.get_model_weights(self.backbone).__members__)
            check_weights(self.weights, offered, self.backbone)
        object.__setattr__(self, "weights", resolved_weights(self.weights, self.backbone))
        if self.regions < 8 or any(side < 1 for side in self.anchors):
            raise InputError("model.regions must be at least 8, model.anchors sides of at least 1 pixel", "model")
        if self.pyramid < 1 or self.hidden < 1:
            raise InputError("model.pyramid and model.hidden must be at least 1", "model")
        if self.anchors and self.backbone in RESNETS and len(self.anchors) != 5:
            raise InputError(f"{len(self.anchors)} anchors for 5 levels", "model", "give one side for each level")


class Regions(NamedTuple):
    """Regions of B images: ``boxes`` of each image [R_i, 4] in pixels, ``features`` [sum of R_i, F] of all images in order; and
    ``maps`` [B, C, h, w], the levels that they were pooled from."""

    boxes: list[Tensor]
    features: Tensor
    maps: list[Tensor]


class _CountingSampler:
    """Wraps torchvision's sampler of anchors, and counts the anchors that it sampled last."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.count = draw, 0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = self.draw(labels)
        self.count = sum(int(mask.sum()) for mask in (*positive, *negative))
        return positive, negative


class Detector(nn.Module):
    """RGB images [B, 3, H, W], uint8 or float in 0..255 -> for each a dict of boxes [n, 4] in pixels, labels [n], scores [n]."""

    def __init__(self, config: DetectorConfig, classes: int, *, fetch: bool = True) -> None:
        """``fetch``: load the pretrained weights that the config names; False: a trained model will be loaded into this one."""
        super().__init__()
        self.regions = config.regions
        parts = FasterRCNN(
            num_classes=classes + 1 if config.backbone in RESNETS else None, **_parts(config, classes, fetch=fetch),
            rpn_pre_nms_top_n_train=2000, rpn_post_nms_top_n_train=max(2 * config.regions, 256),
            rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_test=max(config.regions, 256),
            box_batch_size_per_image=config.regions, box_score_thresh=0.02,
        )  # fmt: skip
        self.normalise = Normalise(config.backbone)
        self.backbone, self.rpn, self.roi_heads = parts.backbone, parts.rpn, parts.roi_heads
        self.rpn.fg_bg_sampler = _CountingSampler(self.rpn.fg_bg_sampler)

    @property
    def width(self) -> int:
        """F, the number of features of a region."""
        predictor: Any = self.roi_heads.box_predictor
        return int(predictor.cls_score.in_features)

    @property
    def channels(self) -> int:
        """C, the number of channels of a feature map."""
        return int(self.backbone.out_channels)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The feature maps of the backbone, by level."""
        maps = self.backbone(self.normalise(images))
        return {"0": maps} if isinstance(maps, Tensor) else maps

    def losses(self, images: Tensor, targets: Sequence[dict[str, Tensor]]) -> tuple[dict[str, tuple[Tensor, int]], Regions]:
        """The four losses, each as a sum and the number of its terms, and the regions that they were computed on.

        A target has boxes [n, 4] float and labels [n] int64. At most 256 anchors and ``regions`` proposals of an image are used,
        sampled by torch's global generator if there are more.
        """
        maps, targets, sizes = self.maps(images), list(targets), _sizes(images)
        proposals, of_rpn = self.rpn(ImageList(images, sizes), maps, targets)
        boxes, _, labels, deltas = self.roi_heads.select_training_samples(proposals, targets)
        regions = Regions(boxes, self.pooled(maps, boxes, sizes), list(maps.values()))
        of_class, of_box = fastrcnn_loss(*self.of_regions(regions.features), labels, deltas)
        means = {
            "objectness": of_rpn["loss_objectness"], "proposal": of_rpn["loss_rpn_box_reg"], "class": of_class, "box": of_box
        }  # fmt: skip
        anchors, sampled = self.rpn.fg_bg_sampler.count, len(regions.features)
        counts = {"objectness": anchors, "proposal": anchors, "class": sampled, "box": sampled}
        return {name: (mean * counts[name], counts[name]) for name, mean in means.items()}, regions

    def best_regions(self, images: Tensor) -> Regions:
        """The regions with the highest objectness: at most ``regions`` of each image, the whole image if there are none."""
        maps, sizes = self.maps(images), _sizes(images)
        boxes = [b[: self.regions] for b in self.proposals(maps, images)]
        whole = images.new_tensor([[0, 0, images.shape[3], images.shape[2]]], dtype=torch.float32)
        boxes = [b if len(b) else whole for b in boxes]
        return Regions(boxes, self.pooled(maps, boxes, sizes), list(maps.values()))

    def pooled(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """The features [sum of R_i, F] of regions of any size, by RoI pooling."""
        features: Tensor = self.roi_heads.box_head(self.roi_heads.box_roi_pool(maps, boxes, sizes))
        return features

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return self.detections(self.maps(images), images)

    def detections(self, maps: dict[str, Tensor], images: Tensor) -> list[dict[str, Tensor]]:
        """What `forward` returns, of the images' feature maps."""
        sizes, boxes = _sizes(images), self.proposals(maps, images)
        logits, deltas = self.of_regions(self.pooled(maps, boxes, sizes))
        predicted = self.roi_heads.postprocess_detections(logits, deltas, boxes, sizes)
        return [dict(zip(("boxes", "scores", "labels"), own, strict=True)) for own in zip(*predicted, strict=True)]

    def of_regions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the second stage says of regions [R, F]: logits [R, C + 1], the background first, and offsets [R, 4 (C + 1)]."""
        logits, offsets = self.roi_heads.box_predictor(features)
        return logits, offsets

    def of_anchors(self, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the first stage says of the A anchors of all images, in order: logits [A] and offsets [A, 4]."""
        logits, offsets = concat_box_prediction_layers(*self.rpn.head(list(maps.values())))
        return logits[:, 0], offsets

    def sampled_anchors(
        self, maps: dict[str, Tensor], images: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The anchors that training on these targets would sample, as masks [A] over those of all images: the positive ones, and
        all."""
        anchors = self.rpn.anchor_generator(ImageList(images, _sizes(images)), list(maps.values()))
        positive, negative = map(torch.cat, self.rpn.fg_bg_sampler(self.rpn.assign_targets_to_anchors(anchors, targets)[0]))
        return positive.bool(), (positive + negative).bool()

    def sampled_regions(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> list[Tensor]:
        """The boxes of each image [R_i, 4] that training on these targets would sample of proposals and targets."""
        return list(self.roi_heads.select_training_samples(list(proposals), targets)[0])

    def proposals(self, maps: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """Proposals by falling objectness, computed in evaluation mode: in training mode torchvision's RPN requires targets."""
        training = self.rpn.training
        self.rpn.eval()
        proposals, _ = self.rpn(ImageList(images, _sizes(images)), maps)
        self.rpn.train(training)
        return list(proposals)


def _sizes(images: Tensor) -> list[tuple[int, int]]:
    return [(images.shape[2], images.shape[3])] * len(images)


def _parts(config: DetectorConfig, classes: int, *, fetch: bool) -> dict[str, Any]:
    """The parts that torchvision's FasterRCNN is built from."""
    given = config.weights if fetch else ""
    weights, file = (None, given) if is_file(given) else (given or None, "")  # the weights' name, or their file
    if config.backbone in RESNETS:
        # No batch norm that trains: batches are small, and the two domains have different statistics.
        norm = FrozenBatchNorm2d if config.weights else partial(nn.GroupNorm, 32)
        backbone = _with_weights(
            config,
            lambda: resnet_fpn_backbone(
                backbone_name=config.backbone, weights=weights, norm_layer=norm,
                trainable_layers=3 if config.weights else 5,
            ),
        )  # fmt: skip
        if file:
            load_weights(backbone.body, file)
        sides = config.anchors or (32, 64, 128, 256, 512)
        return {"backbone": backbone, "rpn_anchor_generator": _anchors([(side,) for side in sides])}
    if is_users(config.backbone):
        own = _with_weights(config, lambda: build_users(config.backbone, given))
        return _parts_around(own, config, classes)
    if is_timm(config.backbone):
        pyramid = build_pyramid(config.backbone, config.pyramid, given, frozen=bool(config.weights))
        return _parts_around(pyramid, config, classes)
    if config.backbone == VGG16:
        vgg = _with_weights(config, lambda: models.vgg16(weights=weights))
        backbone = vgg.features[:-1]  # without the last pooling: one map, at 1/16 of the image's size
        backbone.out_channels, hidden, sides = 512, 4096, config.anchors or (64, 128, 256, 512)
    else:
        backbone, hidden, sides = _small_backbone(), 256, config.anchors or (16, 32, 64, 128)
    if file:
        load_weights(backbone, file)
    return {
        "backbone": backbone,
        "rpn_anchor_generator": _anchors([tuple(sides)]),
        "box_roi_pool": MultiScaleRoIAlign(["0"], POOLED, 2),
        "box_head": TwoMLPHead(backbone.out_channels * POOLED**2, hidden),
        "box_predictor": FastRCNNPredictor(hidden, classes + 1),
    }


def _parts_around(backbone: nn.Module, config: DetectorConfig, classes: int) -> dict[str, Any]:
    """The parts around a backbone of timm or a user, which returns a map [B, C, h, w] or a dict of such maps with equal C, the
    largest first.

    Raises InputError when it returns something else, or when there are several maps and not one anchor for each.
    """
    output = ask(backbone, torch.zeros(1, 3, SIDE, SIDE))
    maps = {"0": output} if isinstance(output, Tensor) else output
    tensors = list(maps.values()) if isinstance(maps, dict) else []
    if not tensors or not all(isinstance(t, Tensor) and t.ndim == 4 and t.shape[1] == tensors[0].shape[1] for t in tensors):
        got = first_line(output) if isinstance(output, Exception) else described(output)
        raise InputError(f"for an image of {SIDE}x{SIDE} it gives no maps [1, C, h, w] ({got})", config.backbone, DOCS)
    backbone.out_channels = tensors[0].shape[1]  # torchvision reads it
    strides = [SIDE // t.shape[2] for t in tensors]
    if len(tensors) == 1:
        sides = [config.anchors or tuple(strides[0] * factor for factor in (2, 4, 8, 16))]
    else:
        sides = [(side,) for side in config.anchors or [8 * stride for stride in strides]]
    if len(sides) != len(tensors):
        raise InputError(f"{len(sides)} anchors for {len(tensors)} levels", "model", "give one side for each level")
    return {
        "backbone": backbone,
        "rpn_anchor_generator": _anchors(sides),
        "box_roi_pool": MultiScaleRoIAlign(list(maps), POOLED, 2),
        "box_head": TwoMLPHead(tensors[0].shape[1] * POOLED**2, config.hidden),
        "box_predictor": FastRCNNPredictor(config.hidden, classes + 1),
    }


def _anchors(sides: Sequence[tuple[int, ...]]) -> AnchorGenerator:
    return AnchorGenerator(tuple(sides), ((0.5, 1.0, 2.0),) * len(sides))


def _with_weights(config: DetectorConfig, build: Any) -> Any:
    try:
        return build()
    except OSError as error:
        remedy = "fetch them where there is a network, into TORCH_HOME, or train without weights"
        raise InputError(f"the weights of {config.backbone} can't be fetched", f"{config.weights} ({error})", remedy) from error


class _Residual(nn.Module):
    """A residual block of one (dilated) convolution."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        # checkpoints use this name
        self.found = _conv(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.found(x)
        return x + residual


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    norm = partial(nn.GroupNorm, 8)
    return Conv2dNormActivation(inputs, outputs, 3, stride, dilation=dilation, norm_layer=norm)  # type: ignore[no-any-return]


def _small_backbone() -> nn.Sequential:
    """One map at 1/8 of the image's size, 64 channels; dilated convolutions widen the receptive field to about 150 pixels."""
    layers = [_conv(3, 16, 2), _conv(16, 32, 2), _Residual(32, 1), _conv(32, 64, 2)]
    backbone = nn.Sequential(*layers, *(_Residual(64, dilation) for dilation in (1, 2, 4)))
    backbone.out_channels = 64  # type: ignore[assignment]  # torchvision reads it
    return backbone
