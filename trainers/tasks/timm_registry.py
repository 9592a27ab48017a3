"""Registers this project's image models in timm: after ``import trainers.tasks.timm_registry``, ``timm.create_model`` builds
"hardshard_small_v2", and "hardshard_small", the network before it."""

from typing import Any

from timm.models import register_model

from trainers.tasks.small_net import OLD, SMALL, SmallNet, small_net


@register_model  # type: ignore[untyped-decorator]  # timm's types are not read
def hardshard_small_v2(pretrained: bool = False, *, num_classes: int = 1000, **ignored: Any) -> SmallNet:
    """`SmallNet`; with ``num_classes=0`` it returns features [B, 1152]. ValueError if ``pretrained``: there are no weights.

    ``ignored``: what timm passes to every model, such as pretrained_cfg.
    """
    return _untrained(SMALL, pretrained, num_classes)


@register_model  # type: ignore[untyped-decorator]
def hardshard_small(pretrained: bool = False, *, num_classes: int = 1000, **ignored: Any) -> SmallNet:
    """As `hardshard_small_v2`, but the network before it, whose features are [B, 128]."""
    return _untrained(OLD, pretrained, num_classes)


def _untrained(name: str, pretrained: bool, num_classes: int) -> SmallNet:
    if pretrained:
        raise ValueError(f"{name} has no pretrained weights")
    return small_net(name, num_classes)
