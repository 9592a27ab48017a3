"""Registers this project's image models in timm: after ``import trainers.tasks.timm_registry``, ``timm.create_model`` builds
"hardshard_small"."""

from typing import Any

from timm.models import register_model

from trainers.tasks.backbones import SmallNet


@register_model  # type: ignore[untyped-decorator]  # timm's types are not read
def hardshard_small(pretrained: bool = False, *, num_classes: int = 1000, **ignored: Any) -> SmallNet:
    """`SmallNet`; with ``num_classes=0`` it returns pooled features [B, 128]. ValueError if ``pretrained``: there are no weights.

    ``ignored``: what timm passes to every model, such as pretrained_cfg.
    """
    if pretrained:
        raise ValueError("hardshard_small has no pretrained weights")
    return SmallNet(num_classes)
