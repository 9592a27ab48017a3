"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPRW 2019: warm-up, erasing, label
    # smoothing, last stride 1, the neck's batch norm. Differs: 512 features, a cosine schedule, cosines of pairs.
    "strong-baseline": {
        "sampler.kind": "pk", "sampler.batch": 64, "sampler.instances": 4,
        "loader.size": (256, 128), "augment.shift": 0.04, "augment.erase": 0.5,
        "model.backbone": "resnet50", "model.weights": "DEFAULT", "model.last_stride": 1, "model.embedding": 512,
        "head.kind": "softmax", "head.smoothing": 0.1, "pair.kind": "soft_triplet",
        "optim.lr": 3.5e-4, "optim.warmup": 2000, "optim.steps": 24000,
    },
    # The same tricks on a small network for CPUs and small sets, whose figures by steps are in docs/claims.md. Differs from
    # "strong-baseline": CosFace, which learns faster than softmax in few steps, GeM pooling, a learning rate for few steps.
    "mobile": {
        "sampler.kind": "pk", "sampler.batch": 64, "sampler.instances": 4,
        "loader.size": (128, 64), "augment.erase": 0.5,
        "model.backbone": "mobilenet_v2", "model.weights": "DEFAULT", "model.pooling": "gem", "model.embedding": 512,
        "head.kind": "cosface", "head.scale": 20.0, "head.margin": 0.2, "head.smoothing": 0.1, "pair.kind": "soft_triplet",
        "optim.lr": 2e-3, "optim.warmup": 100, "optim.steps": 2000,
    },
    # For thousands of identities that look alike, in small images on CPUs: a pair loss, in batches of look-alikes once random
    # ones have become easy. What each part gains is in docs/claims.md. Differs from Liao and Shao, "Graph Sampling Based Deep
    # Metric Learning for Generalizable Person Re-Identification", CVPR 2022: several anchors a batch, classifier rows.
    "neighbours": {
        "sampler.kind": "neighbours", "sampler.batch": 64, "sampler.instances": 4,
        "head.kind": "cosface", "head.scale": 24.0, "head.margin": 0.2,
        "pair.kind": "soft_triplet", "pair.weight": 2.0, "pair.margin": 0.3,
        "optim.lr": 3e-3, "optim.steps": 2000,
    },
    # He et al., "TransReID", ICCV 2021, without its camera embedding and jigsaw: SGD, a ViT on ImageNet's weights.
    "vit": {
        "sampler.kind": "pk", "sampler.batch": 64, "sampler.instances": 4,
        "loader.size": (256, 128), "augment.shift": 0.04, "augment.erase": 0.5,
        "model.backbone": "timm/vit_base_patch16_224", "model.weights": "timm", "model.embedding": 768,
        "head.kind": "softmax", "pair.kind": "soft_triplet",
        "optim.kind": "sgd", "optim.lr": 8e-3, "optim.weight_decay": 1e-4, "optim.warmup": 1000, "optim.steps": 24000,
    },
    # Deng et al., "ArcFace", CVPR 2019: aligned faces of 112x112, ArcFace with scale 64 and margin 0.5, SGD.
    # Differs: torchvision's ResNet-50, with last stride 1 for the small images, and a cosine schedule.
    "faces": {
        "sampler.kind": "uniform", "sampler.batch": 512,
        "loader.size": (112, 112), "augment.flip": True, "augment.shift": 0.0,
        "model.backbone": "resnet50", "model.last_stride": 1, "model.embedding": 512, "model.dropout": 0.4,
        "head.kind": "arcface", "head.scale": 64.0, "head.margin": 0.5,
        "optim.kind": "sgd", "optim.lr": 0.1, "optim.weight_decay": 5e-4, "optim.warmup": 1000, "optim.steps": 180000,
        "optim.clip": 5.0,
    },
}  # fmt: skip
